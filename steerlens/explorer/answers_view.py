"""What a trial gave: its answers as a table, and the tokens of one of them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import ipywidgets as w
import plotly.graph_objects as go

from steerlens.effects.run import SteeredRun
from steerlens.explorer.answers import Grid
from steerlens.explorer.answers_table import answers_table
from steerlens.explorer.elements import NARROW, Plot, button, row
from steerlens.explorer.trials import Trial

__all__ = ["AnswersView"]


class AnswersView:
    """The answers to a trial.

    Args:
        reply: Called with the column whose answer the next message goes on from.
        picked: Called with the prompt and the setting whose tokens are wanted.

    Attributes:
        view: The widget.
        texts: The table.
        replies: A button per column.
        shown: Prompt and setting whose tokens are shown.
        strips: Two plots of them.
        details: The numbers of the token that was clicked.
    """

    def __init__(
        self, reply: Callable[[int], Any], picked: Callable[[tuple[int, int]], Any]
    ) -> None:
        self._picked = picked
        self.texts, self.details = w.HTML(), w.HTML()
        self.strips = [Plot(partial(self._show_token, plot)) for plot in range(2)]
        self.replies = [
            button("", partial(reply, column), "go on from this answer") for column in range(3)
        ]
        self.shown = w.Dropdown(options=[], description="tokens of", **NARROW)
        self.shown.observe(self._pick, "value")
        self.view = w.VBox(
            [self.texts, row(self.replies), self.shown, *self.strips, self.details],
        )
        self.clear()

    def clear(self) -> None:
        """Show nothing."""
        self.texts.value = ""
        self.clear_tokens()
        for hidden in (self.shown, *self.replies):
            hidden.layout.display = "none"

    def clear_tokens(self) -> None:
        """Show no tokens."""
        self.show_tokens([None, None])
        self.details.value = ""

    def show_texts(
        self,
        trial: Trial,
        texts: Grid,
        check: Callable[[int, str], bool | None] = lambda column, text: None,
    ) -> None:
        """Show the texts so far, with what the check says of each."""
        self.texts.value = answers_table(trial.question.prompts, _names(trial), texts, check)

    def offer(self, trial: Trial) -> None:
        """Offer what can be done with whole answers: a reply, and the tokens of each."""
        n_prompts, names = len(trial.question.prompts), _names(trial)
        for name, reply in zip(names, self.replies, strict=False):
            reply.description = f"reply to {name}"
            reply.layout.display = "" if n_prompts == 1 else "none"
        places = [(i, j) for i in range(n_prompts) for j in range(len(trial.settings))]
        self.shown.unobserve(self._pick, "value")
        self.shown.options = [
            (f"prompt {i + 1}, {names[j + 1]}" if n_prompts > 1 else names[j + 1], (i, j))
            for i, j in places
        ]
        self.shown.value = places[0]
        self.shown.observe(self._pick, "value")
        self.shown.layout.display = "" if len(places) > 1 else "none"

    def drawn(self, run: SteeredRun) -> list[go.Figure]:
        """Figures of what the steering did to each token; they take a while to make."""
        figures = [run.effects.plot(), run.plot()]
        for figure in figures:
            figure.update_layout(title_subtitle_text="")  # the controls show the steering
        return figures

    def show_tokens(self, figures: Sequence[go.Figure | None]) -> None:
        """Show them."""
        for plot, figure in zip(self.strips, figures, strict=True):
            plot.show(figure)

    def _show_token(self, plot: int, trace: int, index: Any, *_place: Any) -> None:
        # What the strip says on hover: escaped already.
        numbers = self.strips[plot].figure.data[trace].customdata
        if numbers is not None and index is not None:
            self.details.value = str(numbers[index])

    def _pick(self, _: Any) -> None:
        if self.shown.value is not None:
            self._picked(self.shown.value)


def _names(trial: Trial) -> list[str]:
    return ["baseline", "steered"] if len(trial.settings) == 1 else ["baseline", "A", "B"]
