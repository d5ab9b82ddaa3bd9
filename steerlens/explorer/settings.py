"""A panel of controls for one setting of the steering."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any, get_args

import ipywidgets as w

from steerlens.explorer.elements import NARROW, float_slider, layer_slider, row
from steerlens.explorer.trials import Setting
from steerlens.steering.operations import SCOPES, Operation

__all__ = ["SettingControls"]


class SettingControls:
    """Widgets for a setting, one for each of its fields.

    Attributes:
        view: All of them.
        source: What is steered by.
        layer: A slider.
        strength: A slider.
        operation: A list.
        scope: A list one may also type in.
        adaptive: A number.
    """

    def __init__(
        self, n_layers: int, sources: list[str], changed: Callable[[Any], None], name: str
    ) -> None:
        self.source = w.Combobox(
            options=sources,
            description=name,
            placeholder="a task, an instruction in your own words, or a file of a vector or a task",
            continuous_update=False,
            layout={"width": "auto"},
            style=NARROW["style"],
        )
        self.layer = layer_slider(n_layers * 4 // 5, n_layers)
        self.strength = float_slider(1.0, -4, 4, 0.25, "strength")
        self.operation = w.Dropdown(
            options=get_args(Operation), value="set_projection", description="operation", **NARROW
        )
        self.scope = w.Combobox(
            options=SCOPES[:3],
            value="all",
            placeholder="first:8",
            description="scope",
            continuous_update=False,
            **NARROW,
        )
        self.adaptive = w.BoundedFloatText(
            0.0, min=0, max=1, step=0.05, description="adaptive", **NARROW
        )
        self._changed = changed
        self._widgets = {field.name: getattr(self, field.name) for field in fields(Setting)}
        self._observe()
        self.view = w.VBox(
            [
                self.source,
                self.layer,
                self.strength,
                row([self.operation, self.scope, self.adaptive]),
            ]
        )

    @property
    def value(self) -> Setting:
        """What they are set to."""
        values = {name: widget.value for name, widget in self._widgets.items()}
        values["source"] = values["source"].strip()
        return Setting(**values)

    def set(self, setting: Setting) -> None:
        """Set all of them, as one change."""
        for name, widget in self._widgets.items():
            widget.unobserve(self._changed, "value")
            widget.value = getattr(setting, name)
        self._observe()
        self._changed(None)

    def _observe(self) -> None:
        for widget in self._widgets.values():
            widget.observe(self._changed, "value")
