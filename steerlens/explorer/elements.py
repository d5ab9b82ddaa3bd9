"""Parts of the explorer's controls: a slider, a status line, a plot, sections that open and close.

Slider and line are anywidgets: those of ipywidgets have no label that a screen reader says, and no
place whose changes it announces. So is the plot: each of plotly's own widgets brings the whole
library to the page, 5 MB, which delays the texts that come after it.
"""

from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any

import anywidget
import ipywidgets as w
import traitlets
from plotly.offline import get_plotlyjs

__all__ = [
    "NARROW",
    "WIDE",
    "Plot",
    "Status",
    "button",
    "float_slider",
    "layer_slider",
    "row",
    "section",
]

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


class Plot(anywidget.AnyWidget):
    """A figure that may be drawn anew and clicked.

    Attributes:
        figure: What is shown; ``None`` for nothing.
        clicked: Called with the number of the trace and of the point, and with x and y.
    """

    _esm = _text("plot.js")
    drawing = traitlets.Unicode().tag(sync=True)

    def __init__(self, clicked: Callable[[Any, Any, Any, Any], None]) -> None:
        super().__init__()
        self.figure: Any = None
        self.clicked = clicked
        self.on_msg(self._received)

    def show(self, figure: Any) -> None:
        """Show a figure, or nothing."""
        self.figure = figure
        self.drawing = "" if figure is None else figure.to_json()

    def _received(self, _widget: Any, message: dict[str, Any], _buffers: Any) -> None:
        if message.get("kind") == "library":
            self.send({"kind": "library"}, [get_plotlyjs().encode()])
        elif message.get("kind") == "click" and self.figure is not None:
            trace, index, x, y = map(message.get, ("trace", "index", "x", "y"))
            self.clicked(trace, index, x, y)


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
