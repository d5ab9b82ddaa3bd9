"""What the package's pages share: one layout, embedded figures, and what keeps texts harmless.

A page is one file that works offline. Everything that reaches it is escaped (jinja2 with
autoescape); only scripts with the page's nonce run, and the data cannot contain it, as it depends
on all of them.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import plotly.graph_objects as go
import plotly.io
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from steerlens.views.numbers import MISSING, finite, show_interval

__all__ = ["Cell", "interval", "percent", "plain", "render"]

# Of plotly's tools only saving a picture stays: dragging zooms and a double click resets anyway.
_PLOT_CONFIG = {"displaylogo": False, "responsive": True, "modeBarButtons": [["toImage"]]}


@dataclass(frozen=True)
class Cell:
    """A table cell: what it shows, and the number it sorts by (`None` sorts last)."""

    text: str
    order: float | None = None


def render(template: str, data: Mapping[str, Any], css: str = "", **context: Any) -> str:
    """A page from a template of this folder.

    Args:
        template: Its name.
        data: Everything that may hold texts from outside; the nonce is derived from it.
        css: Styles besides ``page.css``.
        context: What the template names. Everything is escaped except `Markup`.
    """
    text = json.dumps(data, sort_keys=True, default=str)
    nonce = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:32]
    environment = Environment(
        loader=FunctionLoader(_package_text),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        breakable=_breakable,
        embed=lambda figure, div_id: _embed(figure, div_id, nonce),
        interval=interval,
        percent=percent,
        plain=plain,
        sentence=lambda text: f"{text[:1].upper()}{text[1:]}",
    )
    page = environment.get_template(template).render(
        nonce=nonce,
        css=Markup(_package_text("page.css") + css),
        plotly_js=Markup(get_plotlyjs()),
        figures_js=Markup(_package_text("figures.js")),
        tables_js=Markup(_package_text("tables.js")),
        page_js=Markup(_package_text("page.js")),
        **context,
    )
    # UTF-8 has no lone surrogates, and HTML allows no NUL.
    return re.sub("[\ud800-\udfff\0]", "\ufffd", page)


def interval(
    row: Mapping[str, Any], value: str, low: str | None = None, high: str | None = None
) -> str:
    """`value [low, high]` that may break only before its bracket."""
    ends = row.get(low or f"{value}_low"), row.get(high or f"{value}_high")
    return show_interval(row.get(value), *ends).replace(", ", ",\u00a0")


def percent(value: object) -> str:
    """A share in whole percent; a dash where it is missing."""
    number = finite(value)
    return MISSING if number is None else f"{number:.0%}"


def plain(value: object) -> str:
    """A value in words: numbers short, everything nested as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.4g}"
    return json.dumps(value, ensure_ascii=False, default=str)


def _embed(figure: go.Figure, div_id: str, nonce: str) -> Markup:
    """A figure's markup; its JSON comes from plotly with every `<`, `>` and `/` escaped."""
    text = plotly.io.to_html(
        figure,
        full_html=False,
        include_plotlyjs=False,
        div_id=div_id,
        config=_PLOT_CONFIG,
        # The place is kept before the figure is drawn, so that nothing jumps.
        default_height=f"{figure.layout.height}px",
    )
    return Markup(text.replace("<script", f'<script nonce="{nonce}"'))


def _breakable(identifier: str) -> Markup:
    """An id that a narrow column may break after `:` and `_`."""
    return Markup(re.sub("([:_])", r"\1<wbr>", str(escape(identifier))))


def _package_text(name: str) -> str:
    return files("steerlens.reports").joinpath(name).read_text(encoding="utf-8")
