"""A layer survey: the whole chain, instruction by instruction, as one result.

For every instruction `survey_instruction`

1. caches residuals of contrast pairs of the ``fit`` split, ranks layers by separability and takes
   the difference of means;
2. measures first-token causal recovery on pairs of the ``select`` split, beside a placebo;
3. steers where recovery is highest, on prompts of the ``report`` split that neither the vector nor
   the choice of layer has seen, and records per-token effects beside the placebo's.

The result is plain data (`Survey.data`, documented in ``docs/report-format.md``): the JSON that
`steerlens.reports` turns into a page.

Caveat: the layer is chosen by its effect on the first response token. That is cheap and predicts
steering better than separability does, but it is blind to instructions that show late in a
response; choosing by behaviour needs whole responses.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from einops import einsum
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from steerlens.activations.cache import ResidualCache, cache_residuals
from steerlens.attribution import (
    ALL_EVIDENCE,
    Evidence,
    LayerRanking,
    RecoveryCurve,
    first_token_recovery,
    gather_evidence,
    rank_layers,
)
from steerlens.effects import TokenEffects, parts_at, token_effects
from steerlens.engine.generation import Generations, generate
from steerlens.errors import SteerlensError, unknown_name
from steerlens.files import REPORT_SCHEMA, library_versions
from steerlens.models.loading import model_info
from steerlens.steering.interventions import Steering
from steerlens.tasks import Task, base_queries, catalogue
from steerlens.tasks.pairs import contrast_pairs
from steerlens.vectors import SteeringVector, difference_of_means, random_direction

__all__ = ["Survey", "SurveySettings", "survey"]

STEERING_RULE = "highest first-token causal recovery on held-out pairs"


@dataclass(frozen=True)
class SurveySettings:
    """What a survey measures; all of it goes into the report's provenance.

    Attributes:
        n_pairs: Contrast pairs an instruction (``fit`` split) for vector and separability.
        n_recovery: Pairs of the ``select`` split for causal recovery.
        n_samples: Prompts of the ``report`` split that are answered and shown.
        recovery_every: Causal recovery is measured at every so many layers, short of the last.
        operation: Operation of recovery and samples.
        strength: Its strength.
        scope: Its scope.
        max_new_tokens: Longest sample response, in tokens.
        batch_size: Prompts a forward pass.
        seed: Seed of everything random.
        evidence: Further kinds of evidence (`steerlens.attribution.evidence.ALL_EVIDENCE`), shown
            side by side; none by default, because each instruction then takes most of a minute.
    """

    n_pairs: int = 64
    n_recovery: int = 16
    n_samples: int = 3
    recovery_every: int = 3
    operation: str = "set_projection"
    strength: float = 1.0
    scope: str = "all"
    max_new_tokens: int = 96
    batch_size: int = 32
    seed: int = 0
    evidence: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # At the door: a survey takes minutes before it would use the last of these.
        counts = ("n_samples", "recovery_every", "max_new_tokens", "batch_size")
        for name in counts:
            if getattr(self, name) < 1:
                raise SteerlensError(f"{name} must be at least 1; got {getattr(self, name)}")
        for kind in self.evidence:
            if kind not in ALL_EVIDENCE:
                raise unknown_name("kind of evidence", kind, ALL_EVIDENCE)
        if not 0 <= self.seed < 2**32:
            raise SteerlensError(f"seed must be between 0 and {2**32 - 1}; got {self.seed}")


@dataclass(frozen=True, eq=False, repr=False)
class Survey:
    """Result of `survey`.

    Attributes:
        data: Plain data, ready for JSON.
        vectors: The difference of means of each instruction, by id.
    """

    data: Mapping[str, Any]
    vectors: Mapping[str, SteeringVector]

    def __repr__(self) -> str:
        return f"Survey({self.data['model']['reference']}, {len(self.vectors)} instructions)"


@dataclass(frozen=True, eq=False)
class _Attributed:
    """One instruction after attribution, before its samples."""

    task: Task
    cache: ResidualCache
    ranking: LayerRanking
    recovery: RecoveryCurve
    vector: SteeringVector
    placebo: SteeringVector
    evidence: Evidence | None = None

    def steering(self, settings: SurveySettings, vector: SteeringVector) -> Steering:
        layer = self.recovery.best_layer
        return vector.at(layer, settings.operation, settings.strength, settings.scope)


def survey(
    model: TransformerBridge,
    instructions: Sequence[str],
    settings: SurveySettings | None = None,
    command: str = "",
    progress: bool | None = None,
) -> Survey:
    """Attribute layers and show steering for several instructions.

    Args:
        model: A hooked model.
        instructions: Ids of the catalogue.
        settings: Sizes and operation; see `SurveySettings`.
        command: The command that makes the survey again, for its provenance.
        progress: Show progress bars on standard error; by default only in a terminal.

    Raises:
        UnknownNameError: An id that the catalogue does not have.
        SteerlensError: No instruction, or fewer than 2 pairs.
    """
    settings = settings or SurveySettings()
    if not instructions:
        raise SteerlensError("no instruction was given; name at least one, or take the catalogue")
    tasks = [catalogue[name] for name in dict.fromkeys(instructions)]
    for task in tasks:  # drawn again when used; here so that too many are refused at once
        contrast_pairs(task, n=settings.n_pairs, seed=settings.seed, split="fit")
        contrast_pairs(task, n=settings.n_recovery, seed=settings.seed, split="select")
    seconds: dict[str, float] = {}
    started = time.monotonic()
    attributed = []
    disable = None if progress is None else not progress
    for task in tqdm(tasks, desc="layer attribution", unit="instruction", disable=disable):
        attributed.append(_attribute(model, task, settings))
    seconds["attribution"] = time.monotonic() - started
    started = time.monotonic()
    samples = _samples(model, attributed, settings, progress)
    seconds["samples"] = time.monotonic() - started
    return Survey(
        data={
            "schema": REPORT_SCHEMA,
            "model": _model_record(model),
            "provenance": _provenance(attributed, settings, command, seconds),
            "instructions": [
                _instruction_record(one, settings, shown)
                for one, shown in zip(attributed, samples, strict=True)
            ],
            "cosines": _cosines(attributed),
        },
        vectors={one.task.id: one.vector for one in attributed},
    )


def _attribute(model: TransformerBridge, task: Task, settings: SurveySettings) -> _Attributed:
    pairs = contrast_pairs(task, n=settings.n_pairs, seed=settings.seed, split="fit")
    held_out = contrast_pairs(task, n=settings.n_recovery, seed=settings.seed, split="select")
    cache = cache_residuals(model, pairs, batch_size=settings.batch_size, progress=False)
    vector = difference_of_means(cache)
    placebo = random_direction(cache, seed=settings.seed)
    # Not the last layer: what is set there moves the first token's logits almost directly, so its
    # recovery is high, but nothing is left that could carry the instruction on.
    layers = range(0, max(model.cfg.n_layers - 1, 1), settings.recovery_every)
    recovery = first_token_recovery(
        model,
        held_out,
        vector,
        layers=layers,
        placebo=placebo,
        operation=settings.operation,
        strength=settings.strength,
        scope="prompt" if settings.scope == "response" else settings.scope,
        batch_size=settings.batch_size,
        seed=settings.seed,
        progress=False,
    )
    ranking = rank_layers(cache, seed=settings.seed)
    evidence = None
    if settings.evidence:
        evidence = gather_evidence(
            model,
            cache,
            held_out,
            settings.evidence,
            seed=settings.seed,
            progress=False,
            fitted_on=pairs,
        )
    return _Attributed(task, cache, ranking, recovery, vector, placebo, evidence)


@dataclass(frozen=True)
class _Sample:
    """A prompt to answer, with the arguments of the instruction's check."""

    prompt: str
    kwargs: Mapping[str, Any]


def _sample_prompts(task: Task, settings: SurveySettings) -> list[_Sample]:
    """The same prompts for every instruction where their kinds allow, so texts can be compared."""
    rng = random.Random(settings.seed)
    queries = [
        query
        for query in base_queries("report")
        if task.query_kinds is None or query.kind in task.query_kinds
    ]
    chosen = rng.sample(queries, min(settings.n_samples, len(queries)))
    return [_Sample(query.text, task.sample_kwargs(rng, query)) for query in chosen]


def _samples(
    model: TransformerBridge,
    attributed: Sequence[_Attributed],
    settings: SurveySettings,
    progress: bool | None,
) -> list[list[dict[str, Any]]]:
    """Sample records of each instruction; all responses are generated in one call."""
    wanted = [_sample_prompts(one.task, settings) for one in attributed]
    rows: list[tuple[str, Steering | None]] = []
    plain = list(dict.fromkeys(sample.prompt for shown in wanted for sample in shown))
    rows += [(prompt, None) for prompt in plain]
    for one, shown in zip(attributed, wanted, strict=True):
        for kind in (one.vector, one.placebo):
            rows += [(sample.prompt, one.steering(settings, kind)) for sample in shown]
    responses = generate(
        model,
        [prompt for prompt, _ in rows],
        steering=[steering for _, steering in rows],
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
        progress=progress,
    )
    baseline_row = {prompt: i for i, prompt in enumerate(plain)}
    start = len(plain)
    records: list[list[dict[str, Any]]] = []
    disable = None if progress is None else not progress
    with tqdm(total=len(rows) - len(plain), desc="per-token effects", disable=disable) as bar:
        for one, shown in zip(attributed, wanted, strict=True):
            n = len(shown)
            records.append(
                [
                    _sample_record(
                        model,
                        one.task,
                        sample,
                        responses,
                        baseline_row[sample.prompt],
                        {
                            "steered": (start + i, rows[start + i][1]),
                            "placebo": (start + n + i, rows[start + n + i][1]),
                        },
                        bar.update,
                    )
                    for i, sample in enumerate(shown)
                ]
            )
            start += 2 * n
    return records


def _sample_record(
    model: TransformerBridge,
    task: Task,
    sample: _Sample,
    responses: Generations,
    baseline: int,
    runs: Mapping[str, tuple[int, Steering | None]],
    tick: Callable[[], Any],
) -> dict[str, Any]:
    def passed(row: int) -> bool:
        return task.check(responses.texts[row], loose=True, **sample.kwargs)

    record: dict[str, Any] = {
        "prompt": sample.prompt,
        "kwargs": dict(sample.kwargs),
        "baseline": {"text": responses.texts[baseline], "passed": passed(baseline)},
    }
    for name, (row, steering) in runs.items():
        if steering is None:
            raise AssertionError("samples are always steered")
        # A placebo's direction was drawn, not read anywhere.
        read_at = None if name == "placebo" else "last_prompt"
        effects = token_effects(
            model, responses.prompt_tokens[row], responses.tokens[row], steering, read_at=read_at
        )
        record[name] = {
            "text": responses.texts[row],
            "passed": passed(row),
            "tokens": _token_records(effects),
            "parts_at": parts_at(responses.tokens[baseline], responses.tokens[row]),
        }
        tick()
    return record


def _token_records(effects: TokenEffects) -> list[dict[str, Any]]:
    """Rows of the effects frame as plain data; numbers no JSON can hold become ``None``."""

    def plain(value: Any) -> Any:
        if isinstance(value, float):
            return round(value, 5) if value == value else None
        if isinstance(value, tuple):
            return [[token, round(change, 3)] for token, change in value]
        return value

    return [
        {str(name): plain(value) for name, value in row.items()}
        for row in effects.table.to_dict("records")
    ]


def _instruction_record(
    one: _Attributed, settings: SurveySettings, samples: list[dict[str, Any]]
) -> dict[str, Any]:
    ranking = one.ranking.to_json()
    return {
        "id": one.task.id,
        "group": one.task.group,
        "description": one.task.description,
        "n_pairs": one.ranking.n_pairs,
        "best_layer": one.ranking.best_layer,
        "best_layer_rule": one.ranking.rule,
        "best_layer_caveat": one.ranking.caveat,
        "layers": ranking["layers"],
        "recovery": one.recovery.table.to_dict("records"),
        "steering": {
            "layer": one.recovery.best_layer,
            "operation": settings.operation,
            "strength": settings.strength,
            "scope": settings.scope,
            "rule": STEERING_RULE,
            "caveat": one.recovery.caveat,
        },
        "evidence": None if one.evidence is None else _evidence_record(one.evidence),
        "samples": samples,
    }


def _evidence_record(evidence: Evidence) -> dict[str, Any]:
    """Its numbers; what is the same for the whole report is said there."""
    said_elsewhere = ("model", "instruction", "n_pairs", "position", "metadata")
    return {name: value for name, value in evidence.to_json().items() if name not in said_elsewhere}


def _cosines(attributed: Sequence[_Attributed]) -> dict[str, Any]:
    """Cosines between directions at the layer most instructions are steered at."""
    layers = [one.recovery.best_layer for one in attributed]
    layer = max(sorted(set(layers)), key=layers.count)
    directions = torch.stack(
        [one.vector.directions[one.vector.layer_index(layer)] for one in attributed]
    )
    matrix = einsum(directions, directions, "one d, other d -> one other")
    return {
        "layer": layer,
        "ids": [one.task.id for one in attributed],
        "matrix": [[round(value, 4) for value in row] for row in matrix.tolist()],
    }


def _model_record(model: TransformerBridge) -> dict[str, Any]:
    info = model_info(model)
    return {
        "reference": info.reference,
        "n_layers": info.n_layers,
        "d_model": info.d_model,
        "weights_hash": info.weights_hash,
        "dtype": info.dtype,
        "device": info.device,
        "chat_format": info.chat_format,
    }


def _provenance(
    attributed: Sequence[_Attributed],
    settings: SurveySettings,
    command: str,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    return {
        "command": command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": settings.seed,
        "n_pairs": settings.n_pairs,
        "position": "last_prompt",
        "versions": library_versions(),
        "data_hash": {one.task.id: one.cache.metadata["data_hash"] for one in attributed},
        "settings": vars(settings),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }
