"""`evaluate`: does the model follow, with and without steering; a run that can be resumed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from steerlens.behaviour.answers import Answer, Answerer, Question, answering
from steerlens.behaviour.evaluation.conditions import (
    PromptInCondition,
    conditions_for,
    in_condition,
    left_out,
)
from steerlens.behaviour.evaluation.prompts import (
    EvaluationPrompt,
    PromptFile,
    check_prompts,
    unknown_ids,
)
from steerlens.behaviour.evaluation.summary import summarise
from steerlens.behaviour.evaluation.unchecked import unchecked_values
from steerlens.behaviour.judge import load_judge
from steerlens.behaviour.plans.fitting import VectorBook
from steerlens.behaviour.plans.plan import Plan
from steerlens.behaviour.unchecked import MEASURES, measure_of
from steerlens.engine.sampling import GREEDY, Decoding
from steerlens.errors import SteerlensError
from steerlens.models.conversations import (
    Conversation,
    asked_text,
    continued,
    conversation_before,
)
from steerlens.models.identity import model_identity
from steerlens.models.loading import model_info, tokenize_prompts
from steerlens.runs import piece_name
from steerlens.runs.executors import Workers, check_workers
from steerlens.tasks.checks import verdict
from steerlens.tasks.fluency import fluency, why_degenerate
from steerlens.tasks.ifeval import count_sentences, count_words
from steerlens.views.numbers import show_interval
from steerlens.views.result import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["EVALUATION_SCHEMA", "Evaluation", "EvaluationSettings", "evaluate"]

EVALUATION_SCHEMA = "steerlens-evaluation/1"
RESPONSES = "responses.jsonl"
SUMMARY = "summary.json"


@dataclass(frozen=True)
class EvaluationSettings:
    """What the result of an evaluation depends on, besides model, prompts and plan.

    Attributes:
        max_new_tokens: Longest response, in tokens.
        judge: Reference of the judge; ``None`` for none.
        judge_tokens: Tokens of a response that the judge reads.
        batch_size: Rows decoded together; fixed, so that a resumed run rounds as it did.
        piece_rows: Rows per piece: what is computed by one worker, and lost with it.
        horizon: For tasks without a check: tokens of the instructed response that recovery is
            summed over.
        skip_unknown: Leave out rows with an instruction that no check knows, or that the plan has
            no choice for.
        seed: Seed of the intervals.
        decoding: How prompts are answered; ``None`` for that of the plan, or greedy without one.
        conversation: Messages that come before every prompt; ``None`` for those of the plan.
    """

    max_new_tokens: int = 256
    judge: str | None = None
    judge_tokens: int = 256
    batch_size: int = 96
    piece_rows: int = 192
    horizon: int = 32
    skip_unknown: bool = False
    seed: int = 0
    decoding: Decoding | None = None
    conversation: Conversation | None = None

    def with_plan(self, plan: Plan | None) -> tuple["EvaluationSettings", str]:
        """With everything decided, and a sentence about how prompts are answered, and why so."""
        chosen = GREEDY if plan is None else plan.decoding
        before = () if plan is None else plan.conversation
        decoding = chosen if self.decoding is None else self.decoding
        why = "the default" if plan is None else "as the plan was chosen with"
        if self.decoding is not None:
            why = "as asked for"
            if plan is not None and decoding != chosen:
                why += f"; the plan was chosen with: {chosen.describe()}"
        if self.conversation is not None:
            before = conversation_before(self.conversation)
        return replace(self, decoding=decoding, conversation=before), (
            f"{decoding.describe()} ({why})"
        )


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation(Result):
    """Result of `evaluate`.

    Attributes:
        summary: The content of ``summary.json``.
        responses: The rows of ``responses.jsonl``.
    """

    summary: Mapping[str, Any]
    responses: tuple[Mapping[str, Any], ...]

    @property
    def table(self) -> pd.DataFrame:
        """One row per condition and instruction (``"all prompts"`` first).

        Columns: `instruction`, `condition`, `n`, loose `rate` with `low` and `high`, `strict`,
        `degenerate`, `median_perplexity`, `median_words`; where tasks have no check, `measure` is
        "recovery" or "log_odds_change", and `effect` with `effect_low` and `effect_high` its value.
        """
        rows = [
            {
                "instruction": name,
                "condition": condition,
                "n": rates["n"],
                **(rates["loose"] or dict.fromkeys(("rate", "low", "high"))),
                "strict": rates["strict"] and rates["strict"]["rate"],
                **_effect_columns(rates),
                "degenerate": rates["degenerate"]["rate"],
                "median_perplexity": rates["median_perplexity"],
                "median_words": rates["median_words"],
            }
            for condition, record in self.summary["conditions"].items()
            for name, rates in {"all prompts": record["all"], **record["instructions"]}.items()
        ]
        return pd.DataFrame(rows).sort_values(
            "instruction",
            key=lambda names: names != "all prompts",
            kind="stable",
            ignore_index=True,
        )

    def plot(self) -> "go.Figure":
        """Rates by instruction and condition with their intervals; or recovery, where they are."""
        from steerlens.views import condition_rates

        table = self.table
        if table["rate"].notna().any():
            return condition_rates(table[table["rate"].notna()])
        effects = table[table["effect"].notna()]
        [measure] = set(effects["measure"])
        names = {f"effect{end}": end.strip("_") or "rate" for end in ("", "_low", "_high")}
        shown = effects.drop(columns=list(names.values())).rename(columns=names)
        is_share = measure == "recovery"
        return condition_rates(shown, quantity=MEASURES[measure], is_share=is_share)

    def __repr__(self) -> str:
        rates = ", ".join(
            f"{name} {described_rates(record['all'])}"
            for name, record in self.summary["conditions"].items()
        )
        return f"Evaluation({len(self.responses)} responses: {rates})"


def described_rates(rates: Mapping[str, Any]) -> str:
    """The rate of passing in words, or what was measured without a check, with intervals."""
    parts = []
    if (loose := rates["loose"]) is not None:
        parts.append(f"{loose['rate']:.1%} [{loose['low']:.1%}, {loose['high']:.1%}] pass")
    for measure, effect in rates.get("effects", {}).items():
        shown = show_interval(*(effect[end] for end in ("value", "low", "high")))
        parts.append(f"{MEASURES[measure]} {shown}")
    return " and ".join(parts) or "not counted (no check)"


def _effect_columns(rates: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured without a check, of one measure."""
    if len(rates.get("effects", {})) != 1:
        return {}
    [(measure, effect)] = rates["effects"].items()
    ends = {f"effect_{end}": effect[end] for end in ("low", "high")}
    return {"measure": measure, "effect": effect["value"], **ends}


def evaluate(
    model: TransformerBridge,
    prompts: PromptFile | Sequence[EvaluationPrompt],
    out: str | Path,
    plan: Plan | None = None,
    settings: EvaluationSettings | None = None,
    resume: bool = False,
    show_progress: bool | None = None,
    workers: Workers | None = None,
) -> Evaluation:
    """Answer prompts under every condition, check the responses, and summarise.

    Without a check, causal recovery is measured instead of a rate of passing, and for choices the
    change of their log odds; both need a plan.

    Args:
        model: A hooked model.
        prompts: From `read_prompts`, or from the catalogue (`catalogue_prompts`, `several`).
        out: A new or empty folder, or a run of the same evaluation with `resume`. Gets
            ``responses.jsonl`` and ``summary.json``.
        plan: Where and how hard to steer; without one, prompting alone is evaluated.
        settings: Lengths, judge, seed.
        resume: Continue the run in the folder.
        show_progress: Show progress bars on standard error; by default only in a terminal.
        workers: Compute answers in Ray workers instead of here; the files are the same.

    Raises:
        UnknownNameError: Prompts ask for instructions that no check knows (all are named), unless
            `skip_unknown`.
        SteerlensError: No prompt; a task without a check, and no plan; a prompt that could
            not be scored (`check_prompts`) or fills the
            context; a plan from another model; a row whose instruction the plan has no choice for
            (all are named), unless `skip_unknown`; a folder that cannot be used. All but the last
            before the folder is made.
        ModelError: The judge is not installed.
    """
    settings, decoding = (settings or EvaluationSettings()).with_plan(plan)
    check_workers(workers)
    rows, missing = _checked(model, prompts, plan, settings)
    judge = load_judge(settings.judge) if settings.judge else None
    described = {
        "model": model_identity(model).settings,
        "data": _described_data(prompts, rows, missing),
        "plan": None if plan is None else piece_name(dict(plan.data)),
        "settings": asdict(settings),
    }
    with answering(
        model, out, "evaluate", described, settings, resume, show_progress, workers, judge
    ) as (run, answerer):
        book = None
        if plan is not None:
            book = VectorBook(answerer, plan.recipe)
            plan.fill(book)
        asked = [
            in_condition(row, condition, plan, book, settings.conversation or ())
            for row in rows
            for condition in conditions_for(row, plan is not None)
        ]
        answers = _answers(answerer, asked, settings)
        samples = len(answers) // len(asked)
        perplexities: list[float | None] = [None] * len(answers)
        if judge is not None:
            texts = [answer.text for answer in answers]
            perplexities = answerer.perplexities(judge, texts, settings.judge_tokens)
        values = unchecked_values(*(answerer, asked, settings.horizon, settings.conversation or ()))
        records = [
            _record(asked[i // samples], i % samples, *answered, values[i // samples])
            for i, answered in enumerate(zip(answers, perplexities, strict=True))
        ]
        summary = {
            "schema": EVALUATION_SCHEMA,
            **described,
            "decoding": decoding,
            **summarise(records, seed=settings.seed),
        }
        run.retract(SUMMARY)
        run.write_jsonl(RESPONSES, records)
        run.write_json(SUMMARY, summary)
        run.conclude()
    return Evaluation(summary, tuple(records))


def _checked(
    model: TransformerBridge,
    prompts: PromptFile | Sequence[EvaluationPrompt],
    plan: Plan | None,
    settings: EvaluationSettings,
) -> tuple[list[EvaluationPrompt], dict[str, int]]:
    """The rows to answer, and those left out, before anything is computed."""
    rows = list(prompts.prompts if isinstance(prompts, PromptFile) else prompts)
    missing: dict[str, int] = {}
    if plan is not None:
        plan.check_model(model)
        rows, missing = left_out(rows, plan)
        if missing and not settings.skip_unknown:
            named = ", ".join(f"{name} ({n} rows)" for name, n in sorted(missing.items()))
            raise SteerlensError(
                f"the plan has no choice for {named}; search for them, or leave their rows out "
                "with --skip-unknown"
            )
    elif settings.skip_unknown:
        missing = dict(unknown_ids([*({*row.instruction_ids} - {*row.tasks})] for row in rows))
        rows = [row for row in rows if not missing.keys() & set(row.instruction_ids)]
    if not rows:
        raise SteerlensError("there is no prompt to evaluate")
    for task in (row.unchecked for row in rows):
        if task is not None and plan is None:
            raise SteerlensError(
                f"task {task.id!r} has no check, so there is nothing to measure without steering; "
                f"give a plan (`steerlens search --task … --out DIR`, then --plan DIR)"
            )
    check_prompts(rows)
    _check_lengths(model, rows, settings.conversation or ())
    return rows, missing


def _check_lengths(
    model: TransformerBridge, rows: Sequence[EvaluationPrompt], before: Conversation
) -> None:
    """Every prompt leaves room for an answer, or none is answered."""
    context = model_info(model).context_length
    for row in rows:
        texts = [row.prompt, row.prompt_without_instruction]
        try:
            asked = [continued(before, text) for text in texts if text is not None]
            tokens = tokenize_prompts(model, asked)
        except SteerlensError as error:
            raise SteerlensError(f"row {row.row!r}: {error}") from error
        if max(map(len, tokens)) >= context:
            raise SteerlensError(
                f"prompt {row.row!r} fills the model's context of {context} tokens; nothing can "
                "follow it; shorten it"
            )


def _described_data(
    prompts: PromptFile | Sequence[EvaluationPrompt],
    rows: Sequence[EvaluationPrompt],
    missing: Mapping[str, int],
) -> dict[str, Any]:
    file = prompts if isinstance(prompts, PromptFile) else None
    return {
        "file": Path(file.path).name if file else None,
        "hash": piece_name({"rows": [[row.row, row.prompt, row.kwargs] for row in rows]}),
        "tasks": {name: task.hash for row in rows for name, task in row.tasks.items()},
        "n_rows": len(rows),
        "left_out": {**(file.left_out if file else {}), **missing},
    }


def _answers(
    answerer: Answerer, asked: Sequence[PromptInCondition], settings: EvaluationSettings
) -> list[Answer]:
    """Answers to all questions, samples side by side; equal ones (no steering) are asked once."""
    questions = [prompt.question for prompt in asked]
    names = [piece_name({"prompt": q.prompt, "label": q.label}) for q in questions]
    distinct: dict[str, Question] = {}
    for name, question in zip(names, questions, strict=True):
        distinct.setdefault(name, question)
    decoding = settings.decoding or GREEDY
    answers = answerer.ask(list(distinct.values()), settings.max_new_tokens, "answering", decoding)
    n = decoding.samples
    by_name = {name: answers[i * n : (i + 1) * n] for i, name in enumerate(distinct)}
    return [answer for name in names for answer in by_name[name]]


def _record(
    asked: PromptInCondition,
    sample: int,
    answer: Answer,
    perplexity: float | None,
    value: float | None,
) -> dict[str, Any]:
    """A row of ``responses.jsonl``."""
    row = asked.row
    checked = None
    if row.unchecked is None:
        text = asked_text(row.prompt)
        checked = verdict(answer.text, row.instruction_ids, row.kwargs, text, row.tasks)
    why = why_degenerate(fluency(answer.text))
    return {
        "key": row.key,
        "row": row.row,
        "condition": asked.condition,
        "sample": sample,
        "prompt": asked.prompt,
        "response": answer.text,
        "instruction_id_list": list(row.instruction_ids),
        "kwargs": [dict(kwargs) for kwargs in row.kwargs],
        "measure": "rate" if row.unchecked is None else measure_of(row.unchecked),
        "measured": value,
        "strict": checked and checked.all_strict,
        "loose": checked and checked.all_loose,
        "strict_each": checked and list(checked.strict),
        "loose_each": checked and list(checked.loose),
        "judge_perplexity": None if perplexity is None else round(perplexity, 4),
        "degenerate": why is not None,
        "degenerate_why": why,
        "n_words": count_words(answer.text),
        "n_sentences": count_sentences(answer.text),
        "n_tokens": answer.n_tokens,
        "finish_reason": answer.finish_reason,
        "steering": asked.steering,
    }
