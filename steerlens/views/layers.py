"""Curves over layers: where an instruction can be read, and where steering on it moves the model.

`layer_curves` shows separability on held-out pairs with its uncertainty: AUROC and d′ with their
95 % intervals, how stable the direction is (cosine between directions from two halves of the
pairs), and how often resampling the pairs would have chosen each layer. `recovery_curve` shows the
causal side: the share of KL(instructed‖uninstructed) at the first response token that steering
removes, beside a placebo. The two often disagree, which is why both are drawn. `evidence_curves`
has a panel for each kind of evidence in a table, whatever the kinds are.

Caveat: a high, flat AUROC says that the instruction is easy to read at many layers, not that
steering works at any of them.

>>> rows = [{"layer": 0, "recovery": 0.1, "low": 0.0, "high": 0.2,
...          "placebo": 0.0, "placebo_low": -0.1, "placebo_high": 0.1}]
>>> [trace.name for trace in recovery_curve(rows).data]
['steering', 'placebo']
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from steerlens.errors import SteerlensError
from steerlens.views.bands import banded, mark_across, not_measured, reference_line
from steerlens.views.numbers import compact
from steerlens.views.tables import Rows, layer_table, table_of
from steerlens.views.theme import BLUE, GREEN, GREY, VERMILLION, Picture, plain_text, themed

__all__ = [
    "LAYER_COLUMNS",
    "RECOVERY_COLUMNS",
    "evidence_curves",
    "layer_curves",
    "recovery_curve",
]

LAYER_COLUMNS = (
    "auroc", "auroc_low", "auroc_high",
    "d_prime", "d_prime_low", "d_prime_high",
    "split_half_cosine", "split_half_cosine_low", "split_half_cosine_high",
    "selection_frequency",
)  # fmt: skip
RECOVERY_COLUMNS = ("recovery", "low", "high", "placebo", "placebo_low", "placebo_high")

# Shown with a point of the panel on hover, where the table has them.
_ALSO = {"auroc": ("accuracy", "relative_gap")}
_NAMES = {"auroc": "AUROC", "d_prime": "d′", "d_prime_held_out": "d′ of held-out directions"}
_INTERVAL = "95 % interval"
# What a band is where it is another thing.
_BANDS = {"split_half_cosine": "middle 95 % of splits"}
# (column, panel title, row, column of the grid, value of "nothing there")
_PANELS = (
    ("auroc", "AUROC", 1, 1, 0.5),
    ("d_prime", "d′", 1, 2, 0.0),
    ("split_half_cosine", "split-half cosine", 2, 1, 0.0),
)


def layer_curves(
    table: Rows, best_layer: int | None = None, *, title: str | None = None
) -> go.Figure:
    """Four panels over layers: AUROC, d′, split-half cosine, selection frequency.

    The bands of AUROC and d′ are 95 % intervals, that of the split-half cosine is the middle 95 %
    of the splits.

    Args:
        table: one row a layer with `layer` and `LAYER_COLUMNS`; missing values leave gaps.
            `accuracy` and `relative_gap`, if there, show on hover.
        best_layer: marked by a vertical line in every panel.
        title: above the panels, if given.

    Raises:
        SteerlensError: a column is missing, or a layer is malformed or comes twice.
    """
    known = table.columns if isinstance(table, pd.DataFrame) else set().union(*table)
    also = [name for names in _ALSO.values() for name in names if name in known]
    rows = layer_table(table, [*LAYER_COLUMNS, *also], "layer table")
    figure = make_subplots(
        figure=Picture(),
        rows=2,
        cols=2,
        shared_xaxes=True,
        vertical_spacing=0.16,
        horizontal_spacing=0.1,
        subplot_titles=[*(name for _, name, *_ in _PANELS), "selection frequency"],
    )
    for column, name, row, col, nothing in _PANELS:
        said = [extra for extra in _ALSO.get(column, ()) if extra in rows]
        ends = (f"{column}_low", f"{column}_high")
        options: dict[str, Any] = {"also": said, "band_name": _BANDS.get(column, _INTERVAL)}
        for trace in banded(rows, "layer", column, *ends, name, BLUE, **options):
            figure.add_trace(trace, row=row, col=col)
        reference_line(figure, nothing, row, col)
    frequency = go.Bar(
        x=rows["layer"].tolist(),
        y=compact(rows["selection_frequency"]),
        marker_color=GREEN,
        hovertemplate="layer %{x}: %{y:.0%}<extra></extra>",
    )
    figure.add_trace(frequency, row=2, col=2)
    figure.update_yaxes(tickformat=".0%", rangemode="tozero", row=2, col=2)
    figure.update_xaxes(title_text="layer", row=2)
    if best_layer is not None:
        mark_across(figure, float(best_layer))
    figure.update_annotations(font_size=12)
    return themed(figure, height=440, title=title, showlegend=False, bargap=0.15)


def recovery_curve(
    rows: Rows, steered_layer: int | None = None, *, title: str | None = None
) -> go.Figure:
    """First-token causal recovery over layers, beside its placebo, both with 95 % bands.

    1 means that steering moved the next-token distribution all the way to the instructed one,
    0 that it did nothing, below 0 that it moved away.

    Args:
        rows: one row a measured layer with `layer` and `RECOVERY_COLUMNS`; the placebo's may be
            left out together; may be empty.
        steered_layer: marked by a vertical line.
        title: above the curve, if given.

    Raises:
        SteerlensError: a column is missing, or a layer is malformed or comes twice.
    """
    has_placebo = "placebo" in table_of(rows, ["layer", "recovery"], "recovery table")
    columns = RECOVERY_COLUMNS if has_placebo or not len(rows) else RECOVERY_COLUMNS[:3]
    table = layer_table(rows, columns, "recovery table")
    figure = Picture()
    for trace in banded(table, "layer", "recovery", "low", "high", "steering", VERMILLION):
        figure.add_trace(trace)
    if "placebo" in table:
        ends = ("placebo_low", "placebo_high")
        options: dict[str, Any] = {"dash": "dot", "symbol": "diamond"}
        for trace in banded(table, "layer", "placebo", *ends, "placebo", GREY, **options):
            figure.add_trace(trace)
    if table.empty:
        not_measured(figure)
    else:
        reference_line(figure, 0.0)
        if steered_layer is not None:
            mark_across(figure, float(steered_layer))
    figure.update_xaxes(title_text="layer")
    figure.update_yaxes(title_text="share of KL removed")
    return themed(figure, height=440, title=title)


def evidence_curves(
    table: Rows,
    kinds: Sequence[str],
    best_layer: int | None = None,
    *,
    title: str | None = None,
) -> go.Figure:
    """A panel over layers for each kind of evidence, with its 95 % band where there is one.

    Args:
        table: one row a layer with `layer` and a column for each kind; bands come from the columns
            `…_low` and `…_high` where the table has them.
        kinds: the columns to draw, in order.
        best_layer: marked by a vertical line in every panel.
        title: above the panels, if given.

    Raises:
        SteerlensError: no kind, a column is missing, or a layer is malformed or comes twice.
    """
    if not kinds:
        raise SteerlensError("evidence curves: name at least one column to draw")
    needed = table_of(table, ["layer", *kinds], "evidence table")
    ends = [f"{kind}{end}" for kind in kinds for end in ("_low", "_high")]
    rows = layer_table(needed, [*kinds, *(end for end in ends if end in needed)], "evidence table")
    n_columns = min(len(kinds), 2)
    n_rows = -(-len(kinds) // n_columns)
    names = [_NAMES.get(kind, kind.replace("_", " ")) for kind in kinds]
    figure = make_subplots(
        figure=Picture(),
        rows=n_rows,
        cols=n_columns,
        shared_xaxes=True,
        vertical_spacing=0.32 / max(n_rows, 2),
        horizontal_spacing=0.1,
        subplot_titles=[plain_text(name) for name in names],
    )
    for place, (kind, name) in enumerate(zip(kinds, names, strict=True)):
        row, col = place // n_columns + 1, place % n_columns + 1
        band = (f"{kind}_low", f"{kind}_high")
        said = _BANDS.get(kind, _INTERVAL)
        for trace in banded(rows, "layer", kind, *band, plain_text(name), BLUE, band_name=said):
            figure.add_trace(trace, row=row, col=col)
        if place + n_columns >= len(kinds):  # the lowest panel of its column
            figure.update_xaxes(title_text="layer", showticklabels=True, row=row, col=col)
    if best_layer is not None:
        mark_across(figure, float(best_layer))
    figure.update_annotations(font_size=12)
    return themed(figure, height=110 + 180 * n_rows, title=title, showlegend=False)
