"""Figures as files, by the ending of their names.

HTML has plotly.js inside (4.8 MB) and fetches nothing. SVG, PNG and PDF are drawn by kaleido in an
installed Chromium or Chrome, without a network.
"""

import html
import math
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import plotly.io

from steerlens.errors import SteerlensError, unknown_name
from steerlens.files import write_atomically
from steerlens.views.theme import THEMES

__all__ = ["ENDINGS", "page", "save"]

ENDINGS = (".html", ".svg", ".png", ".pdf")
# plotly's own default; figures that set no width grow with the page they are on.
_WIDTH = 900
# Chromium draws no bitmap of more pixels a side; a taller one would come out blank.
_MOST_PIXELS = 16000
_CONFIG = {
    "displaylogo": False,
    "responsive": True,
    "typesetMath": False,
    "modeBarButtons": [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
}


def save(figure: go.Figure, path: str | Path, theme: str = "light", scale: float = 2.0) -> Path:
    """Write a figure as HTML, SVG, PNG or PDF, by the ending of `path`, whole or not at all.

    Args:
        figure: Any figure of this package, or of plotly.
        path: Where to write; missing folders are made.
        theme: ``"light"``, ``"dark"`` or ``"page"`` (transparent).
        scale: Pixels of a PNG for each pixel of the figure; less for figures taller than a browser
            can draw at that scale.

    Returns:
        The path.

    Raises:
        SteerlensError: Another ending, a scale that is not above zero, kaleido or a Chromium is
            missing (the sentence says what to install), or the place cannot be written.
        UnknownNameError: A theme that does not exist.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise SteerlensError(
            f"cannot tell what to write from {path.name!r}; end its name in {', '.join(ENDINGS)}"
        )
    if theme not in THEMES:
        raise unknown_name("theme", theme, THEMES)
    if not (math.isfinite(scale) and scale > 0):
        raise SteerlensError(f"scale must be a number above zero; got {scale!r}")
    drawn = go.Figure(figure).update_layout(template=THEMES[theme])
    if ending == ".html":
        content = page(drawn).encode("utf-8", "replace")
    else:
        content = _static(drawn, ending.removeprefix("."), scale, path.name)

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    return write_atomically(path, write)


def page(figure: go.Figure) -> str:
    """The figure as one page that fetches nothing, on the figure's own background."""
    background = figure.layout.template.layout.paper_bgcolor or "transparent"
    title = figure.layout.title.text or "steerlens"
    body = plotly.io.to_html(
        figure,
        full_html=False,
        include_plotlyjs=True,
        # MathJax is not on the page; without it "$…$" in a model's text must stay text.
        include_mathjax=False,
        config=_CONFIG,
        default_height=f"{figure.layout.height or 450}px",
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(_first_line(title))}</title>"
        f"<style>body {{ margin: 1rem; background: {background}; }}</style></head>"
        f"<body>{body}</body></html>\n"
    )


def _first_line(title: str) -> str:
    """A figure's title as plain text: its markup belongs to plotly."""
    return html.unescape(title.split("<br>")[0])


def _static(figure: go.Figure, form: str, scale: float, name: str) -> bytes:
    """The figure drawn by kaleido."""
    width = figure.layout.width or _WIDTH
    height = figure.layout.height or 450
    options = {
        "format": form,
        "width": width,
        "height": height,
        "scale": min(scale, _MOST_PIXELS / max(width, height)) if form == "png" else 1,
    }
    kaleido = _kaleido(name)
    from kaleido.errors import BrowserFailedError, ChromeNotFoundError

    # plotly's own export would have Chromium fetch MathJax from the network.
    try:
        drawn: bytes = kaleido.calc_fig_sync(
            figure.to_plotly_json(), opts=options, kopts={"mathjax": False}
        )
    except (ChromeNotFoundError, BrowserFailedError) as error:
        fault = ", and none was found; install one (for example"
        if isinstance(error, BrowserFailedError):
            fault = ", which did not start here; install it afresh (for example"
        raise SteerlensError(
            f"{name} is drawn by Chromium or Chrome{fault} `apt-get install chromium`, or "
            "`kaleido_get_chrome`), or save as .html"
        ) from error
    return drawn


def _kaleido(name: str) -> Any:
    try:
        if int(version("kaleido").split(".")[0]) >= 1:
            import kaleido

            return kaleido
    except (ImportError, PackageNotFoundError):
        pass
    raise SteerlensError(
        f"{name} needs kaleido 1 or later; install it with `pip install 'steerlens[figures]'`, or "
        "save as .html"
    )
