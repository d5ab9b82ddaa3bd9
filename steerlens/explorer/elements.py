"""Parts of the explorer's controls: a slider, a status line, sections that open and close.

The slider and the line are anywidgets: those of ipywidgets have no label that a screen reader says,
and no place whose changes it announces.
"""

from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any

import anywidget
import ipywidgets as w
import traitlets

__all__ = ["NARROW", "WIDE", "Status", "button", "float_slider", "layer_slider", "row", "section"]

WIDE: dict[str, Any] = {
    "layout": {"width": "48em", "max_width": "98%"},
    "style": {"description_width": "6em"},
}
"""Of a text box for a sentence."""
NARROW: dict[str, Any] = {
    "layout": {"width": "21em", "max_width": "98%"},
    "style": {"description_width": "6em"},
}
"""Of a box for a number or a word."""


def _text(name: str) -> str:
    return files("steerlens.explorer").joinpath(name).read_text(encoding="utf-8")


class _Slider(anywidget.AnyWidget):
    _esm = _text("slider.js")
    _css = _text("elements.css")
    description = traitlets.Unicode().tag(sync=True)
    min = traitlets.Float().tag(sync=True)
    max = traitlets.Float().tag(sync=True)
    step = traitlets.Float().tag(sync=True)


class _FloatSlider(_Slider):
    value = traitlets.CFloat().tag(sync=True)


class _LayerSlider(_Slider):
    value = traitlets.CInt().tag(sync=True)


def layer_slider(value: int, n_layers: int) -> Any:
    """A slider over the layers of a model."""
    return _LayerSlider(value=value, min=0, max=n_layers - 1, step=1, description="layer")


def float_slider(value: float, low: float, high: float, step: float, description: str) -> Any:
    """A slider over numbers."""
    return _FloatSlider(value=value, min=low, max=high, step=step, description=description)


class Status(anywidget.AnyWidget):
    """A line of text that screen readers announce; nothing in it is markup."""

    _esm = _text("status.js")
    _css = _text("elements.css")
    value = traitlets.Unicode().tag(sync=True)


def button(name: str, what: Callable[[], Any], tip: str) -> Any:
    """A button that calls a function."""
    made = w.Button(description=name, tooltip=tip, layout={"width": "auto"})
    made.on_click(lambda _: what())
    return made


def row(children: Sequence[Any]) -> Any:
    """Widgets beside each other, in lines as long as there is room for."""
    return w.Box(list(children), layout={"flex_flow": "row wrap", "align_items": "center"})


def section(
    name: str, children: Sequence[Any], changed: Callable[[bool], None] | None = None
) -> Any:
    """Widgets under a button that shows and hides them; hidden at first."""
    toggle = w.ToggleButton(
        value=False,
        description=f"▸ {name}",
        tooltip=f"show {name}",
        layout={"width": "auto"},
    )
    content = w.VBox(list(children), layout={"display": "none"})

    def turn(_: Any) -> None:
        shown = toggle.value
        toggle.description = f"{'▾' if shown else '▸'} {name}"
        toggle.tooltip = f"{'hide' if shown else 'show'} {name}"
        content.layout.display = "" if shown else "none"
        if changed is not None:
            changed(shown)

    toggle.observe(turn, "value")
    return w.VBox([toggle, content])
