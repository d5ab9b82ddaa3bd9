"""Directions under training: their losses, and what they recover over layers.

>>> looks = {"step": [0, 10], "direction": ["comply, layer 20"] * 2, "loss": [2.0, 1.5]}
>>> training_curves(pd.DataFrame(looks)).data[0].name
'comply, layer 20'
"""

import pandas as pd
import plotly.graph_objects as go

from steerlens.views.bands import banded, reference_line
from steerlens.views.picture import Picture, themed
from steerlens.views.theme import BLUE, GREEN, GREY, VERMILLION

__all__ = ["ceiling_curves", "training_curves"]

_CEILING = {
    "ceiling": ("trained direction", GREEN, "solid", "diamond"),
    "mean_difference": ("difference of means", BLUE, "solid", "circle"),
    "other_task": ("other tasks' vectors", VERMILLION, "dash", "square"),
    "placebo": ("random direction", GREY, "dot", "x"),
}


def training_curves(table: pd.DataFrame) -> go.Figure:
    """A line per ``direction``: its ``loss`` on held-out examples over ``step``, in nats."""
    lines = [
        go.Scatter(
            x=own["step"].tolist(),
            y=own["loss"].tolist(),
            name=str(name),
            mode="lines+markers",
            hovertemplate="step %{x}: %{y:.3f} nats",
        )
        for name, own in table.groupby("direction", sort=False)
    ]
    figure = Picture(lines)
    figure.update_xaxes(title="step")
    figure.update_yaxes(title="held-out loss, nats")
    return themed(figure, height=360)


def ceiling_curves(table: pd.DataFrame) -> go.Figure:
    """Recovery over ``layer``: ``ceiling``, ``mean_difference``, ``other_task``, ``placebo``.

    Each with its interval, ``_low`` to ``_high``.
    """
    lines = [
        trace
        for column, (name, colour, dash, symbol) in _CEILING.items()
        for trace in banded(table, "layer", column, name, colour, dash=dash, symbol=symbol)
    ]
    figure = Picture(lines)
    reference_line(figure, 0.0)
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title="causal recovery")
    return themed(figure, height=400)
