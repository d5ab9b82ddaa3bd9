"""One look for every figure: colours that survive colour blindness, grey print and dark pages.

Lines use the palette of Okabe and Ito (*Color Universal Design*, 2008). One-sided quantities are
drawn in cividis, two-sided ones in blue to vermillion through light grey, so zero is the palest
cell. Backgrounds are transparent and text is a mid grey, which reads on white and on near-black
alike (about 4:1 on both); a page may set a stronger text colour of its own.

>>> figure = themed(go.Figure(), height=200)
>>> figure.layout.template.layout.paper_bgcolor, figure.layout.height
('rgba(0,0,0,0)', 200)
"""

import html
from typing import Any

import plotly.graph_objects as go

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "SEQUENTIAL",
    "TEMPLATE",
    "TWO_SIDED",
    "VERMILLION",
    "plain_text",
    "themed",
    "translucent",
]

BLUE = "#0072B2"
GREEN = "#009E73"
VERMILLION = "#D55E00"
GREY = "#7d828a"

SEQUENTIAL = "Cividis"
TWO_SIDED = (
    (0.0, BLUE),
    (0.25, "#7db4d8"),
    (0.5, "#ececec"),
    (0.75, "#eaa36f"),
    (1.0, VERMILLION),
)

_AXIS = {
    "gridcolor": "rgba(125,130,138,0.22)",
    "zerolinecolor": "rgba(125,130,138,0.5)",
    "linecolor": "rgba(125,130,138,0.6)",
    "ticks": "",
    "automargin": True,
    "title": {"standoff": 8},
}

TEMPLATE = go.layout.Template(
    layout={
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": GREY},
        "title": {"font": {"size": 14}, "x": 0, "xref": "paper"},
        "colorway": [BLUE, VERMILLION, GREEN, "#CC79A7", "#E69F00", "#56B4E9", GREY],
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "margin": {"l": 48, "r": 16, "t": 40, "b": 40},
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": BLUE},
        "hoverlabel": {"font": {"size": 12}},
    }
)


def themed(figure: go.Figure, *, height: int, title: str | None = None, **layout: Any) -> go.Figure:
    """`figure` in the package's theme (changed in place and returned); `height` in pixels."""
    figure.update_layout(template=TEMPLATE, height=height, **layout)
    if title is not None:
        figure.update_layout(title_text=plain_text(title))
    return figure


def plain_text(text: str) -> str:
    """`text` so that plotly, which reads a small HTML in every label, shows it as written.

    >>> plain_text("<b>&")
    '&lt;b&gt;&amp;'
    """
    return html.escape(text, quote=False)


def translucent(colour: str, alpha: float) -> str:
    """A `#rrggbb` colour with an opacity, as plotly spells it.

    >>> translucent("#0072B2", 0.2)
    'rgba(0,114,178,0.2)'
    """
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:g})"
