r"""Specificity: which instruction is it? Runs with a task against runs with other tasks.

AUROC against prompts *without* the instruction is near 1 from the first layers on, for every
instruction: any extra sentence is enough. Here each run is compared with runs of **other tasks on
the same base queries**. The queries lie in two halves, which share neither queries nor phrasings
(`steerlens.tasks.grids`). On each half the direction

.. math:: v = \bar h_\text{task} - \bar h_\text{others}, \qquad
          s(h) = \frac{v \cdot h - v \cdot m}{\|v\|^2}, \qquad
          m = \tfrac12 (\bar h_\text{task} + \bar h_\text{others})

is fitted, and the runs of the other half are scored along it. ``specific_auroc`` is the chance that
a held-out run of the task scores above one of another task, ``specific_d_prime`` their distance in
standard deviations. Intervals: `steerlens.stats.separability`. ``specific_p`` is the p-value of a
permutation null (`steerlens.attribution.specific_null`), adjusted for looking at all layers.

``own_share`` and ``off_mean_share`` say how much of the difference against *no* instruction is the
task's own (`steerlens.attribution.shared_part`).

Caveats. All is relative to the others compared with: beside a task that asks for the same in other
words nothing is specific, and `Specificity.notices` says so. Intervals are over base queries; the
few phrasings of a half are taken as they are, and only the null allows for them.

>>> import torch
>>> from steerlens.activations.grids import ResidualGrid
>>> runs = torch.randn(4, 24, 3, 32, generator=torch.Generator().manual_seed(0))
>>> runs[:, :, :, 0] += 4.0                                       # every task, at every layer
>>> runs[0, :, 1, 1] += 3.0                                       # this one, at layer 1
>>> bare = torch.zeros(24, 3, 32)
>>> halves = [0] * 12 + [1] * 12
>>> result = grid_specificity(ResidualGrid.from_tensors("abcd", runs, bare, halves))
>>> result.best_layer, result.table.specific_p.lt(0.05).tolist()
(1, [False, True, False])
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from transformer_lens.model_bridge import TransformerBridge

from steerlens.activations.grids import ResidualGrid, residual_grid
from steerlens.attribution.held_out import group_numbers
from steerlens.attribution.shared_part import corrected_cosines, own_shares
from steerlens.attribution.specific_null import crossed_scores, permuted_aurocs, permuted_labels
from steerlens.errors import SteerlensError
from steerlens.errors.arguments import arguments
from steerlens.errors.cancellation import check_cancelled
from steerlens.stats.separability import fit_noise_share, held_out_measures
from steerlens.stats.support import caveat
from steerlens.tasks import Task
from steerlens.tasks.grids import N_QUERIES, task_grid
from steerlens.tasks.task_files import load_task
from steerlens.views import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Specificity", "grid_specificity", "specificity"]

Array = np.ndarray
_TIE = 1e-9
_COLUMNS = ("specific_auroc", "specific_d_prime", "own_share", "off_mean_share")
# All lowercase and all capitals have 0.99 in SmolLM2-135M, most pairs of tasks 0.6 to 0.9.
SAME_TASK = 0.98


@dataclass(frozen=True, eq=False, repr=False)
class Specificity(Result):
    """Where a task is told from other tasks, and how much of its difference is its own.

    Attributes:
        table: One row per layer: ``layer``; ``specific_auroc, specific_d_prime, own_share,
            off_mean_share``, each with ``…_low`` and ``…_high``; ``specific_p``.
        neighbours: One row per other task, nearest first: ``other, cosine`` of the two differences
            against no instruction, freed of noise, the mean over the upper half of the layers.
        task: Id of the task.
        p_value: Chance that the best layer of a null reaches the best observed specific AUROC.
        threshold: Specific AUROC that a layer must exceed to be significant at 5 % among all.
        n_queries: Base queries, both halves together.
        metadata: Provenance of the activations; ``notices``, ``others``, ``seed``.
    """

    table: pd.DataFrame
    neighbours: pd.DataFrame
    task: str
    p_value: float
    threshold: float
    n_queries: int
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def best_layer(self) -> int:
        """The layer of the highest specific AUROC, ties broken by d′; `caveat` tells if any is."""
        return int(self.table["layer"].iloc[_best(self.table)])

    @property
    def caveat(self) -> str | None:
        """ "No layer's interval … is above 0.5"; ``None`` where one is."""
        return caveat("specific_auroc", self.table["specific_auroc_low"], "specific AUROC")

    @property
    def notices(self) -> tuple[str, ...]:
        """What may mislead, a sentence each."""
        return tuple(self.metadata.get("notices", ()))

    def first_layer(self, least: float = 0.9) -> int | None:
        """The first layer whose specific AUROC is at least `least`; None where none is."""
        reached = self.table.loc[self.table["specific_auroc"] >= least, "layer"]
        return None if reached.empty else int(reached.iloc[0])

    def __repr__(self) -> str:
        row = self.table.iloc[_best(self.table)]
        which = f"{self.caveat}; highest at layer" if self.caveat else "most specific at layer"
        return (
            f"Specificity({self.task}, {which} {self.best_layer}: AUROC {row.specific_auroc:.3f} "
            f"[{row.specific_auroc_low:.3f}, {row.specific_auroc_high:.3f}], own share "
            f"{row.own_share:.2f} [{row.own_share_low:.2f}, {row.own_share_high:.2f}], p "
            f"{self.p_value:.3g}; {len(self.neighbours)} other tasks, {self.n_queries} queries)"
        )

    def plot(self) -> "go.Figure":
        """Specific AUROC, d′ and both shares over layers; the most specific layer is marked."""
        from steerlens.views import evidence_curves

        best = None if self.caveat else self.best_layer
        shown = [name for name in _COLUMNS if self.table[name].notna().any()]
        return evidence_curves(self.table, shown, best)

    def _card(self) -> Mapping[str, Any]:
        beware = {"beware": "; ".join(self.notices)} if self.notices else None
        return {"facts": beware, **self._around_layer(self.best_layer)}


@arguments
def specificity(
    model: TransformerBridge,
    task: Task | str | os.PathLike[str],
    others: Iterable[Task | str | os.PathLike[str]] | None = None,
    n_queries: int = N_QUERIES,
    seed: int = 0,
    n_permutations: int = 499,
    batch_size: int | None = None,
    chat_format: str = "auto",
    remember: bool = True,
    show_progress: bool | None = None,
) -> Specificity:
    """Compare runs with a task and runs with other tasks on the same base queries, by layer.

    Args:
        model: A hooked model.
        task: The task, its id in the catalogue, or its file; of phrasings or pairs.
        others: The tasks beside it; the rest of the catalogue by default. Their residuals are kept
            on disk (`steerlens.activations.grids`).
        n_queries: Base queries of each of the two halves.
        seed: Of queries, phrasings, arguments and permutations.
        n_permutations: Of the null; the smallest p-value is 1 / (n_permutations + 1).
        batch_size: Prompts per forward pass; by default 16, or what memory allows.
        chat_format: ``"auto"``, ``"template"`` or ``"plain"``.
        remember: Keep residuals on disk, and use those kept.
        show_progress: Show a progress bar on standard error; by default only in a terminal.

    Raises:
        SteerlensError: No other task, or fewer than 19 permutations.
        PairsError: A task of choices, too few queries in a half, or no other task that can be asked
            on the same queries.
    """
    _check_permutations(n_permutations)
    grid = residual_grid(
        model,
        task_grid(load_task(task), others, n_queries, seed),
        batch_size=batch_size,
        chat_format=chat_format,
        remember=remember,
        show_progress=show_progress,
    )
    return grid_specificity(grid, seed, n_permutations)


def grid_specificity(grid: ResidualGrid, seed: int = 0, n_permutations: int = 499) -> Specificity:
    """`specificity` of the first task of a grid of residuals.

    Args:
        grid: Residuals of all tasks on the same base queries.
        seed: Of the permutations.
        n_permutations: Of the null.

    Raises:
        SteerlensError: Fewer than 19 permutations.
    """
    _check_permutations(n_permutations)
    halves, blocks = np.array(grid.halves), np.array(grid.blocks)
    groups = group_numbers(grid.groups)
    rows = []
    for layer, runs, bare in _layers(grid):
        shares = own_shares(runs - bare, halves, blocks, groups)
        measures = {**_measures(runs, halves, groups), **shares}
        row: dict[str, float] = {"layer": layer}
        for name in _COLUMNS:
            row |= dict(
                zip((name, f"{name}_low", f"{name}_high"), measures[name].tolist(), strict=True)
            )
        rows.append(row)
    labels = permuted_labels(len(grid.ids), blocks, n_permutations + 1, seed)
    aurocs = permuted_aurocs((runs for _, runs, _ in _layers(grid)), halves, labels)
    observed, maxima = aurocs[:, 0], aurocs[:, 1:].max(axis=0)
    reached = (maxima >= observed[:, None] - _TIE).sum(axis=1)
    table = pd.DataFrame(rows).assign(specific_p=(1 + reached) / (n_permutations + 1))
    n_allowed = int(0.05 * (n_permutations + 1) + _TIE) - 1
    neighbours = _neighbours(grid, blocks)
    return Specificity(
        table=table,
        neighbours=neighbours,
        task=grid.ids[0],
        p_value=float(table.specific_p.min()),
        threshold=float(np.sort(maxima)[-1 - n_allowed]),
        n_queries=len(halves),
        metadata={
            **grid.metadata,
            "others": list(grid.ids[1:]),
            "specificity_seed": seed,
            "n_permutations": n_permutations,
            "notices": [*grid.metadata.get("notices", ()), *_same_tasks(grid.ids[0], neighbours)],
        },
    )


def _check_permutations(n: int) -> None:
    if n < 19:
        raise SteerlensError(
            f"at least 19 permutations (for a p-value of 0.05) are needed; got {n}"
        )


def _layers(
    grid: ResidualGrid,
) -> Iterator[tuple[int, Float[Array, "task query d"], Float[Array, "query d"]]]:
    """Runs of every layer and those without instruction, from their common mean, in float64."""
    for place, layer in enumerate(grid.layers):
        check_cancelled()
        runs = grid.instructed[:, :, place].double().numpy()
        mean = runs.mean(axis=(0, 1))
        yield layer, runs - mean, grid.uninstructed[:, place].double().numpy() - mean


def _measures(
    runs: Float[Array, "task query d"], halves: Int[Array, "query"], groups: Int[Array, "query"]
) -> dict[str, Float[Array, "3"]]:
    """Specific AUROC and d′ with their ends."""
    n_others = len(runs) - 1
    truth = np.zeros((1, len(halves)), dtype=np.int64)
    scores = crossed_scores(runs, halves, truth)[0]
    # Every run of the task beside one run of each other task; the same comparisons.
    sides = np.stack([np.tile(scores[0], n_others), scores[1:].reshape(-1)])
    noise = fit_noise_share(runs[0] - runs[1:].mean(axis=0), groups, n_folds=2)
    measures = held_out_measures(sides, np.tile(groups, n_others), noise)
    return {f"specific_{name}": measures[name] for name in ("auroc", "d_prime")}


def _best(table: pd.DataFrame) -> int:
    tied = table["specific_auroc"] >= table["specific_auroc"].max() - _TIE
    return int(np.where(tied, table["specific_d_prime"].fillna(0.0), -np.inf).argmax())


def _neighbours(grid: ResidualGrid, blocks: Int[Array, "query"]) -> pd.DataFrame:
    # In the lower half tasks that differ have cosines near 1, too.
    upper = list(_layers(grid))[len(grid.layers) // 2 :]
    cosines = np.mean([corrected_cosines(runs - bare, blocks) for _, runs, bare in upper], axis=0)
    table = pd.DataFrame({"other": grid.ids[1:], "cosine": cosines})
    return table.sort_values("cosine", ascending=False, kind="stable").reset_index(drop=True)


def _same_tasks(task: str, neighbours: pd.DataFrame) -> Sequence[str]:
    return [
        f"{task!r} and {row.other!r} have nearly the same difference (cosine {row.cosine:.2f}): "
        "they ask for the same in other words, or the model hardly tells them apart; what they "
        "share counts as shared, unless others= leaves one out"
        for row in neighbours[neighbours["cosine"] >= SAME_TASK].itertuples()
    ]
