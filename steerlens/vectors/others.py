r"""Vectors beside other tasks: the other-task control, and directions freed of what tasks share.

The difference of means against *no* instruction mostly says that an instruction is there. Three
directions say which, all from runs on the same base queries (`steerlens.activations.grids`), those
of the `fit` split:

* `difference_from_others`: :math:`\bar h_\text{task} - \bar h_\text{others}`;
* `own_part`: the difference of means without its projection on the span of the other tasks'
  differences, the part whose size `steerlens.attribution.specificity` gives as own share;
* a difference of means of pairs against a neutral sentence
  (``contrast_pairs(…, contrast="neutral")``).

`other_task_vectors` gives the control: vectors of some other tasks, to be pushed as far as the
task's own (`norm_matched`).
"""

import os
import random
from collections.abc import Iterable
from dataclasses import replace

import torch
from transformer_lens.model_bridge import TransformerBridge

from steerlens.activations.cache import ResidualCache
from steerlens.activations.grids import ResidualGrid, residual_grid
from steerlens.errors import SteeringError
from steerlens.errors.arguments import arguments
from steerlens.tasks import Task
from steerlens.tasks.grids import N_QUERIES, task_grid
from steerlens.vectors.means import difference_of_means, from_directions
from steerlens.vectors.vector import SteeringVector

__all__ = [
    "difference_from_others",
    "norm_matched",
    "other_task_vectors",
    "others_of",
    "own_part",
]

N_OTHERS = 4


@arguments
def other_task_vectors(
    model: TransformerBridge,
    task: Task | str | os.PathLike[str],
    n: int = N_OTHERS,
    others: Iterable[Task | str | os.PathLike[str]] | None = None,
    n_queries: int = N_QUERIES,
    seed: int = 0,
    chat_format: str = "auto",
    show_progress: bool | None = None,
) -> tuple[SteeringVector, ...]:
    """Differences of means of other tasks, on the task's base queries of the `fit` split.

    Args:
        model: A hooked model.
        task: The task they are the control of.
        n: How many, drawn at random; all where there are fewer.
        others: What they are drawn from; the rest of the catalogue by default.
        n_queries: Base queries, as of `steerlens.attribution.specificity`, whose kept residuals
            are used.
        seed: Of the draw, and of queries and phrasings.
        chat_format: ``"auto"``, ``"template"`` or ``"plain"``.
        show_progress: Show a progress bar on standard error; by default only in a terminal.

    Raises:
        SteerlensError: As `steerlens.tasks.grids.task_grid`, or `n` below 1.
    """
    if n < 1:
        raise SteeringError(f"at least 1 other task is needed as a control; got n={n}")
    grid = residual_grid(
        model,
        task_grid(task, others, n_queries, seed),
        chat_format=chat_format,
        show_progress=show_progress,
    )
    return others_of(grid, n, seed)


def others_of(grid: ResidualGrid, n: int = N_OTHERS, seed: int = 0) -> tuple[SteeringVector, ...]:
    """Vectors of `n` tasks of a grid other than its first, drawn at random."""
    names = sorted(grid.ids[1:])
    chosen = random.Random(f"{seed}/others").sample(names, min(n, len(names)))
    return tuple(difference_of_means(grid.cache_of(name)) for name in chosen)


def norm_matched(vector: SteeringVector, like: SteeringVector) -> SteeringVector:
    """The vector's directions with another's gaps, so that both push as far.

    Each target lies one gap above the vector's own baseline.

    Raises:
        SteeringError: It lacks a layer of the other, or has another width.
    """
    if vector.d_model != like.d_model:
        raise SteeringError(f"{vector!r} and {like!r} differ in width; they cannot be compared")
    part = vector.restricted_to(like.layers)
    targets = part.baselines + like.gaps
    return replace(part, gaps=like.gaps, targets=targets)


def difference_from_others(grid: ResidualGrid) -> SteeringVector:
    """Difference of means of the first task's runs and all other tasks' runs, `fit` half.

    Its target is the mean projection of the task's runs, its baseline that of the others'.
    """
    fit = [i for i, half in enumerate(grid.halves) if half == 0]
    rest = grid.instructed[1:, fit].double().mean(0).float()
    cache = ResidualCache.from_tensors(
        grid.instructed[0, fit],
        rest,
        layers=grid.layers,
        groups=[grid.groups[i] for i in fit],
        metadata={**grid.metadata, "instruction": grid.ids[0], "others": list(grid.ids[1:])},
    )
    vector = difference_of_means(cache)
    return replace(vector, metadata={**vector.metadata, "estimator": "difference_from_others"})


def own_part(grid: ResidualGrid, cache: ResidualCache | None = None) -> SteeringVector:
    """The difference of means without its part in the span of the other tasks' differences.

    Args:
        grid: Runs of the task and the others.
        cache: Pairs of the task that its own difference, gaps and targets are taken from; by
            default its runs in the `fit` half of the grid.

    Raises:
        SteeringError: Nothing is left at some layer: there are as many others as dimensions, or
            they include the same task.
    """
    own = grid.cache_of(grid.ids[0]) if cache is None else cache
    columns = [grid.layers.index(layer) for layer in own.layers if layer in grid.layers]
    if len(columns) < len(own.layers):
        raise SteeringError(f"the others were read at layers {grid.layers}, but {own!r} has more")
    fit = [i for i, half in enumerate(grid.halves) if half == 0]
    others = grid.instructed[1:, fit][:, :, columns] - grid.uninstructed[fit][:, columns]
    spans = others.double().mean(1).transpose(0, 1)
    difference = own.instructed.double().mean(0) - own.uninstructed.double().mean(0)
    weights = torch.linalg.pinv(spans.mT, rtol=1e-6) @ difference[..., None]
    rest = difference - (spans.mT @ weights)[..., 0]
    if bool((rest.norm(dim=-1) <= 1e-5 * difference.norm(dim=-1)).any()):
        raise SteeringError(
            f"nothing of {grid.ids[0]!r} is left beside the {len(spans[0])} other tasks: they span "
            "its difference of means"
        )
    return from_directions(own, rest, "own_part", others=list(grid.ids[1:]))
