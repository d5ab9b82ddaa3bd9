"""Steering of choices over layers: slopes and log odds over strengths, beside their placebo.

`choice_slopes` shows the mean slope of the log odds alone. `choice_curves` adds what a mean slope
hides: the change at each strength, the share of items that move the wrong way, and the share of
probability on neither answer.
"""

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from steerlens.views.bands import banded, mark_across, reference_line
from steerlens.views.picture import Picture, themed
from steerlens.views.tables import Rows, layer_table, table_of
from steerlens.views.theme import BLUE, GREY, SERIES, VERMILLION

__all__ = ["choice_curves", "choice_slopes"]

_SLOPES = ("slope", "slope_low", "slope_high")
_WRONG_WAY = ("wrong_way", "wrong_way_low", "wrong_way_high")
_UNIT = "nats per unit of strength"
_PANELS = {
    "slope of the log odds": _UNIT,
    "change of log odds": "nats",
    "items that move the wrong way": "share of items",
    "probability of neither answer": "share",
}


def choice_slopes(rows: Rows, *, title: str | None = None) -> go.Figure:
    """Change of the log odds of the matching answer per unit of strength, over layers.

    Args:
        rows: One row per layer with `layer`, `slope`, `slope_low`, `slope_high` and `wrong_way`,
            and perhaps the same columns with `placebo_`.
        title: Above the curves.

    Raises:
        SteerlensError: A column is missing, or a layer is malformed or comes twice.
    """
    figure = Picture(_beside_placebo(rows, _SLOPES, also=("wrong_way",)))
    reference_line(figure, 0.0)
    figure.update_xaxes(title_text="layer")
    figure.update_yaxes(title_text=f"change of log odds<br>{_UNIT}")
    return themed(figure, height=400, title=title)


def choice_curves(
    slopes: Rows, curve: Rows, best_layer: int | None = None, *, title: str | None = None
) -> go.Figure:
    """Four panels over layers: slope, change at each strength, wrong way, neither answer.

    Args:
        slopes: As for `choice_slopes`, with `wrong_way_low` and `wrong_way_high`.
        curve: One row per layer and strength with `layer`, `strength`, `change`, `neither`, and
            perhaps `placebo_change`.
        best_layer: Marked by a vertical line in every panel.
        title: Above the panels.

    Raises:
        SteerlensError: A column is missing, or a layer is malformed or comes twice.
    """
    figure = make_subplots(
        figure=Picture(), rows=2, cols=2, shared_xaxes=True, vertical_spacing=0.16,
        horizontal_spacing=0.12, subplot_titles=list(_PANELS),
    ).update_annotations(font_size=12)  # fmt: skip
    for place, unit in enumerate(_PANELS.values()):
        figure.update_yaxes(title_text=unit, row=place // 2 + 1, col=place % 2 + 1)
    figure.add_traces(_beside_placebo(slopes, _SLOPES), rows=1, cols=1)
    wrong_way = _beside_placebo(slopes, _WRONG_WAY)
    figure.add_traces([trace.update(showlegend=False) for trace in wrong_way], rows=2, cols=1)
    table = table_of(curve, ["layer", "strength", "change", "neither"], "choice curve")
    for number, (strength, group) in enumerate(table.groupby("strength")):
        columns = [c for c in ("change", "neither", "placebo_change") if c in group]
        rows = layer_table(group, columns, f"choice curve at strength {strength:g}")
        name, colour = f"strength {strength:+g}", SERIES[number % len(SERIES)]
        if strength == 0:
            name, colour = "unsteered", BLUE
        else:
            figure.add_traces(banded(rows, "layer", "change", name, colour), rows=1, cols=2)
        if strength and "placebo_change" in rows:
            lines = banded(
                rows, "layer", "placebo_change", f"placebo, {name}", GREY, dash="dot",
                symbol="diamond", showlegend=False,
            )  # fmt: skip
            figure.add_traces(lines, rows=1, cols=2)
        lines = banded(rows, "layer", "neither", name, colour, showlegend=strength == 0)
        figure.add_traces(lines, rows=2, cols=2)
    reference_line(figure, 0.0, row=1, col=1)
    reference_line(figure, 0.0, row=1, col=2)
    reference_line(figure, 0.5, row=2, col=1)
    figure.update_yaxes(tickformat=".0%", rangemode="tozero", row=2)
    figure.update_xaxes(title_text="layer", row=2)
    mark_across(figure, best_layer)
    return themed(figure, height=520, title=title)


def _beside_placebo(
    rows: Rows, columns: tuple[str, ...], also: tuple[str, ...] = ()
) -> list[go.Scatter]:
    """The line of the first column with its band, and the placebo's where there is one."""
    known = table_of(rows, ["layer", *columns, *also], "slopes")
    placebo = [f"placebo_{column}" for column in columns]
    has_placebo = placebo[0] in known
    table = layer_table(known, [*columns, *also, *(placebo if has_placebo else ())], "slopes")
    lines = banded(table, "layer", columns[0], "steering", VERMILLION, also=also)
    if has_placebo:
        lines += banded(table, "layer", placebo[0], "placebo", GREY, dash="dot", symbol="diamond")
    return lines
