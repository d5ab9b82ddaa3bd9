"""Bars: the tokens steering promotes and suppresses.

>>> figure = ranked_tokens([("Title", 0.2)], [(" The", -0.1)])
>>> list(figure.data[0].x), list(figure.data[0].y)
([0.2, -0.1], ['Title', '␣The'])
"""

import re
from collections.abc import Sequence

import plotly.graph_objects as go

from steerlens.errors import SteerlensError
from steerlens.views.bands import not_measured
from steerlens.views.numbers import compact, finite
from steerlens.views.theme import BLUE, VERMILLION, Picture, plain_text, themed
from steerlens.views.tokens import one_line

__all__ = ["ranked_tokens"]

Ranked = Sequence[tuple[str, float]]
_BAR_PIXELS = 19
_SPACE = "␣"


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
