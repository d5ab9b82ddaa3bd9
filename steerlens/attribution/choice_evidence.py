r"""Where choices can be steered: fitted on `fit`, the layer chosen on `select`, shown on `report`.

`choice_curve` measures any layer on one split. Of fifteen layers the steepest looks steeper than it
is on the items it was picked by, so `choice_evidence` picks it on the items of ``select`` and
states its effect on those of ``report``. A task counts as **steerable** if there, at that layer,
the 95 % interval of the slope lies above 0, and that of its difference from the placebo's slope as
well.

**Caveat.** The interval is over items; another placebo would have another slope.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from steerlens.activations.cache import cache_residuals
from steerlens.activations.positions import Position
from steerlens.attribution.choices import STRENGTHS, ChoiceCurve, choice_curve
from steerlens.errors.arguments import arguments
from steerlens.tasks import Task
from steerlens.tasks.drawing import contrast_pairs
from steerlens.tasks.task_files import load_task
from steerlens.vectors import SteeringVector, difference_of_means, random_direction
from steerlens.views.result import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["ChoiceEvidence", "choice_evidence", "choices_table", "measure_choices"]

_EFFECTS = ("slope", "above_placebo", "wrong_way", "placebo_slope")


@dataclass(frozen=True, eq=False, repr=False)
class ChoiceEvidence(Result):
    """How far steering moves the choices of a task, and at which layer.

    Attributes:
        task: Its id.
        curve: Measured on the ``report`` items.
        select: Measured on the ``select`` items; ``None`` where there are too few.
        vector: Difference of means of the ``fit`` items.
    """

    task: str
    curve: ChoiceCurve
    select: ChoiceCurve | None
    vector: SteeringVector

    @property
    def table(self) -> pd.DataFrame:
        """`ChoiceCurve.slopes` of the ``report`` items, with ``select_slope`` beside them."""
        slopes = self.curve.slopes
        if self.select is None:
            return slopes
        return slopes.assign(select_slope=self.select.slopes["slope"].to_numpy())

    @property
    def best_layer(self) -> int:
        """The layer with the largest slope on the ``select`` items, else on those of ``report``."""
        return (self.select or self.curve).best_layer

    @property
    def best_layer_rule(self) -> str:
        """How `best_layer` was chosen."""
        split = "report" if self.select is None else "select"
        return f"largest mean slope on the {split} items"

    @property
    def is_steerable(self) -> bool:
        """Whether the slope at `best_layer` is above 0 and above the placebo's, by its interval."""
        row = self._best_row()
        return bool(row["slope_low"] > 0 and row["above_placebo_low"] > 0)

    def to_json(self) -> dict[str, Any]:
        """The evidence as plain data; see `choices_table`."""
        n_select = None if self.select is None else self.select.n_items
        return {
            "task": self.task,
            "n_items": self.curve.n_items,
            "n_select": n_select,
            "best_layer": self.best_layer,
            "best_layer_rule": self.best_layer_rule,
            "steerable": self.is_steerable,
            "layers": self.table.to_dict("records"),
            "curve": self.curve.table.to_dict("records"),
            "metadata": dict(self.curve.metadata),
        }

    def plot(self) -> "go.Figure":
        """Slopes over layers beside the placebo's, and the change of log odds over strengths."""
        from steerlens.views.choices import choice_curves

        return choice_curves(self.table, self.curve.table, self.best_layer)

    def __repr__(self) -> str:
        row = self._best_row()
        verdict = "steerable" if self.is_steerable else "not shown to be steerable"
        return (
            f"ChoiceEvidence({self.task}: {verdict}; layer {self.best_layer}, "
            f"{row['slope']:+.2f} [{row['slope_low']:+.2f}, {row['slope_high']:+.2f}] nats per "
            f"unit of strength, placebo {row['placebo_slope']:+.2f}, {row['wrong_way']:.0%} of "
            f"{self.curve.n_items} items move the wrong way)"
        )

    def _best_row(self) -> Any:
        return self.curve.slopes.set_index("layer").loc[self.best_layer]

    def _card(self) -> Mapping[str, Any]:
        layers = self.table["layer"].tolist()
        return {"table": self.table, "around": layers.index(self.best_layer)}


@arguments
def choice_evidence(
    model: TransformerBridge,
    task: Task | str | os.PathLike[str],
    n: int | None = None,
    layers: Sequence[int] | None = None,
    strengths: Sequence[float | int] = STRENGTHS,
    operation: str = "add",
    scope: str = "answer",
    position: Position = "answer",
    seed: int = 0,
    batch_size: int | None = None,
    chat_format: str = "auto",
    show_progress: bool | None = None,
) -> ChoiceEvidence:
    """Fit the difference of means of a task of choices, and measure it beside a placebo.

    Args:
        model: A hooked model.
        task: A task of choices (`Task.from_choices`), or its file.
        n: Items to fit on; by default 64, or all that there are if they are fewer.
        layers: Layers to steer at, one at a time; every second by default.
        strengths: Multiples of the vector; 0 is always measured.
        operation: See `steerlens.steering.interventions`.
        scope: See `steerlens.attribution.choices`.
        position: Where the two sides of a fit item are read.
        seed: Which items are drawn, and the placebo's direction.
        batch_size: Rows per forward pass; what memory allows by default.
        chat_format: See `steerlens.models.loading`.
        show_progress: Show progress bars on standard error; by default only in a terminal.

    Raises:
        PairsError: Too few items to fit or to measure on, or the tokens of one answer begin the
            other's.
        SteerlensError: The task is not one of choices; or as `choice_curve`.
    """
    task = load_task(task)
    task.items("report")  # refuses other tasks
    pairs = contrast_pairs(task, n=n, seed=seed, split="fit")
    layers = range(0, model.cfg.n_layers, 2) if layers is None else layers
    cache = cache_residuals(
        model, pairs, position=position, batch_size=batch_size, chat_format=chat_format,
        show_progress=show_progress,
    )  # fmt: skip
    vector, placebo = difference_of_means(cache), random_direction(cache, seed=seed)
    return measure_choices(
        model, task, vector, placebo, layers, strengths, operation, scope, batch_size, chat_format,
        show_progress,
    )  # fmt: skip


def measure_choices(
    model: TransformerBridge,
    task: Task,
    vector: SteeringVector,
    placebo: SteeringVector,
    layers: Sequence[int],
    strengths: Sequence[float | int] = STRENGTHS,
    operation: str = "add",
    scope: str = "answer",
    batch_size: int | None = None,
    chat_format: str = "auto",
    show_progress: bool | None = None,
) -> ChoiceEvidence:
    """`choice_evidence` of a vector that is fitted already."""
    curves = {
        split: choice_curve(
            model, task, vector, layers, strengths, operation, scope, split, placebo, batch_size,
            chat_format, show_progress,
        )
        for split in ("select", "report")
        if split == "report" or len(task.items(split)) > 1
    }  # fmt: skip
    return ChoiceEvidence(task.id, curves["report"], curves.get("select"), vector)


def choices_table(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per task: whether it is steerable, at which layer and by how much.

    Args:
        records: `ChoiceEvidence.to_json` of each.

    Returns:
        ``task, n_items, steerable, layer``; ``slope, above_placebo, wrong_way`` and
        ``placebo_slope`` there, each with ``_low`` and ``_high`` (nats per unit of strength, and a
        share); ``neither``, the share of probability on neither answer without steering, and
        ``neither_steered``, its largest at that layer.
    """
    rows = []
    for record in records:
        layer = record["best_layer"]
        row = _row_at(record["layers"], layer)
        neither = {r["strength"]: r["neither"] for r in record["curve"] if r["layer"] == layer}
        rows.append(
            {
                "task": record["task"],
                "n_items": record["n_items"],
                "steerable": record["steerable"],
                "layer": layer,
                **{f"{name}{end}": row[f"{name}{end}"]
                   for name in _EFFECTS for end in ("", "_low", "_high")},
                "neither": neither[0.0],
                "neither_steered": max(neither.values()),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def _row_at(rows: Sequence[Mapping[str, Any]], layer: int) -> Mapping[str, Any]:
    return next(row for row in rows if row["layer"] == layer)
