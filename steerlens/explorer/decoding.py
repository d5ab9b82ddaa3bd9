"""The explorer's row of decoding controls: one widget for each part of a `Decoding`."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from steerlens.engine.sampling import GREEDY, Decoding

__all__ = ["DecodingControls", "changes"]


class DecodingControls:
    """Widgets for a decoding.

    Attributes:
        view: The row.
        widgets: By the part of `Decoding` that each sets; ``stop`` takes a text per line.
    """

    def __init__(self, ipywidgets: Any, changed: Callable[[Any], None]) -> None:
        w = ipywidgets
        number: dict[str, Any] = {"layout": w.Layout(width="12em")}
        number["style"] = {"description_width": "6.5em"}
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
        self.widgets["stop"].layout = w.Layout(width="20em", height="2.5em")
        layout = w.Layout(flex_flow="row wrap", width="50em", max_width="98%")
        self.view = w.Accordion([w.Box(list(self.widgets.values()), layout=layout)])
        self.view.set_title(0, "decoding")

    @property
    def value(self) -> Decoding:
        """The decoding they say.

        Raises:
            SteerlensError: As `Decoding`: a part for drawn tokens at temperature 0.
        """
        values = {name: widget.value for name, widget in self.widgets.items()}
        values["stop"] = tuple(line for line in values["stop"].split("\n") if line)
        return Decoding(**values)


def changes(decoding: Decoding) -> dict[str, Any]:
    """The parts of a decoding that are not the default.

    >>> changes(Decoding(repetition_penalty=1.1))
    {'repetition_penalty': 1.1}
    """
    values = {field.name: getattr(decoding, field.name) for field in fields(decoding)}
    return {name: value for name, value in values.items() if value != getattr(GREEDY, name)}
