"""One look for every figure: colours that survive colour blindness, grey print and dark pages.

Lines use the palette of Okabe and Ito (*Color Universal Design*, 2008), which was made so that
people with any of the common colour deficiencies tell its colours apart; the order here puts the
pair that differs most (blue and vermillion) first, and lines differ in dash or marker as well where
they cross. One-sided quantities are drawn in cividis, which is even in lightness and made to look
the same to normal and to red-green-blind eyes (Nuñez, Anderton and Renslow 2018). Two-sided ones
run from blue to vermillion through a neutral, and are always centred: nothing is the colour
nearest to the page.

Three templates share all this. `TEMPLATE`, the default, is transparent with mid-grey text (about
4:1 on white and on near-black alike), for pages and notebooks whose background is not known.
`LIGHT` and `DARK` have backgrounds of their own; `Picture.save` takes the light one unless told
otherwise, and `Picture.dressed` changes a figure's.

>>> figure = themed(Picture(), height=200)
>>> figure.layout.template.layout.paper_bgcolor, figure.layout.height
('rgba(0,0,0,0)', 200)
>>> figure.dressed("dark").layout.template.layout.paper_bgcolor
'#15181c'
"""

import html
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.colors import sequential

from steerlens.errors import unknown_name

__all__ = [
    "BLUE",
    "DARK",
    "GREEN",
    "GREY",
    "LIGHT",
    "ORANGE",
    "PURPLE",
    "SERIES",
    "TEMPLATE",
    "THEMES",
    "VERMILLION",
    "Picture",
    "heading",
    "log_ticks",
    "plain_text",
    "themed",
    "translucent",
]

BLUE = "#0072B2"
GREEN = "#009E73"
VERMILLION = "#D55E00"
PURPLE = "#CC79A7"
ORANGE = "#E69F00"
SKY = "#56B4E9"
GREY = "#7d828a"
# Pixels above a figure's panels, for a legend alone, a title alone, and both.
_UNTITLED, _TITLED_ALONE, _TITLED, _SUBTITLE = 40, 52, 74, 18
SERIES = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, GREY)


def _diverging(middle: str, cool: str, warm: str) -> list[list[Any]]:
    return [[0.0, BLUE], [0.25, cool], [0.5, middle], [0.75, warm], [1.0, VERMILLION]]


# Templates know colour scales by value only, not by name.
_CIVIDIS = [
    [place / (len(sequential.Cividis) - 1), colour]
    for place, colour in enumerate(sequential.Cividis)
]


def _template(background: str, text: str, lines: str, diverging: list[list[Any]]) -> Any:
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
            "colorscale": {"sequential": _CIVIDIS, "diverging": diverging},
            "xaxis": {**axis, "zeroline": False},
            "yaxis": axis,
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
            "margin": {"l": 48, "r": 16, "t": _UNTITLED, "b": 40},
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": BLUE},
            "hoverlabel": {"font": {"size": 12}},
        }
    )


def plain_text(text: str) -> str:
    """`text` so that plotly, which reads a small HTML in every label, shows it as written.

    Dollar signs are spelled out: between two of them a page with MathJax would set mathematics.

    >>> plain_text("<b>&$")
    '&lt;b&gt;&amp;&#36;'
    """
    return html.escape(text, quote=False).replace("$", "&#36;")


def translucent(colour: str, alpha: float) -> str:
    """A `#rrggbb` colour with an opacity, as plotly spells it.

    >>> translucent("#0072B2", 0.2)
    'rgba(0,114,178,0.2)'
    """
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:g})"


_ON_LIGHT = _diverging("#ececec", "#7db4d8", "#eaa36f")
TEMPLATE = _template("rgba(0,0,0,0)", GREY, GREY, _ON_LIGHT)
LIGHT = _template("#ffffff", "#24292f", GREY, _ON_LIGHT)
DARK = _template("#15181c", "#d5dae1", "#9aa1ab", _diverging("#2c3138", "#1d5c86", "#8a4713"))
THEMES = {"page": TEMPLATE, "light": LIGHT, "dark": DARK}


class Picture(go.Figure):  # type: ignore[misc]
    """A plotly figure that can change its theme and be saved by the ending of a file's name."""

    def dressed(self, theme: str) -> "Picture":
        """A copy in another theme: ``"page"`` (transparent), ``"light"`` or ``"dark"``.

        Raises:
            UnknownNameError: Another name.
        """
        if theme not in THEMES:
            raise unknown_name("theme", theme, THEMES)
        copy = Picture(self)
        copy.update_layout(template=THEMES[theme])
        return copy

    def save(self, path: str | Path, theme: str = "light", scale: float = 2.0) -> Path:
        """Write the figure as HTML, SVG, PNG or PDF; see `steerlens.views.saving.save`."""
        from steerlens.views.saving import save

        return save(self, path, theme, scale)


def themed(
    figure: go.Figure,
    *,
    height: int,
    title: str | None = None,
    subtitle: str | None = None,
    **layout: Any,
) -> go.Figure:
    """`figure` in the package's theme (changed in place and returned); `height` in pixels.

    Under a title there is room for the legend, if there is one; the figure grows by that much.
    """
    figure.update_layout(template=TEMPLATE, height=height, **layout)
    if title:
        named = [trace.showlegend for trace in figure.data if trace.showlegend is not False]
        has_legend = figure.layout.showlegend is not False and (len(named) > 1 or True in named)
        top = _TITLED if has_legend else _TITLED_ALONE
        top += _SUBTITLE if subtitle else 0
        figure.update_layout(
            title=heading(title, subtitle),
            margin_t=top,
            height=height + top - _UNTITLED,
        )
    return figure


def heading(title: str, subtitle: str | None = None) -> dict[str, Any]:
    """A title at the top of a figure, with a smaller line below it, as plotly's layout takes it."""
    described: dict[str, Any] = {
        "text": plain_text(title),
        "yref": "container",
        "y": 1,
        "yanchor": "top",
        "pad": {"t": 14},
    }
    if subtitle:
        described["subtitle"] = {"text": plain_text(subtitle), "font": {"size": 12}}
    return described


def log_ticks(values: Iterable[float | None]) -> dict[str, Any]:
    """Ticks of a logarithmic axis at 1, 2 and 5 of each decade that the values span.

    >>> log_ticks([3.0, 40.0])["tickvals"]
    [2.0, 5.0, 10.0, 20.0, 50.0]
    """
    known = [value for value in values if value is not None and 0 < value < math.inf]
    if not known:
        return {"type": "log"}
    low, high = min(known), max(known)
    steps = [
        step * 10.0**power
        for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for step in (1, 2, 5)
    ]
    first = max((place for place, step in enumerate(steps) if step <= low), default=0)
    last = next((place for place, step in enumerate(steps) if step >= high), len(steps) - 1)
    ticks = [float(f"{step:.3g}") for step in steps[first : last + 1]]
    # Over many decades every third of them is enough.
    shown = [tick for tick in ticks if len(ticks) <= 9 or f"{tick:e}".startswith("1.0")]
    return {"type": "log", "tickvals": shown, "ticktext": [f"{tick:g}" for tick in shown]}
