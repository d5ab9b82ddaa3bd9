"""The explorer's decoding controls: one widget for each part of a `Decoding`."""

from collections.abc import Callable
from typing import Any

import ipywidgets as w

from steerlens.engine.sampling import Decoding
from steerlens.explorer.elements import row, section

__all__ = ["DecodingControls"]


class DecodingControls:
    """Widgets for a decoding.

    Attributes:
        view: The section.
        widgets: By the part of `Decoding` that each sets; ``stop`` takes a text per line.
        max_new_tokens: Longest answer.
    """

    def __init__(self, changed: Callable[[Any], None]) -> None:
        number: dict[str, Any] = {
            "layout": {"width": "12em"},
            "style": {"description_width": "6.5em"},
        }
        self.max_new_tokens = w.BoundedIntText(48, min=1, max=512, description="tokens", **number)
        self.widgets: dict[str, Any] = {
            "temperature": w.BoundedFloatText(0.0, min=0, max=10, step=0.1, **number),
            "top_p": w.BoundedFloatText(1.0, min=0.01, max=1, step=0.05, **number),
            "top_k": w.BoundedIntText(0, min=0, max=10**6, **number),
            "min_p": w.BoundedFloatText(0.0, min=0, max=1, step=0.05, **number),
            "repetition_penalty": w.BoundedFloatText(1.0, min=0.1, max=10, step=0.05, **number),
            "seed": w.IntText(0, **number),
            "samples": w.BoundedIntText(1, min=1, max=16, **number),
            "stop": w.Textarea(placeholder="stop at, a text per line", continuous_update=False),
        }
        for name, widget in self.widgets.items():
            widget.description = "repetition" if name == "repetition_penalty" else name
            widget.observe(changed, "value")
        self.max_new_tokens.observe(changed, "value")
        self.widgets["stop"].layout = {"width": "20em", "height": "2.5em"}
        self.view = section("decoding", [row([self.max_new_tokens, *self.widgets.values()])])

    @property
    def value(self) -> Decoding:
        """The decoding they say.

        Raises:
            SteerlensError: As `Decoding`: a part for drawn tokens at temperature 0.
        """
        values = {name: widget.value for name, widget in self.widgets.items()}
        values["stop"] = tuple(line for line in values["stop"].split("\n") if line)
        return Decoding(**values)
