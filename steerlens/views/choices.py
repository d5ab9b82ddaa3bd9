"""Steering of choices over layers: the mean slope of the log odds, beside its placebo."""

import plotly.graph_objects as go

from steerlens.views.bands import banded, reference_line
from steerlens.views.picture import Picture, themed
from steerlens.views.tables import Rows, layer_table
from steerlens.views.theme import GREY, VERMILLION

__all__ = ["choice_slopes"]

_COLUMNS = ("slope", "slope_low", "slope_high")


def choice_slopes(rows: Rows, *, title: str | None = None) -> go.Figure:
    """Change of the log odds of the matching answer per unit of strength, over layers.

    Args:
        rows: One row per layer with `layer`, `slope`, `slope_low`, `slope_high` and `wrong_way`,
            and perhaps the same columns with `placebo_`.
        title: Above the curves.

    Raises:
        SteerlensError: A column is missing, or a layer is malformed or comes twice.
    """
    columns = [*_COLUMNS, "wrong_way"]
    if any("placebo_slope" in row for row in (rows if isinstance(rows, list) else [rows])):
        columns += [f"placebo_{column}" for column in _COLUMNS]
    table = layer_table(rows, columns, "slopes")
    steering = banded(table, "layer", "slope", "steering", VERMILLION, also=("wrong_way",))
    figure = Picture(steering)
    if "placebo_slope" in table:
        placebo = banded(
            table, "layer", "placebo_slope", "placebo", GREY, dash="dot", symbol="diamond"
        )
        figure.add_traces(placebo)
    reference_line(figure, 0.0)
    figure.update_xaxes(title_text="layer")
    figure.update_yaxes(title_text="change of log odds<br>nats per unit of strength")
    return themed(figure, height=400, title=title)
