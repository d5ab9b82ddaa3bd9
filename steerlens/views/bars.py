"""Bars and histograms: tokens promoted and suppressed, projections, and lengths of responses.

>>> figure = ranked_tokens([("Title", 0.2)], [(" The", -0.1)])
>>> list(figure.data[0].x), list(figure.data[0].y)
([0.2, -0.1], ['Title', '␣The'])
>>> [trace.name for trace in projection_histogram([2.0, 2.5], [0.0, 0.5], layer=3).data]
['uninstructed', 'instructed']
"""

import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from steerlens.errors import SteerlensError
from steerlens.views.bands import mark_across
from steerlens.views.numbers import compact, finite
from steerlens.views.picture import Picture, say_instead, themed
from steerlens.views.tables import Rows, table_of
from steerlens.views.theme import BLUE, GREEN, GREY, VERMILLION, plain_text, translucent
from steerlens.views.tokens import one_line

__all__ = ["projection_histogram", "ranked_tokens", "relevance_histogram", "response_lengths"]

_BAR_PIXELS = 19
_SPACE = "␣"
_MOST_BINS = 40
_COLOURS = {"uninstructed": BLUE, "instructed": VERMILLION, "steered": GREEN}
_REASONS = {
    "stop": ("ended by the model", GREEN),
    "stop_text": ("ended at a stop text", BLUE),
    "length": ("cut at the limit", GREY),
    "non-finite": ("broke off (no finite logits)", VERMILLION),
}


def ranked_tokens(
    promoted: Sequence[tuple[str, float]],
    suppressed: Sequence[tuple[str, float]],
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
    # " Rome" and "Rome" are two tokens.
    words = [plain_text(re.sub("^ +| +$", _SPACE, one_line(text))) for text, _ in rows]
    figure = Picture(
        go.Bar(
            x=compact(change for _, change in rows),
            # Places, not words, where two tokens have the same text.
            y=words if len(set(words)) == len(words) else list(range(len(rows))),
            orientation="h",
            marker_color=[VERMILLION] * len(up) + [BLUE] * len(down),
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
        say_instead(figure, "no token changed")
    height = 120 + _BAR_PIXELS * max(len(rows), 4)
    return themed(figure, height=height, title=title, bargap=0.25, showlegend=False)


def projection_histogram(
    instructed: Sequence[Any],
    uninstructed: Sequence[Any],
    steered: Sequence[Any] | None = None,
    *,
    names: tuple[str, str] = ("instructed", "uninstructed"),
    layer: int | None = None,
    target: float | None = None,
    title: str | None = None,
) -> go.Figure:
    """Projections on a direction: without the instruction, with it, and steered.

    Args:
        instructed: projections of instructed residuals (residual-stream units; missing ones are
            left out); fit the direction on other pairs, or they lie further apart than they should.
        uninstructed: those of uninstructed ones.
        steered: those of uninstructed ones after steering.
        names: what the first two are called.
        layer: where the residuals were read, for the axis.
        target: the projection steering aims at, marked by a line.
        title: above the histogram.

    Raises:
        SteerlensError: a projection is not a number.
    """
    sides = {"uninstructed": uninstructed, "instructed": instructed, "steered": steered}
    shares = {
        side: np.array([number for value in values if (number := finite(value)) is not None])
        for side, values in sides.items()
        if values is not None
    }
    figure = Picture()
    every = np.concatenate(list(shares.values()))
    if every.size:
        n_bins = int(2 * np.sqrt(max(map(len, shares.values()))))
        edges = np.histogram_bin_edges(every, min(_MOST_BINS, max(8, n_bins)))
        called = {"instructed": names[0], "uninstructed": names[1]}
        for side, values in shares.items():
            name = plain_text(called.get(side, side))
            figure.add_trace(_outline(values, edges, name, _COLOURS[side]))
    else:
        say_instead(figure, "no projections")
    mark_across(figure, target)
    where = "" if layer is None else f" at layer {layer}"
    axis = f"projection on the direction{where}, residual-stream units"
    figure.update_xaxes(title_text=axis)
    figure.update_yaxes(title_text="share of prompts", tickformat=".0%", rangemode="tozero")
    return themed(figure, height=340, title=title)


def relevance_histogram(table: pd.DataFrame) -> go.Figure:
    """Responses by ``relevance``, in nats per token, and whether they are ``on_topic``."""
    numbers = table.dropna(subset="relevance")
    bins = go.histogram.XBins(size=0.1)
    figure = Picture(
        [
            go.Histogram(
                x=numbers.loc[numbers["on_topic"] == on_topic, "relevance"].tolist(),
                name=name,
                marker_color=colour,
                xbins=bins,
            )
            for on_topic, name, colour in ((True, "on topic", GREEN), (False, "off topic", GREY))
        ]
    )
    figure.update_layout(barmode="stack")
    figure.update_xaxes(title_text="relevance, nats per token")
    figure.update_yaxes(title_text="responses")
    return themed(figure, height=340)


def _outline(values: np.ndarray, edges: np.ndarray, name: str, colour: str) -> go.Scatter:
    """A histogram as a filled outline: three of them stay legible on top of one another."""
    share = np.histogram(values, edges)[0] / max(len(values), 1)
    return go.Scatter(
        x=compact(np.repeat(edges, 2).tolist()),
        y=compact([0.0, *np.repeat(share, 2).tolist(), 0.0]),
        name=name,
        mode="lines",
        line={"color": colour, "width": 2},
        fill="tozeroy",
        fillcolor=translucent(colour, 0.22),
        hovertemplate=f"{name}: %{{y:.1%}} near %{{x:.3g}}<extra></extra>",
    )


def response_lengths(rows: Rows, *, title: str | None = None) -> go.Figure:
    """How many responses have which length, in tokens, and why they ended.

    Args:
        rows: one row per response with `n_tokens` and `finish_reason`.
        title: above the bars.

    Raises:
        SteerlensError: a column is missing, or a length is not a number.
    """
    table = table_of(rows, ["n_tokens", "finish_reason"], "responses")
    lengths = pd.Series([finite(value) or 0.0 for value in table["n_tokens"]], dtype=float)
    reasons = table["finish_reason"].astype(str).to_numpy()
    figure = Picture()
    if table.empty:
        say_instead(figure, "no responses")
        lengths = pd.Series([0.0])
    # At most 24 bins of whole tokens.
    step = max(1, int(np.ceil((lengths.max() - lengths.min() + 1) / 24)))
    edges = np.arange(lengths.min() - 0.5, lengths.max() + step + 0.5, step)
    bins = [f"{int(np.ceil(a))} to {int(np.ceil(b)) - 1}" for a, b in itertools.pairwise(edges)]
    for reason, (label, colour) in _REASONS.items():
        if reason in reasons:
            counts, _ = np.histogram(lengths[reasons == reason], edges)
            figure.add_bar(
                x=((edges[:-1] + edges[1:]) / 2).tolist(),
                y=counts.tolist(),
                width=np.diff(edges).tolist(),
                name=label,
                marker_color=colour,
                customdata=bins,
                hovertemplate=f"%{{customdata}} tokens, {label}: %{{y}}<extra></extra>",
            )
    figure.update_xaxes(title_text="length, tokens")
    figure.update_yaxes(title_text="responses", rangemode="tozero", tickformat="d")
    has_legend = not table.empty
    return themed(
        figure, height=320, title=title, barmode="stack", bargap=0.0, showlegend=has_legend
    )
