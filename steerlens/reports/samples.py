"""Samples of a report: a few prompts answered plainly, steered, and under a placebo."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from steerlens.attribution.log_odds import engine_scope
from steerlens.behaviour.answers import Answerer
from steerlens.behaviour.plans.candidates import describe
from steerlens.behaviour.plans.fitting import VectorBook
from steerlens.behaviour.plans.plan import Plan
from steerlens.behaviour.side_effects import side_effects
from steerlens.effects import TokenEffects, parts_at, token_effects
from steerlens.engine.generation import Generations, generate
from steerlens.models.conversations import Prompt, shown
from steerlens.reports.settings import ReportSettings
from steerlens.steering.interventions import Steering
from steerlens.tasks import Task
from steerlens.vectors import SteeringVector

__all__ = ["SteeredTask", "answer_samples"]


@dataclass(frozen=True, eq=False)
class SteeredTask:
    """A task with its vector, its placebo, and where it is steered without a plan, by a rule."""

    task: Task
    layer: int
    caveat: str | None
    vector: SteeringVector
    placebo: SteeringVector
    operation: str
    rule: str
    scope: str


@dataclass(frozen=True, eq=False)
class _Sample:
    """A prompt, the arguments of the task's check, its two steerings, and where they were read."""

    prompt: Prompt
    kwargs: Mapping[str, Any]
    steered: Steering
    placebo: Steering
    read_at: str | None


def answer_samples(
    model: TransformerBridge,
    tasks: Sequence[SteeredTask],
    plan: Plan | None,
    settings: ReportSettings,
    show_progress: bool,
) -> list[dict[str, Any]]:
    """For each task its records ``steering`` and ``samples``; one call answers all prompts."""
    book = None
    if plan is not None:
        book = VectorBook(Answerer(model), plan.recipe)
        plan.fill(book)
    n_samples = settings.samples_for(len(tasks))
    records, samples = [], []
    for steered in tasks:
        prompts = _prompts(steered.task, n_samples, settings.seed)
        record, own = _steer(steered, prompts, plan, book, settings)
        records.append(record)
        samples.append(own)
    _add_costs(model, tasks, records, samples, show_progress)
    unsteered = list(dict.fromkeys(sample.prompt for own in samples for sample in own))
    rows: list[tuple[Prompt, Steering | None]] = [(prompt, None) for prompt in unsteered]
    for own in samples:
        for sample in own:
            rows += [(sample.prompt, sample.steered), (sample.prompt, sample.placebo)]
    responses = generate(
        model,
        [prompt for prompt, _ in rows],
        steering=[steering for _, steering in rows],
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
        show_progress=show_progress,
    )
    answered = []
    row = len(unsteered)
    total = len(rows) - row
    disable = not show_progress
    with tqdm(total=total, desc="per-token effects", disable=disable) as bar:
        for steered, record, own in zip(tasks, records, samples, strict=True):
            told = []
            for sample in own:
                baseline = unsteered.index(sample.prompt)
                told.append(_record(model, steered.task, sample, responses, baseline, row))
                row += 2
                bar.update(2)
            answered.append({"steering": record, "samples": told})
    return answered


def _add_costs(
    model: TransformerBridge,
    tasks: Sequence[SteeredTask],
    records: Sequence[dict[str, Any]],
    samples: Sequence[Sequence[_Sample]],
    show_progress: bool,
) -> None:
    """What the steering of each task's first sample costs on plain text, beside its placebo."""
    first = {steered.task.id: own[0] for steered, own in zip(tasks, samples, strict=True) if own}
    if not first:
        return
    effects = side_effects(
        model,
        {name: sample.steered for name, sample in first.items()},
        {name: sample.placebo for name, sample in first.items()},
        show_progress=show_progress,
    )
    for steered, record in zip(tasks, records, strict=True):
        if steered.task.id in first:
            record["cost"] = effects.summary(steered.task.id)


def _prompts(task: Task, n_samples: int, seed: int) -> list[tuple[Prompt, dict[str, Any]]]:
    """The same prompts for every task whose kinds of query allow it, so texts can be compared."""
    rng = random.Random(seed)
    queries = task.queries("report")
    chosen = rng.sample(queries, min(n_samples, len(queries)))
    given: dict[Prompt, Mapping[str, Any]] = {}
    if task.group == "pairs" and (n := task.n_pairs("report")) >= 2:
        given = {pair.uninstructed: pair.kwargs for pair in task.pairs(n, split="report")}
    return [
        (query.text, {**task.sample_kwargs(rng, query), **given.get(query.text, {})})
        for query in chosen
    ]


def _steer(
    steered: SteeredTask,
    prompts: Sequence[tuple[Prompt, dict[str, Any]]],
    plan: Plan | None,
    book: VectorBook | None,
    settings: ReportSettings,
) -> tuple[dict[str, Any], list[_Sample]]:
    """How a task is steered, as a record and for each prompt."""
    options = (steered.layer, steered.operation, settings.strength, steered.scope)
    rule, read_at = steered.rule, _read_at(steered.vector)
    if plan is not None and book is not None:
        candidate = plan.candidate(steered.task.id)
        if candidate:
            first = candidate[0]
            options = (first.layer, first.operation, first.strength, first.scope)
            record = _steering_record(*options, f"chosen by the plan: {describe(candidate)}", None)
            samples = []
            for prompt, kwargs in prompts:
                named = [(steered.task, kwargs)]
                pair = (plan.steering(book, named, placebo=drawn) for drawn in (False, True))
                vector, placebo = (steering for steering in pair if steering is not None)
                read_at = "last_prompt" if first.estimator == "last_prompt" else None
                samples.append(_Sample(prompt, kwargs, vector, placebo, read_at))
            return record, samples
        rule = f"the plan chose no steering, so this is the layer with the {steered.rule}"
    touched = (*options[:3], engine_scope(steered.scope))
    vector, placebo = steered.vector.at(*touched), steered.placebo.at(*touched)
    samples = [_Sample(prompt, kwargs, vector, placebo, read_at) for prompt, kwargs in prompts]
    return _steering_record(*options, rule, steered.caveat), samples


def _read_at(vector: SteeringVector) -> str | None:
    """Where strips mark that a vector was read: in a prompt, if at all."""
    return "last_prompt" if vector.metadata.get("position") == "last_prompt" else None


def _steering_record(
    layer: int, operation: str, strength: float, scope: str, rule: str, caveat: str | None
) -> dict[str, Any]:
    return {
        "layer": layer,
        "operation": operation,
        "strength": strength,
        "scope": scope,
        "rule": rule,
        "caveat": caveat,
    }


def _record(
    model: TransformerBridge,
    task: Task,
    sample: _Sample,
    responses: Generations,
    baseline: int,
    row: int,
) -> dict[str, Any]:
    """A sample's texts, verdicts and tokens; the steered response is in `row`, then the placebo."""

    def answer(row: int) -> dict[str, Any]:
        text = responses.texts[row]
        passed = task.check(text, loose=True, **sample.kwargs) if task.has_check else None
        return {"text": text, "passed": passed}

    record = {"prompt": shown(sample.prompt), "kwargs": dict(sample.kwargs)}
    record["baseline"] = answer(baseline)
    unsteered = responses.tokens[baseline]
    # The placebo's direction was drawn at random, not read anywhere.
    for name, steering, place, read_at in (
        ("steered", sample.steered, row, sample.read_at),
        ("placebo", sample.placebo, row + 1, None),
    ):
        tokens = responses.tokens[place]
        effects = token_effects(
            model, responses.prompt_tokens[place], tokens, steering, read_at=read_at
        )
        parting = {"tokens": _token_records(effects), "parts_at": parts_at(unsteered, tokens)}
        record[name] = {**answer(place), **parting}
    return record


def _token_records(effects: TokenEffects) -> list[dict[str, Any]]:
    """Rows of the effects' table as plain data, rounded."""

    def rounded(value: Any) -> Any:
        if isinstance(value, float):
            return round(value, 5)
        if isinstance(value, tuple):
            return [[token, round(change, 3)] for token, change in value]
        return value

    rows = effects.table.to_dict("records")
    return [{str(name): rounded(value) for name, value in row.items()} for row in rows]
