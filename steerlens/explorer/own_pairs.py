"""Contrast pairs typed into the explorer, as a task."""

from collections.abc import Callable
from typing import Any

import ipywidgets as w

from steerlens.explorer.elements import NARROW, button, section
from steerlens.tasks import Task
from steerlens.tasks.pairs import ContrastSet

__all__ = ["OwnPairs"]


class OwnPairs:
    """Widgets for pairs of one's own: line *i* of both boxes is a pair.

    Args:
        use: Called when they are to be used.

    Attributes:
        view: The section.
        name: The task's id.
        instructed: Prompts with what asks for the behaviour.
        uninstructed: The same prompts without.
    """

    def __init__(self, use: Callable[[], Any]) -> None:
        self.name = w.Text("own pairs", description="name", **NARROW)
        box: dict[str, Any] = {
            "layout": {"width": "auto", "height": "7em"},
            "style": {"description_width": "6em"},
        }
        self.instructed = w.Textarea(
            description="with", placeholder="a prompt per line, instruction included", **box
        )
        self.uninstructed = w.Textarea(
            description="without", placeholder="the same prompts without the instruction", **box
        )
        used = button("use these pairs", use, "fit the vector on them")
        self.view = section(
            "pairs of your own", [self.name, self.instructed, self.uninstructed, used]
        )

    @property
    def task(self) -> Task:
        """The task of these pairs.

        Raises:
            PairsError: The boxes hold different numbers of prompts, or none.
            SteerlensError: A name that is no id.
        """
        sides = [_lines(box.value) for box in (self.instructed, self.uninstructed)]
        return Task.from_pairs(ContrastSet.from_prompts(*sides), id=self.name.value.strip())


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]
