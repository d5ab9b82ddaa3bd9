"""Which tasks have a direction of their own: `specificity` of several tasks, side by side.

Each task is compared with the same others (itself left out), whose residuals are read once, so the
whole catalogue costs one pass over its prompts and some seconds per task.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from steerlens.attribution.specificity import Specificity, specificity
from steerlens.errors.arguments import arguments
from steerlens.tasks import Task, catalogue
from steerlens.tasks.grids import N_QUERIES
from steerlens.tasks.task_files import load_task
from steerlens.views import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["TaskSpecificities", "specificities"]

_READ_AT = 0.9


@dataclass(frozen=True, eq=False, repr=False)
class TaskSpecificities(Result):
    """Specificity of several tasks.

    Attributes:
        table: One row per task: ``task``; ``best_layer`` with its ``specific_auroc``,
            ``specific_d_prime``, ``own_share`` and ``off_mean_share``, each with ``…_low`` and
            ``…_high``; ``first_layer`` whose specific AUROC is at least 0.9 (missing where none
            is); ``p_value``; ``nearest`` other task and its ``cosine``.
        layers: One row per task and layer, the columns of `Specificity.table` after ``task``.
        metadata: Of the first task.
    """

    table: pd.DataFrame
    layers: pd.DataFrame
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, results: Iterable[Specificity]) -> "TaskSpecificities":
        """Side by side what was computed one by one."""
        results = list(results)
        rows = []
        for result in results:
            best = result.table.set_index("layer").loc[result.best_layer]
            nearest = result.neighbours.iloc[0]
            rows.append(
                {
                    "task": result.task,
                    "best_layer": result.best_layer,
                    **best.drop("specific_p").to_dict(),
                    "first_layer": result.first_layer(_READ_AT),
                    "p_value": result.p_value,
                    "nearest": nearest.other,
                    "cosine": nearest.cosine,
                }
            )
        layers = [result.table.assign(task=result.task) for result in results]
        table = pd.DataFrame(rows).astype({"first_layer": "Int64"})
        columns = ["task", *results[0].table.columns]
        return cls(table, pd.concat(layers, ignore_index=True)[columns], dict(results[0].metadata))

    def __repr__(self) -> str:
        n_read = int(self.table["first_layer"].notna().sum())
        most = self.table.iloc[int(np.nanargmax(self.table["own_share"]))]
        return (
            f"TaskSpecificities({len(self.table)} tasks, {n_read} told from others with AUROC "
            f"{_READ_AT} at some layer; largest own share {most.own_share:.2f}: {most.task})"
        )

    def plot(self) -> "go.Figure":
        """Tasks by layers, coloured by specific AUROC; the most specific layer is marked."""
        from steerlens.views import instruction_layer_heatmap

        marked = dict(zip(self.table["task"], self.table["best_layer"].astype(int), strict=True))
        rows = self.layers.rename(columns={"task": "instruction"})
        return instruction_layer_heatmap(
            rows, "specific_auroc", marked=marked, marked_label="most specific layer"
        )


@arguments
def specificities(
    model: TransformerBridge,
    tasks: Iterable[Task | str | os.PathLike[str]] | None = None,
    others: Iterable[Task | str | os.PathLike[str]] | None = None,
    n_queries: int = N_QUERIES,
    seed: int = 0,
    n_permutations: int = 499,
    batch_size: int | None = None,
    chat_format: str = "auto",
    show_progress: bool | None = None,
) -> TaskSpecificities:
    """`specificity` of each of several tasks.

    Args:
        model: A hooked model.
        tasks: The tasks; the catalogue by default.
        others: The tasks that each is compared with; the catalogue by default.
        n_queries: Base queries of each of the two halves.
        seed: Of queries, phrasings, arguments and permutations.
        n_permutations: Of the null.
        batch_size: Prompts per forward pass.
        chat_format: ``"auto"``, ``"template"`` or ``"plain"``.
        show_progress: Show progress bars on standard error; by default only in a terminal.

    Raises:
        SteerlensError: As `specificity`.
    """
    chosen = tuple(catalogue.values()) if tasks is None else tuple(map(load_task, tasks))
    beside = None if others is None else tuple(map(load_task, others))
    return TaskSpecificities.of(
        specificity(
            model,
            task,
            beside,
            n_queries=n_queries,
            seed=seed,
            n_permutations=n_permutations,
            batch_size=batch_size,
            chat_format=chat_format,
            show_progress=show_progress,
        )
        for task in chosen
    )
