"""Evidence about layers beside the sliders: curves to be clicked, and best layers to be picked."""

from collections.abc import Callable
from functools import partial
from typing import Any

import ipywidgets as w
import plotly.graph_objects as go

from steerlens.explorer.elements import Status, button, row
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
        figure: The curves; ``None`` until some are known.
        gathers: Whether evidence is to be gathered.
        caption: What is known, and what is computed.
    """

    def __init__(self, picked: Callable[[int], None]) -> None:
        self._picked = picked
        self.figure: Any = None
        self.gathers = w.Checkbox(
            True,
            description="gather evidence about layers",
            indent=False,
            layout={"width": "auto"},
        )
        self._figure, self._best, self.caption = w.VBox(), row([]), Status()
        self.view = w.VBox([self.gathers, self._figure, self._best, self.caption])
        self._layer = 0
        self._state: Any = None

    def clear(self) -> None:
        """Show nothing."""
        self.figure = self._state = None
        self._figure.children = self._best.children = ()
        self.caption.value = ""

    def drawn(self, evidence: LayerEvidence) -> Any:
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
        return go.FigureWidget(figure)

    def show(self, evidence: LayerEvidence, figure: Any) -> None:
        """Show what is known of a source, as it was drawn."""
        if figure is not None:
            for trace in figure.data:
                if trace.hoverinfo != "skip":
                    trace.on_click(self._clicked)
            self.figure, self._figure.children = figure, (figure,)
            self.mark(self._layer)
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
        if self.figure is not None:
            self.figure.update_shapes({"x0": layer, "x1": layer}, selector={"name": _HERE})

    def _clicked(self, _trace: Any, points: Any, _state: Any) -> None:
        if points.xs:
            self._picked(int(points.xs[0]))


def _caption(evidence: LayerEvidence) -> str:
    said = []
    if evidence.separability is not None:
        said.append(f"{evidence.separability.n_pairs} pairs, a quick look; click a layer")
        said += evidence.separability.notices[:1]
    said += [f"no {KINDS[kind]}: {reason}" for kind, reason in evidence.missing.items()]
    if evidence.awaited:
        said.append(f"{KINDS[evidence.awaited]} is being computed …")
    return "\n".join(said)
