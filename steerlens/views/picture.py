"""Figures in the theme of the package: pictures, their titles and axes.

>>> figure = themed(Picture(), height=200)
>>> figure.layout.template.layout.paper_bgcolor, figure.layout.height
('rgba(0,0,0,0)', 200)
>>> figure.dressed("dark").layout.template.layout.paper_bgcolor
'#15181c'
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from steerlens.errors import unknown_name
from steerlens.views.saving import save as save_figure
from steerlens.views.theme import TEMPLATE, THEMES, UNTITLED, plain_text

__all__ = ["Picture", "heading", "log_ticks", "say_instead", "themed"]

# Pixels above a figure's panels, for a title alone, with a legend, and a subtitle.
_TITLED_ALONE, _TITLED, _SUBTITLE = 52, 74, 18


class Picture(go.Figure):  # type: ignore[misc]
    """A plotly figure that can change its theme and be saved to a file."""

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
        return save_figure(self, path, theme, scale)


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
            height=height + top - UNTITLED,
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
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = [float(f"{step}e{power}") for power in powers for step in (1, 2, 5)]
    first = max(step for step in steps if step <= low)
    last = min(step for step in steps if step >= high)
    ticks = [step for step in steps if first <= step <= last]
    # Over many decades every third of them is enough.
    shown = [tick for tick in ticks if len(ticks) <= 9 or f"{tick:e}".startswith("1.0")]
    return {"type": "log", "tickvals": shown, "ticktext": [f"{tick:g}" for tick in shown]}


def say_instead(figure: go.Figure, sentence: str = "not measured") -> None:
    """Write a sentence where there is nothing to draw."""
    figure.add_annotation(text=sentence, showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper")
