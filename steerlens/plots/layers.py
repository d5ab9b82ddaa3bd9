"""Curves over layers: where an instruction can be read, and where steering on it moves the model.

`layer_curves` shows separability on held-out pairs with its uncertainty: AUROC and d′ with their
95 % intervals, how stable the direction is (cosine between directions from two halves of the
pairs), and how often resampling the pairs would have chosen each layer. `recovery_curve` shows the
causal side: the share of KL(instructed‖uninstructed) at the first response token that steering
removes, beside a placebo. The two often disagree, which is why both are drawn.

Caveat: a high, flat AUROC says that the instruction is easy to read at many layers, not that
steering works at any of them.

>>> rows = [{"layer": 0, "recovery": 0.1, "low": 0.0, "high": 0.2,
...          "placebo": 0.0, "placebo_low": -0.1, "placebo_high": 0.1}]
>>> [trace.name for trace in recovery_curve(rows).data]
['steering', 'placebo']
"""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from steerlens.plots.numbers import compact, show, show_interval
from steerlens.plots.tables import Rows, layer_table
from steerlens.plots.theme import BLUE, GREEN, GREY, VERMILLION, themed, translucent

__all__ = ["LAYER_COLUMNS", "RECOVERY_COLUMNS", "layer_curves", "recovery_curve"]

LAYER_COLUMNS = (
    "auroc", "auroc_low", "auroc_high",
    "d_prime", "d_prime_low", "d_prime_high",
    "split_half_cosine", "split_half_cosine_low", "split_half_cosine_high",
    "selection_frequency",
)  # fmt: skip
RECOVERY_COLUMNS = ("recovery", "low", "high", "placebo", "placebo_low", "placebo_high")

# Shown with a point of the panel on hover, where the table has them.
_ALSO = {"auroc": ("accuracy", "relative_gap")}
# (column, panel title, row, column of the grid, value of "nothing there")
_PANELS = (
    ("auroc", "AUROC", 1, 1, 0.5),
    ("d_prime", "d′", 1, 2, 0.0),
    ("split_half_cosine", "split-half cosine", 2, 1, 0.0),
)


def layer_curves(
    table: Rows, best_layer: int | None = None, *, title: str | None = None
) -> go.Figure:
    """Four panels over layers: AUROC, d′, split-half cosine (95 % bands), selection frequency.

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
        rows=2,
        cols=2,
        shared_xaxes=True,
        vertical_spacing=0.16,
        horizontal_spacing=0.1,
        subplot_titles=[*(name for _, name, *_ in _PANELS), "selection frequency"],
    )
    for column, name, row, col, nothing in _PANELS:
        for trace in _banded(rows, column, f"{column}_low", f"{column}_high", name, BLUE):
            figure.add_trace(trace, row=row, col=col)
        _reference_line(figure, nothing, row, col)
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
        _mark_layer(figure, best_layer)
    figure.update_annotations(font_size=12)
    return themed(figure, height=440, title=title, showlegend=False, bargap=0.15)


def recovery_curve(
    rows: Rows, steered_layer: int | None = None, *, title: str | None = None
) -> go.Figure:
    """First-token causal recovery over layers, beside its placebo, both with 95 % bands.

    1 means that steering moved the next-token distribution all the way to the instructed one,
    0 that it did nothing, below 0 that it moved away.

    Args:
        rows: one row a measured layer with `layer` and `RECOVERY_COLUMNS`; may be empty.
        steered_layer: marked by a vertical line.
        title: above the curve, if given.

    Raises:
        SteerlensError: a column is missing, or a layer is malformed or comes twice.
    """
    table = layer_table(rows, RECOVERY_COLUMNS, "recovery table")
    figure = go.Figure()
    for trace in _banded(table, "recovery", "low", "high", "steering", VERMILLION):
        figure.add_trace(trace)
    placebo = ("placebo", "placebo_low", "placebo_high")
    for trace in _banded(table, *placebo, name="placebo", colour=GREY, dash="dot"):
        figure.add_trace(trace)
    if table.empty:
        figure.add_annotation(
            text="not measured", showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper"
        )
    else:
        _reference_line(figure, 0.0)
        if steered_layer is not None:
            _mark_layer(figure, steered_layer)
    figure.update_xaxes(title_text="layer")
    figure.update_yaxes(title_text="share of KL removed")
    return themed(figure, height=440, title=title)


def _banded(
    table: pd.DataFrame,
    value: str,
    low: str,
    high: str,
    name: str,
    colour: str,
    dash: str = "solid",
) -> list[go.Scatter]:
    """The band between `low` and `high` (where both are known) and the line of `value` over it."""
    known = table[table[low].notna() & table[high].notna()]
    layers = known["layer"].tolist()
    also = [column for column in _ALSO.get(value, ()) if column in table]
    labels = ["", *(f"<br>{column.replace('_', ' ')} " for column in also)]
    said = "".join(f"{label}%{{customdata[{index}]}}" for index, label in enumerate(labels))
    line = go.Scatter(
        x=table["layer"].tolist(),
        y=compact(table[value]),
        customdata=_hover(table, value, low, high, also),
        name=name,
        mode="lines+markers",
        line={"color": colour, "width": 2, "dash": dash},
        marker={"size": 4, "color": colour},
        hovertemplate=f"layer %{{x}}: {name} {said}<extra></extra>",
    )
    if len(known) == 1:
        # A band over one layer has no area, and its uncertainty would vanish from the picture.
        above = compact(table[high] - table[value])
        below = compact(table[value] - table[low])
        line.error_y = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
    if len(known) < 2:
        return [line]
    band = go.Scatter(
        x=layers + layers[::-1],
        y=compact([*known[high], *known[low].iloc[::-1]]),
        name=f"{name}, 95 % interval",
        mode="lines",
        line={"width": 0, "color": colour},
        fill="toself",
        fillcolor=translucent(colour, 0.2),
        hoverinfo="skip",
        showlegend=False,
    )
    return [band, line]


def _hover(
    table: pd.DataFrame, value: str, low: str, high: str, also: Sequence[str]
) -> list[list[str]]:
    """What a point says: its value with the interval, and what else is known at the layer."""
    return [
        [show_interval(row[value], row[low], row[high]), *(show(row[name]) for name in also)]
        for row in table.to_dict("records")
    ]


def _reference_line(
    figure: go.Figure, at: float, row: int | str = "all", col: int | str = "all"
) -> None:
    """The level that means "nothing there": chance, zero."""
    line = {"color": GREY, "width": 1, "dash": "dash"}
    figure.add_hline(y=at, line=line, row=row, col=col)


def _mark_layer(figure: go.Figure, layer: int) -> None:
    """A vertical line in every panel."""
    line = {"color": VERMILLION, "width": 1.5, "dash": "dot"}
    figure.add_vline(x=layer, line=line, layer="below")
