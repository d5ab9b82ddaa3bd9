"""Responses: how long they are, and where in them steering changes what is predicted.

>>> figure = response_lengths([{"n_tokens": 3, "finish_reason": "stop"}])
>>> figure.data[0].name
'ended by the model'
"""

import itertools

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from steerlens.views.bands import banded, not_measured
from steerlens.views.numbers import finite
from steerlens.views.tables import Rows, table_of
from steerlens.views.theme import BLUE, GREEN, GREY, VERMILLION, Picture, themed

__all__ = ["kl_over_response", "response_lengths"]

_REASONS = {
    "stop": ("ended by the model", GREEN),
    "length": ("cut at the limit", GREY),
    "non-finite": ("broke off (no finite logits)", VERMILLION),
}


def response_lengths(rows: Rows, *, title: str | None = None) -> go.Figure:
    """How many responses have which length, in tokens, and why they ended.

    Args:
        rows: one row a response with `n_tokens` and `finish_reason`.
        title: above the bars.

    Raises:
        SteerlensError: a column is missing, or a length is not a number.
    """
    table = table_of(rows, ["n_tokens", "finish_reason"], "responses")
    lengths = pd.Series([finite(value) or 0.0 for value in table["n_tokens"]], dtype=float)
    figure = Picture()
    edges = _edges(lengths)
    for reason, (label, colour) in _REASONS.items():
        chosen = lengths[[str(one) == reason for one in table["finish_reason"]]]
        if len(chosen):
            counts, _ = np.histogram(chosen, edges)
            figure.add_trace(
                go.Bar(
                    x=((edges[:-1] + edges[1:]) / 2).tolist(),
                    y=counts.tolist(),
                    width=np.diff(edges).tolist(),
                    name=label,
                    marker_color=colour,
                    customdata=[
                        f"{int(np.ceil(start))} to {int(np.ceil(stop)) - 1}"
                        for start, stop in itertools.pairwise(edges)
                    ],
                    hovertemplate=f"%{{customdata}} tokens, {label}: %{{y}}<extra></extra>",
                )
            )
    if table.empty:
        not_measured(figure, "no responses")
    figure.update_xaxes(title_text="length, tokens")
    figure.update_yaxes(title_text="responses", rangemode="tozero", tickformat="d")
    return themed(
        figure, height=320, title=title, barmode="stack", bargap=0.0, showlegend=not table.empty
    )


def kl_over_response(rows: Rows, *, title: str | None = None) -> go.Figure:
    """KL of steered from unsteered predictions over positions of the response.

    The line is the median over prompts whose response reaches the position, the band their middle
    half.

    Args:
        rows: one row a response token with `position` (from 0) and `kl` (nats).
        title: above the curve.

    Raises:
        SteerlensError: a column is missing.
    """
    table = table_of(rows, ["position", "kl"], "KL over responses")
    figure = Picture()
    if table.empty:
        not_measured(figure, "no tokens")
    else:
        groups = table.astype({"kl": float}).groupby("position")["kl"]
        curve = pd.DataFrame(
            {
                "kl": groups.median(),
                "low": groups.quantile(0.25),
                "high": groups.quantile(0.75),
                "n": groups.size(),
            }
        ).reset_index()
        for trace in banded(
            *(curve, "position", "kl", "low", "high", "median KL", BLUE),
            also=["n"],
            decimals=3,
            band_name="middle half of prompts",
        ):
            figure.add_trace(trace)
    figure.update_xaxes(title_text="position in the response, tokens")
    figure.update_yaxes(title_text="KL(steered‖baseline), nats", rangemode="tozero")
    return themed(figure, height=320, title=title, showlegend=False)


def _edges(lengths: pd.Series) -> np.ndarray:
    """Edges of at most 24 bins of whole tokens."""
    if lengths.empty:
        return np.array([-0.5, 0.5])
    low, high = lengths.min(), lengths.max()
    step = max(1, int(np.ceil((high - low + 1) / 24)))
    edges: np.ndarray = np.arange(low - 0.5, high + step + 0.5, step)
    return edges
