"""Drawing contrast pairs for a task.

>>> pairs = contrast_pairs("change_case:english_lowercase", n=4, seed=0)
>>> len(pairs), pairs[0].instructed.startswith(pairs[0].uninstructed)
(4, True)
"""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from steerlens.errors import PairsError
from steerlens.errors.arguments import whole_number
from steerlens.tasks import Task
from steerlens.tasks.contrasts import contrasted
from steerlens.tasks.pairs import ContrastSet
from steerlens.tasks.task_files import load_task

__all__ = ["N_PAIRS", "contrast_pairs"]

N_PAIRS = 64


def contrast_pairs(
    task: Task | str | os.PathLike[str],
    n: int | None = None,
    seed: int = 0,
    split: str = "fit",
    kwargs: Mapping[str, Any] | None = None,
    contrast: str = "none",
    others: Iterable[Task | str | os.PathLike[str]] | None = None,
    count_tokens: Callable[[str], int] | None = None,
) -> ContrastSet:
    """Draw `n` contrast pairs for a task.

    Args:
        task: The task, its id in the catalogue, or its file.
        n: Number of pairs, at least 2; by default 64, or all that there are if they are fewer.
        seed: Decides queries, phrasings and arguments; any integer.
        split: "fit", "select" or "report", of both queries and phrasings.
        kwargs: Arguments that are the same in every pair ("the word *sea*"); the others are drawn.
        contrast: What the uninstructed side carries: ``"none"``, ``"neutral"`` (a sentence that
            asks for nothing, as long as the instruction) or ``"others"`` (another task's
            instruction, each in turn); see `steerlens.tasks.contrasts`.
        others: The tasks of contrast ``"others"``; the rest of the catalogue by default.
        count_tokens: Counts the tokens of a text, for contrast ``"neutral"``: for example
            `steerlens.models.loading.token_counter`; words and signs are counted by default.

    Raises:
        UnknownNameError: The task, the split or the contrast does not exist.
        PairsError: n is below 2 or above what the split holds; the maximum is named.
    """
    seed = whole_number("seed", seed, error=PairsError)
    task = load_task(task)
    if n is None:
        n = max(2, min(N_PAIRS, task.n_pairs(split)))
    pairs = task.pairs(whole_number("n", n, error=PairsError), seed, split, kwargs)
    return contrasted(pairs, task, contrast, others, seed, count_tokens)
