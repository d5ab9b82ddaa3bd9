"""What the package's pages share: templates, embedded figures, nonces.

A page is one file that works offline. Everything that reaches it is escaped (jinja2 with
autoescape); only scripts with the page's nonce run, and the data cannot contain it.
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

__all__ = ["Cell", "environment", "nonce_of", "package_text", "writable"]

# Of plotly's tools only saving a picture stays: dragging zooms and a double click resets anyway.
_PLOT_CONFIG = {"displaylogo": False, "responsive": True, "modeBarButtons": [["toImage"]]}


@dataclass(frozen=True)
class Cell:
    """A table cell: what it shows, and the number it sorts by (`None` sorts last)."""

    text: str
    order: float | None = None


def environment(nonce: str) -> Environment:
    """Templates of this folder, with the filters `embed` (a figure) and `breakable` (an id)."""
    made = Environment(
        loader=FunctionLoader(package_text),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def embed(figure: go.Figure, div_id: str) -> Markup:
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

    made.filters["embed"] = embed
    made.filters["breakable"] = _breakable
    return made


def _breakable(identifier: str) -> Markup:
    """An id that a narrow column may break after `:` and `_`."""
    return Markup(re.sub("([:_])", r"\1<wbr>", str(escape(identifier))))


def nonce_of(data: Mapping[str, Any]) -> str:
    """A token that a text inside `data` cannot know, as it depends on all of it."""
    text = json.dumps(data, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:32]


def package_text(name: str) -> str:
    """A file of this folder."""
    return files("steerlens.reports").joinpath(name).read_text(encoding="utf-8")


def writable(page: str) -> str:
    """`page` without lone surrogates, which UTF-8 has not, and NUL, which HTML does not allow."""
    return re.sub("[\ud800-\udfff\0]", "\ufffd", page)
