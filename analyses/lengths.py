"""How long responses get: by level, and over strength."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

import steerlens as sl
from analyses import behaviour
from steerlens.behaviour.answers import Answerer
from steerlens.behaviour.evaluation import fluency, is_degenerate
from steerlens.behaviour.evaluation.run import Evaluation
from steerlens.behaviour.plans import FitRecipe, VectorBook
from steerlens.tasks import Task
from steerlens.tasks.ifeval import count_sentences, count_words
from steerlens.tasks.pairs import ContrastSet
from steerlens.tasks.task_files import load_task

__all__ = ["claims", "median_interval", "sweep", "words_by_level"]

_LAYER = 20
_STRENGTHS = (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
_ENDS, _PROMPTS = "where answers end", "shortest − longest prompts"


def median_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Median with its 95 % percentile-bootstrap interval."""
    found = bootstrap(
        (np.asarray(values, dtype=float),),
        np.median,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(np.median(values)), float(found.low), float(found.high)


def words_by_level(result: Evaluation, unit: str = "n_words") -> pd.DataFrame:
    """Median words of a response by instruction (rows) and condition, with intervals."""
    frame = pd.DataFrame(result.responses)
    frame["instruction"] = [ids[0] for ids in frame.instruction_id_list]
    rows: dict[str, dict[str, float]] = {}
    for (instruction, condition), own in frame.groupby(["instruction", "condition"]):
        median, low, high = median_interval(own[unit].tolist())
        rows.setdefault(str(instruction), {}).update(
            {str(condition): median, f"{condition} low": low, f"{condition} high": high}
        )
    return pd.DataFrame.from_dict(rows, orient="index")


def sweep(
    model: Any, shortest: Task | str, longest: Task | str
) -> dict[str, list[dict[str, float]]]:
    """Words and sentences a response while a vector is added to its tokens at one layer.

    Two vectors: the estimator ``response_end`` of `steerlens.behaviour.plans.fitting`, and the
    difference of means between prompts that ask for the shortest and for the longest answer.

    Returns:
        Rows for ``length_over_strength``: each vector and a placebo as long as the first.
    """
    n_fit, n_prompts, n_tokens = (4, 2, 12) if behaviour.SMALL else (64, 16, 384)
    prompts = [pair.uninstructed for pair in sl.contrast_pairs(longest, n=16, split="report")]
    ends = [sl.contrast_pairs(name, n=n_fit, split="fit") for name in (shortest, longest)]
    pairs = ContrastSet.from_prompts(*([p.instructed for p in end] for end in ends))
    cache = sl.cache_residuals(model, pairs)
    # Three of the first 40 answers of the default model end by themselves within 96 tokens.
    small = FitRecipe(n_responses=24, ending_tokens=128, least_own=2)
    recipe = small if behaviour.SMALL else FitRecipe()
    book = VectorBook(Answerer(model), recipe)
    task = load_task(shortest)
    lines = {
        _ENDS: book.vector(task, {}, "response_end"),
        _PROMPTS: sl.difference_of_means(cache),
        "placebo": book.placebo(task, {}, "response_end"),
    }
    found: dict[str, list[dict[str, float]]] = {}
    for name, vector in lines.items():
        strengths = [s for s in _STRENGTHS if not behaviour.SMALL or abs(s) == 1]
        asked = [(strength, prompt) for strength in strengths for prompt in prompts[:n_prompts]]
        texts = sl.generate(
            model,
            [prompt for _, prompt in asked],
            [vector.at(_LAYER, "add", strength, scope="response") for strength, _ in asked],
            max_new_tokens=n_tokens,
        ).texts
        found[name] = [_row(s, texts[i * n_prompts :][:n_prompts]) for i, s in enumerate(strengths)]
    return found


def _row(strength: float, texts: Sequence[str]) -> dict[str, float]:
    loops = sum(is_degenerate(fluency(text)) for text in texts)
    row = {"strength": strength, "degenerate": loops / len(texts)}
    for unit, count in (("words", count_words), ("sentences", count_sentences)):
        row[unit], row[f"{unit}_low"], row[f"{unit}_high"] = median_interval(
            [count(text) for text in texts]
        )
    return row


def claims(
    words: pd.DataFrame, moved: pd.DataFrame, result: Evaluation, sentences: Evaluation
) -> list[tuple[str, str, str, str]]:
    """Rows of the table of verdicts."""
    model = result.summary["model"]["reference"]
    steered = words["uninstructed+steering"].tolist()
    first, last = words.iloc[0], words.iloc[-1]
    monotone = all(a <= b for a, b in pairwise(steered))
    factor = steered[-1] / max(steered[0], 1)
    apart = last["uninstructed+steering low"] > first["uninstructed+steering high"]
    line = moved.loc[_ENDS]
    rank = line["strength"].corr(line["words"], method="spearman")
    return [
        (
            "steering sets the length, level by level",
            "median words " + ", ".join(f"{one:.0f}" for one in steered),
            f"{model}, report split, {result.summary['conditions']['uninstructed']['all']['n']}",
            "shown" if monotone and apart else "not monotone",
        ),
        (
            "the ends differ by a factor of two",
            f"factor {factor:.1f}",
            f"{model}, report split",
            "shown" if factor >= 2 and apart else "not reached",
        ),
        (
            "length moves with strength",
            f"rank correlation of strength and median words {rank:.2f}",
            f"{model}, layer {_LAYER}, add",
            "shown" if rank < -0.8 else "not shown",
        ),
        behaviour.claim(
            "steering meets the stated length",
            result,
            "uninstructed+steering",
            "uninstructed",
            "report split",
        ),
        behaviour.claim(
            "steering meets the number of sentences",
            sentences,
            "uninstructed+steering",
            "uninstructed",
            "report split",
        ),
    ]
