"""Evidence about layers beside the sliders: curves to be clicked, and best layers to be picked."""

from collections.abc import Callable
from functools import partial
from typing import Any

import ipywidgets as w
import plotly.graph_objects as go

from steerlens.explorer.elements import Plot, Status, button, row
from steerlens.explorer.evidence import KINDS, LayerEvidence
from steerlens.views.theme import GREY

__all__ = ["CurvesView"]

_HERE = "layer of the slider"
# Pixels of a row of panels, and of what is around them.
_PANEL, _AROUND = 150, 80


class CurvesView:
    """The curves of one source.

    Args:
        picked: Called with the layer that was clicked.

    Attributes:
        view: The widget.
        plot: The curves.
        gathers: Whether evidence is to be gathered.
        caption: What is known, and what is computed.
    """

    def __init__(self, picked: Callable[[int], None]) -> None:
        self._picked = picked
        self.plot = Plot(self._clicked)
        self.gathers = w.Checkbox(
            True,
            description="gather evidence about layers",
            indent=False,
            layout={"width": "auto"},
        )
        self._best, self.caption = row([]), Status()
        self.view = w.VBox([self.gathers, self.plot, self._best, self.caption])
        self._layer = 0
        self._state: Any = None

    def clear(self) -> None:
        """Show nothing."""
        self._state, self._best.children = None, ()
        self.plot.show(None)
        self.caption.value = ""

    def drawn(self, evidence: LayerEvidence) -> go.Figure | None:
        """The curves of what is known of a source; ``None`` where nothing is, or nothing new."""
        state = evidence, evidence.n_left
        if state == self._state:
            return None
        self._state = state
        ranking, height = evidence.ranking, 2
        if ranking is not None:
            figure, height = ranking.plot(), -(-len(ranking.kinds) // 2)
        elif evidence.fitted.task is None:  # of a vector file only the vector is known
            figure = evidence.fitted.vector.plot()
        else:
            return None
        figure.add_vline(x=0, line={"color": GREY, "width": 1.5}, name=_HERE)
        figure.update_layout(
            height=_AROUND + _PANEL * height, hovermode="x", margin={"l": 40, "r": 8, "b": 36}
        )
        return figure

    def show(self, evidence: LayerEvidence, figure: go.Figure | None) -> None:
        """Show what is known of a source, as it was drawn."""
        if figure is not None:
            self._draw(figure)
        self._best.children = [
            button(
                f"layer {best}: best {KINDS[kind]}",
                partial(self._picked, best),
                f"steer at layer {best}",
            )
            for kind, best in evidence.best_layers().items()
        ]
        self.caption.value = _caption(evidence)

    def mark(self, layer: int) -> None:
        """Mark the layer of the slider."""
        self._layer = layer
        if self.plot.figure is not None:
            self._draw(self.plot.figure)

    def _draw(self, figure: go.Figure) -> None:
        figure.update_shapes({"x0": self._layer, "x1": self._layer}, selector={"name": _HERE})
        self.plot.show(figure)

    def _clicked(self, _trace: int, _index: int, layer: Any, _value: Any) -> None:
        if isinstance(layer, int | float):
            self._picked(int(layer))


def _caption(evidence: LayerEvidence) -> str:
    said = []
    if evidence.separability is not None:
        said.append(f"{evidence.separability.n_pairs} pairs, a quick look; click a layer")
        said += evidence.separability.notices[:1]
    said += [f"no {KINDS[kind]}: {reason}" for kind, reason in evidence.missing.items()]
    if evidence.awaited:
        said.append(f"{KINDS[evidence.awaited]} is being computed …")
    return "\n".join(said)
