"""What a command will ask of the model, counted without running it.

Counts are exact where the plan of the work is known beforehand (evaluation without response
vectors, caching). A search decides as it goes; it is counted with every estimator its instruction
can have, evenly spaced layers, and all neighbours and combinations of the better candidates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformer_lens.model_bridge import TransformerBridge

from steerlens.instructions import Instruction, catalogue
from steerlens.pairs import contrast_pairs
from steerlens.plans.fitting import ENDING_TOKENS, FitRecipe, most_pairs, n_ending
from steerlens.plans.plan import Plan
from steerlens.residual_pieces import ResidualPiece

if TYPE_CHECKING:
    from steerlens.evaluation.prompts import EvaluationPrompt
    from steerlens.evaluation.run import EvaluationSettings
    from steerlens.search.settings import SearchSettings

__all__ = ["Asking", "Work", "cache_work", "evaluation_work", "search_work", "shard_work"]

_FORBIDDEN = "keywords:forbidden_words"
_SAMPLE = 48


@dataclass(frozen=True)
class Asking:
    """One list of questions.

    Attributes:
        rows: Questions.
        max_new_tokens: Longest response.
        steered: How many of them are steered.
        piece_rows: Rows a piece.
    """

    rows: int
    max_new_tokens: int
    steered: int = 0
    piece_rows: int = 192


@dataclass(frozen=True)
class Work:
    """All of it.

    Attributes:
        stage: ``"search"``, ``"evaluate"``, ``"cache"`` or ``"rank"``.
        prompts: A sample of the prompts, for calibration.
        askings: Lists of questions, in order.
        cached: Prompts run for residuals.
        recovered: Rows of causal recovery: prompts × layers.
        judged: Responses the judge reads.
        judge_tokens: Longest text it reads.
        checked: Responses checked.
        ranked: Pairs ranked.
        instruction: One of the instructions, for timing checks.
        numbers: Numbers written to the disk (vectors, residuals).
        number_bytes: Bytes of each.
        held: Floats of residuals held at once where they are cached: as the model gave them, and
            gathered by side.
        instructions: How many are searched; workers are given pieces of several at once.
    """

    stage: str
    prompts: tuple[str, ...]
    askings: tuple[Asking, ...] = ()
    cached: int = 0
    recovered: int = 0
    judged: int = 0
    judge_tokens: int = 0
    checked: int = 0
    ranked: int = 0
    instruction: str | None = None
    numbers: int = 0
    number_bytes: int = 4
    held: int = 0
    instructions: int = 1


def cache_work(
    model: TransformerBridge,
    prompts: Sequence[str],
    rank: bool = False,
    n_layers: int | None = None,
) -> Work:
    """Caching both sides of pairs, and ranking them.

    Args:
        model: The model.
        prompts: All prompts of both sides.
        rank: Whether layers are ranked as well.
        n_layers: Layers kept; all by default.
    """
    kept = model.cfg.n_layers if n_layers is None else n_layers
    distinct = tuple(dict.fromkeys(prompts))
    return Work(
        stage="rank" if rank else "cache",
        prompts=distinct[:_SAMPLE],
        cached=len(distinct),
        ranked=len(prompts) // 2 if rank else 0,
        numbers=0 if rank else len(prompts) * kept * model.cfg.d_model,
        held=(len(distinct) + len(prompts)) * kept * model.cfg.d_model,
    )


def shard_work(
    model: TransformerBridge, pieces: Sequence[ResidualPiece], number_bytes: int = 4
) -> Work:
    """Caching both sides of pairs in shards.

    Args:
        model: The model.
        pieces: The shards that are not there yet.
        number_bytes: Bytes of a number on the disk.
    """
    width = len(pieces[0].layers) * int(model.cfg.d_model) if pieces else 0
    shards = [
        [text for pair in piece.pairs for text in (pair.instructed, pair.uninstructed)]
        for piece in pieces
    ]
    distinct = [len(dict.fromkeys(prompts)) for prompts in shards]
    # Gathered by side, and once more in the order and the dtype of the file.
    held = [n + 2 * len(prompts) for n, prompts in zip(distinct, shards, strict=True)]
    return Work(
        stage="cache",
        prompts=_spread([prompt for prompts in shards for prompt in prompts]),
        cached=sum(distinct),
        numbers=sum(map(len, shards)) * width,
        number_bytes=number_bytes,
        held=max(held, default=0) * width,
    )


def search_work(
    model: TransformerBridge, tasks: Sequence[Instruction], settings: "SearchSettings"
) -> Work:
    """A search for these instructions."""
    from steerlens.search.lengths import tokens_to_tell
    from steerlens.search.space import first_candidates, neighbours

    n_layers = int(model.cfg.n_layers)
    askings: list[Asking] = []
    cached = recovered = judged = checked = numbers = n_pairs = 0
    prompts: list[str] = []
    for task in tasks:
        n = min(settings.final.n_prompts, most_pairs(task, "select", one_phrasing=True))
        pairs = list(contrast_pairs(task, n=n, seed=settings.seed, split="select"))
        prompts += [text for pair in pairs for text in (pair.uninstructed, pair.instructed)]
        needed = tokens_to_tell(task, [pair.kwargs for pair in pairs]) or 0
        wordings = _wordings(task, [pair.kwargs for pair in pairs])
        estimators = _estimators(task, bool(wordings))
        fitted = _fits(task, estimators, max(len(wordings), 1), bool(wordings), settings.recipe)
        askings += [_with_rows(one, settings.piece_rows) for one in fitted.askings]
        cached += fitted.cached
        n_pairs = max(n_pairs, fitted.n_pairs)
        if not wordings:
            numbers += len(estimators) * n_layers * int(model.cfg.d_model)
            n_evidence = min(settings.n_evidence, most_pairs(task, "select"))
            recovered += n_evidence * (len(range(0, max(n_layers - 1, 1), 2)) + 2)
        first = first_candidates(estimators, n_layers, None)
        near = len(neighbours(first[0], n_layers)) if first else 0
        broad, narrow, final = settings.broad, settings.narrow, settings.final
        kept = min(broad.n_kept, len(first))
        both = len(estimators) > 1 and "last_prompt" in estimators and "include" not in estimators
        finalists = 1 + min(narrow.n_kept, kept) + 2 * both
        for n_candidates, stage in (
            (len(first), broad),
            (kept + min(2, kept) * near, narrow),
            (finalists, final),
            (2 * min(narrow.n_kept, kept), narrow),
            (4, final),
        ):
            rows = n_candidates * min(stage.n_prompts, n)
            longest = max(stage.n_tokens, needed)
            askings.append(Asking(rows, longest, rows, settings.piece_rows))
            checked += rows
            judged += rows if stage is final and settings.judge else 0
    return Work(
        stage="search",
        prompts=_spread(prompts),
        askings=tuple(askings),
        cached=cached,
        recovered=recovered,
        judged=judged,
        judge_tokens=settings.judge_tokens,
        checked=checked,
        instruction=tasks[0].id,
        numbers=numbers,
        held=_held(model, n_pairs),
        instructions=len(tasks),
    )


def _held(model: TransformerBridge, n_pairs: int) -> int:
    """Floats held while so many pairs are cached: each prompt's, and gathered by side."""
    return 4 * n_pairs * int(model.cfg.n_layers) * int(model.cfg.d_model)


def evaluation_work(
    rows: "Sequence[EvaluationPrompt]", plan: Plan | None, settings: "EvaluationSettings"
) -> Work:
    """An evaluation of these prompts."""
    from steerlens.evaluation.conditions import conditions_for, steerable

    conditions = 0
    asked: set[tuple[str | None, str]] = set()
    prompts: list[str] = []
    used: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        prompts += [row.prompt, *filter(None, [row.prompt_without_instruction])]
        for condition in conditions_for(row, plan is not None):
            conditions += 1
            choices: list[Any] = []
            context = condition.split("+")[0]
            if plan is not None and "+" in condition:
                for name, kwargs in steerable(row, plan):
                    choice = plan.candidate(name, context)
                    choices += list(choice)
                    for one in choice:
                        if condition.endswith("placebo") or catalogue[name].wording(kwargs):
                            used.setdefault((name, one.estimator), []).append(kwargs)
            # Where no steering was chosen, a condition is its unsteered one and answered once.
            prompt = row.prompt if context == "instructed" else row.prompt_without_instruction
            how = f"{condition} {row.instruction_ids}" if choices else ""
            asked.add((prompt, how))
    askings: list[Asking] = []
    cached = 0
    for (name, estimator), given in used.items():
        task = catalogue[name]
        wordings = _wordings(task, given)
        recipe = plan.recipe if plan else FitRecipe()
        fitted = _fits(task, [estimator], max(len(wordings), 1), bool(wordings), recipe)
        askings += [_with_rows(one, settings.piece_rows) for one in fitted.askings]
        cached += fitted.cached
    steered = sum(1 for _, how in asked if how)
    askings.append(Asking(len(asked), settings.max_new_tokens, steered, settings.piece_rows))
    return Work(
        stage="evaluate",
        prompts=_spread(prompts),
        askings=tuple(askings),
        cached=cached,
        judged=len(asked) if settings.judge else 0,
        judge_tokens=settings.judge_tokens,
        checked=conditions,
        instruction=next(iter(plan.instructions), None) if plan else None,
    )


@dataclass(frozen=True)
class _Fits:
    askings: tuple[Asking, ...]
    cached: int
    # Most pairs whose residuals are held at once.
    n_pairs: int


def _fits(
    task: Instruction, estimators: Sequence[str], times: int, by_words: bool, recipe: FitRecipe
) -> _Fits:
    """What fitting these estimators takes, for each of so many wordings."""
    askings = []
    cached = most = 0
    n_pairs = min(recipe.n_wording if by_words else recipe.n_pairs, most_pairs(task))
    n_answers = min(
        recipe.n_wording if by_words else recipe.n_responses, most_pairs(task, one_phrasing=True)
    )
    for estimator in estimators:
        if estimator == "response_end":
            askings.append(Asking(n_ending(recipe), ENDING_TOKENS))
            cached += n_ending(recipe)
            most = max(most, n_ending(recipe) // 2)
            continue
        if not estimator.startswith("response"):
            cached += 2 * n_pairs
            most = max(most, n_pairs)
            continue
        # Answers without the instruction serve both response estimators and all wordings.
        both = estimator == "response_own"
        askings.append(Asking(n_answers, recipe.response_tokens))
        cached += 2 * n_answers
        most = max(most, n_answers)
        if both and len(estimators) == 1:
            askings.append(Asking(n_answers, recipe.response_tokens))
    return _Fits(tuple(askings) * (1 if not by_words else min(times, 2)), cached * times, most)


def _estimators(task: Instruction, by_words: bool) -> list[str]:
    """Those an instruction can have; `response_own` only the model's answers decide."""
    found = ["last_prompt"]
    if task.has_rewrite:
        found.append("response_rewrite")
    if not by_words:
        found.append("response_own")
    if task.group == "length":
        found.append("response_end")
    if task.id == _FORBIDDEN:
        found.append("include")
    return found


def _wordings(task: Instruction, kwargs: Sequence[Mapping[str, Any]]) -> set[str]:
    return {str(sorted(task.wording(one).items())) for one in kwargs if task.wording(one)}


def _with_rows(asking: Asking, piece_rows: int) -> Asking:
    return Asking(asking.rows, asking.max_new_tokens, asking.steered, piece_rows)


def _spread(prompts: Sequence[str]) -> tuple[str, ...]:
    """A sample from all of the list, not its beginning."""
    distinct = list(dict.fromkeys(prompts))
    step = max(1, len(distinct) // _SAMPLE)
    return tuple(distinct[::step][:_SAMPLE])
