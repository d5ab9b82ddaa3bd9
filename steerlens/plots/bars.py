"""Bars: the tokens steering promotes and suppresses, and how long responses are.

>>> figure = ranked_tokens([("Title", 0.2)], [(" The", -0.1)])
>>> list(figure.data[0].x), list(figure.data[0].y)
([0.2, -0.1], ['Title', '␣The'])
"""

import itertools
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from steerlens.errors import SteerlensError
from steerlens.plots.bands import not_measured
from steerlens.plots.numbers import compact, finite
from steerlens.plots.tables import Rows, table_of
from steerlens.plots.theme import BLUE, GREEN, GREY, VERMILLION, Picture, plain_text, themed
from steerlens.plots.tokens import one_line

__all__ = ["ranked_tokens", "response_lengths"]

Ranked = Sequence[tuple[str, float]]
_BAR_PIXELS = 19
_SPACE = "␣"
_REASONS = {
    "stop": ("ended by the model", GREEN),
    "length": ("cut at the limit", GREY),
    "non-finite": ("broke off (no finite logits)", VERMILLION),
}


def ranked_tokens(
    promoted: Ranked,
    suppressed: Ranked,
    *,
    n: int = 12,
    quantity: str = "mean change of probability",
    title: str | None = None,
) -> go.Figure:
    """The most promoted tokens above, the most suppressed below, as bars to both sides of zero.

    Args:
        promoted: tokens with their change, largest first; those that did not rise are left out.
        suppressed: tokens with their change, most negative first.
        n: how many of each at most.
        quantity: what the change is, for the axis.
        title: above the bars.

    Raises:
        SteerlensError: `n` is below 1, or a change is not a number.
    """
    if n < 1:
        raise SteerlensError(f"n must be at least 1; got {n}")
    up = [(text, change) for text, change in promoted if (finite(change) or 0.0) > 0][:n]
    down = [(text, change) for text, change in suppressed if (finite(change) or 0.0) < 0][:n]
    rows = [*up, *reversed(down)]
    changes = compact(change for _, change in rows)
    # " Rome" and "Rome" are two tokens.
    words = [plain_text(re.sub("^ +| +$", _SPACE, one_line(text))) for text, _ in rows]
    figure = Picture(
        go.Bar(
            x=changes,
            # Places, not words: two tokens may have the same text.
            y=words if len(set(words)) == len(words) else list(range(len(rows))),
            orientation="h",
            marker_color=[VERMILLION if (change or 0.0) > 0 else BLUE for change in changes],
            customdata=words,
            hovertemplate="%{customdata}: %{x:+.3g}<extra></extra>",
        )
    )
    figure.update_yaxes(
        type="category",
        autorange="reversed",
        tickmode="array",
        tickvals=list(range(len(rows))),
        ticktext=words,
        tickfont={"family": "ui-monospace, monospace", "size": 12},
        showgrid=False,
    )
    figure.update_xaxes(title_text=plain_text(quantity), zeroline=True, nticks=8)
    if not rows:
        not_measured(figure, "no token changed")
    height = 120 + _BAR_PIXELS * max(len(rows), 4)
    return themed(figure, height=height, title=title, bargap=0.25, showlegend=False)


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


def _edges(lengths: pd.Series) -> np.ndarray:
    """Edges of at most 24 bins of whole tokens."""
    if lengths.empty:
        return np.array([-0.5, 0.5])
    low, high = lengths.min(), lengths.max()
    step = max(1, int(np.ceil((high - low + 1) / 24)))
    edges: np.ndarray = np.arange(low - 0.5, high + step + 0.5, step)
    return edges
