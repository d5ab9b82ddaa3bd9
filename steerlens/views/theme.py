"""One look for every figure: colours that survive colour blindness, grey print and dark pages.

Lines use the palette of Okabe and Ito (*Color Universal Design*, 2008), the pair that differs most
(blue and vermillion) first. One-sided quantities are drawn in cividis, which looks the
same to normal and to red-green-blind eyes (Nuñez, Anderton and Renslow 2018). Two-sided ones run
from blue to vermillion through a neutral and are always centred: zero is the colour nearest to the
page.

`TEMPLATE`, the default, is transparent with mid-grey text (about 4:1 on white and on near-black
alike), for pages whose background is not known. `LIGHT` and `DARK` have their own backgrounds.
"""

import html
from typing import Any

import plotly.graph_objects as go
from plotly.colors import make_colorscale, sequential

BLUE = "#0072B2"
GREEN = "#009E73"
VERMILLION = "#D55E00"
PURPLE = "#CC79A7"
ORANGE = "#E69F00"
SKY = "#56B4E9"
GREY = "#7d828a"
SERIES = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, GREY)
# Pixels above a figure's panels, for a legend alone.
UNTITLED = 40


def plain_text(text: str) -> str:
    """`text` so that plotly, which reads a small HTML in every label, shows it as written.

    Dollar signs are spelled out: between two of them a page with MathJax would set mathematics.

    >>> plain_text("<b>&$")
    '&lt;b&gt;&amp;&#36;'
    """
    return html.escape(text, quote=False).replace("$", "&#36;")


def translucent(colour: str, alpha: float) -> str:
    """A ``#rrggbb`` colour with an opacity, as plotly spells it.

    >>> translucent("#0072B2", 0.2)
    'rgba(0,114,178,0.2)'
    """
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return f"rgba({red},{green},{blue},{alpha:g})"


def _template(background: str, text: str, lines: str, middle: str, cool: str, warm: str) -> Any:
    axis = {
        "gridcolor": translucent(lines, 0.22),
        "zerolinecolor": translucent(lines, 0.5),
        "linecolor": translucent(lines, 0.6),
        "ticks": "",
        "automargin": True,
        "title": {"standoff": 8},
    }
    return go.layout.Template(
        layout={
            "paper_bgcolor": background,
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": "system-ui, sans-serif", "size": 12, "color": text},
            "title": {"font": {"size": 14}, "x": 0, "xref": "paper"},
            "colorway": list(SERIES),
            # Taken by every trace with `autocolorscale`, so they change with the template.
            "colorscale": {
                "sequential": make_colorscale(sequential.Cividis),
                "diverging": make_colorscale([BLUE, cool, middle, warm, VERMILLION]),
            },
            "xaxis": {**axis, "zeroline": False},
            "yaxis": axis,
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
            "margin": {"l": 48, "r": 16, "t": UNTITLED, "b": 40},
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": BLUE},
            "hoverlabel": {"font": {"size": 12}},
        }
    )


_ON_LIGHT = ("#ececec", "#7db4d8", "#eaa36f")
TEMPLATE = _template("rgba(0,0,0,0)", GREY, GREY, *_ON_LIGHT)
"""Transparent, with mid-grey text."""
LIGHT = _template("#ffffff", "#24292f", GREY, *_ON_LIGHT)
"""Dark text on white."""
DARK = _template("#15181c", "#d5dae1", "#9aa1ab", "#2c3138", "#1d5c86", "#8a4713")
"""Light text on near-black."""
THEMES = {"page": TEMPLATE, "light": LIGHT, "dark": DARK}
