"""The map of strength × layer: its controls, the map, and the texts of the cell clicked."""

import html
from collections.abc import Callable
from typing import Any

import ipywidgets as w

from steerlens.errors import SteerlensError
from steerlens.explorer.elements import NARROW, Plot, button, row, section
from steerlens.explorer.sweeping import Cell, Sweep

__all__ = ["SweepView"]

_COLUMNS = 8


class SweepView:
    """Widgets for a sweep.

    Args:
        n_layers: Of the model.
        start: Called when the sweep is to begin.
        use: Called with the layer and the strength that shall be tried.

    Attributes:
        view: The section.
        layers: The columns of the map, as text.
        strengths: Its rows, as text.
        sweep: What is shown.
        plot: The map.
        cell: The cell whose texts are shown; a list, for the keyboard.
        text: Its texts.
    """

    def __init__(
        self, n_layers: int, start: Callable[[], Any], use: Callable[[int, float], Any]
    ) -> None:
        spread = range(n_layers // _COLUMNS, n_layers, max(1, n_layers // _COLUMNS))
        self.layers = w.Text(", ".join(map(str, spread)), description="layers", **NARROW)
        self.strengths = w.Text("0.5, 1, 1.5, 2", description="strengths", **NARROW)
        self.sweep: Sweep | None = None
        self.plot, self.text = Plot(self._clicked), w.HTML()
        self.cell = w.Dropdown(options=[], description="cell", **NARROW)
        self.cell.observe(lambda _: self._show_text(), "value")
        used = button("use this cell", lambda: self._use(use), "set the sliders to it")
        self._picking = row([self.cell, used])
        self._picking.layout.display = "none"
        begin = button("sweep", start, "answer under every strength at every layer")
        self.view = section(
            "sweep of strength × layer",
            [row([self.layers, self.strengths, begin]), self.plot, self._picking, self.text],
        )

    @property
    def axes(self) -> tuple[list[int], list[float]]:
        """Layers and strengths that were typed.

        Raises:
            SteerlensError: "the layers of a sweep are whole numbers …".
        """
        try:
            layers = [int(part) for part in self.layers.value.replace(",", " ").split()]
            strengths = [float(part) for part in self.strengths.value.replace(",", " ").split()]
        except ValueError:
            layers = []
            strengths = []
        if not layers or not strengths:
            raise SteerlensError(
                "a sweep needs layers, whole numbers such as 4, 8, and strengths, numbers such as "
                f"0.5, 1; got {self.layers.value!r} and {self.strengths.value!r}"
            )
        return list(dict.fromkeys(layers)), list(dict.fromkeys(strengths))

    def clear(self) -> None:
        """Show no map."""
        self.sweep, self.cell.options = None, ()
        self.plot.show(None)
        self._picking.layout.display, self.text.value = "none", ""

    def show(self, sweep: Sweep) -> None:
        """Show what a sweep has so far."""
        self.sweep = sweep
        self.plot.show(sweep.plot())
        chosen = self.cell.value
        places = [(s, layer) for s in sweep.strengths for layer in sweep.layers]
        options = [
            (f"layer {layer} × {strength:g}", (layer, strength))
            for strength, layer in places
            if sweep.at(layer, strength)
        ]
        if options != list(self.cell.options):
            self.cell.options = options
            known = [place for _, place in options]
            self.cell.value = chosen if chosen in known else next(iter(known), None)
        self._picking.layout.display = "" if options else "none"
        self._show_text()

    def _clicked(self, _trace: int, _index: Any, layer: Any, strength: Any) -> None:
        place = int(layer), float(strength)
        if place in dict(self.cell.options).values():
            self.cell.value = place

    def _show_text(self) -> None:
        if self.sweep is None or self.cell.value is None:
            self.text.value = ""
            return
        cells = self.sweep.at(*self.cell.value)
        self.text.value = "".join(map(_described, cells, self.sweep.prompts))

    def _use(self, use: Callable[[int, float], Any]) -> None:
        if self.cell.value is not None:
            use(*self.cell.value)


def _described(cell: Cell, prompt: str) -> str:
    said = [] if cell.passed is None else ["passes the check" if cell.passed else "fails the check"]
    said += [f"KL at the first token {cell.kl:.2f} nats"]
    said += ["↻ degenerate"] if cell.degenerate else []
    style = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.4;max-width:60em"
    return (
        f'<div style="opacity:.75" dir="auto">{html.escape(prompt)} · {" · ".join(said)}</div>'
        f'<div dir="auto" style="{style}">{html.escape(cell.text)}</div>'
    )
