"""The explorer's conversation: a system message, earlier turns, and the user's next messages."""

import html
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ipywidgets as w

from steerlens.errors import SteerlensError
from steerlens.explorer.elements import WIDE, button, row
from steerlens.models.conversations import Conversation, Message, conversation_of

__all__ = ["ConversationControls"]


class ConversationControls:
    """Widgets for a conversation.

    Args:
        changed: Called when something has changed.
        answered: Gives the prompt last answered with its answer, if there is one.

    Attributes:
        view: All of them.
        system: A system message of your own.
        prompts: The user's messages, each answered by itself.
        follows: Whether the next message goes on from the last answer.
        turns: The messages before the prompts, without the system's.
    """

    def __init__(
        self,
        changed: Callable[[Any], None],
        answered: Callable[[], tuple[str, str] | None] = lambda: None,
    ) -> None:
        self.system = w.Text(
            "", description="system", placeholder="the model's", continuous_update=False, **WIDE
        )
        self.prompts: list[Any] = []
        self.turns: Conversation = ()
        self._changed, self._answered = changed, answered
        self._shown = w.HTML()
        self._anew = button(
            "new conversation", lambda: self.ask(self._with_system([])), "without the earlier turns"
        )
        self._earlier = w.VBox(
            [self._shown, self._anew], layout={"display": "none", "max_width": "98%"}
        )
        self.follows = w.Checkbox(
            False,
            description="chat: the next message goes on from the last answer",
            indent=False,
            layout={"width": "auto"},
        )
        self._more = button("add a prompt", self.add, "answer several prompts at once")
        self._fewer = button("remove the last", self.remove, "one prompt less")
        self._asked = w.VBox()
        self.system.observe(changed, "value")
        self._new("Tell me about Rome.")
        self.view = w.VBox(
            [
                self.system,
                self._earlier,
                self._asked,
                row([self._more, self._fewer, self.follows]),
            ]
        )

    @property
    def prompt(self) -> Any:
        """The widget of the first message."""
        return self.prompts[0]

    @property
    def texts(self) -> tuple[str, ...]:
        """The messages that are not blank."""
        return tuple(box.value for box in self.prompts if box.value.strip())

    def add(self, text: str = "") -> None:
        """One prompt more."""
        self._new(text)
        if text:
            self._changed(None)

    def remove(self) -> None:
        """Without the last prompt; the first stays."""
        if len(self.prompts) > 1:
            was_blank = not self.prompts.pop().value.strip()
            self._show_prompts()
            if not was_blank:
                self._changed(None)

    def ask(self, messages: Iterable[Mapping[str, str]]) -> None:
        """Set the widgets to a conversation; where it does not end with a user's, type the next.

        Raises:
            ModelError: As `steerlens.models.conversations.conversation_of`.
        """
        self._set(messages)
        self._changed(None)

    def reply_to(self, prompt: str, answer: str) -> None:
        """Keep what was asked and answered as earlier turns; the next message is yet to be typed.

        Raises:
            ModelError: The answer is blank.
        """
        self.ask(self._with_system([*self.turns, *_turns(prompt, answer)]))

    def _set(self, messages: Iterable[Mapping[str, str]]) -> None:
        listed = list(messages)
        said = conversation_of(listed, "the conversation", to_answer=False) if listed else ()
        has_system = bool(said) and said[0]["role"] == "system"
        asks = bool(said) and said[-1]["role"] == "user"
        self.turns = tuple(said[has_system : len(said) - asks])
        # One change, not one per widget.
        self.system.unobserve(self._changed, "value")
        self.prompt.unobserve(self._typed, "value")
        self.system.value = said[0]["content"] if has_system else ""
        self.prompt.value = said[-1]["content"] if asks else ""
        self.system.observe(self._changed, "value")
        self.prompt.observe(self._typed, "value")
        self._shown.value = "".join(map(_turn, self.turns))
        self._earlier.layout.display = "" if self.turns else "none"

    def _with_system(self, turns: list[Mapping[str, str]]) -> list[Mapping[str, str]]:
        system = self.system.value
        return [Message(role="system", content=system), *turns] if system.strip() else turns

    def _new(self, text: str) -> None:
        box = w.Text(
            text,
            description=f"prompt {len(self.prompts) + 1}" if self.prompts else "prompt",
            placeholder="your next message",
            continuous_update=False,
            **WIDE,
        )
        box.observe(self._typed, "value")
        self.prompts.append(box)
        self._show_prompts()

    def _show_prompts(self) -> None:
        self._asked.children = tuple(self.prompts)
        self._fewer.layout.display = "" if len(self.prompts) > 1 else "none"
        self.follows.layout.display = "" if len(self.prompts) == 1 else "none"

    def _typed(self, change: Any) -> None:
        text = change["new"].strip()
        if text.startswith("[{"):
            try:
                self.ask(json.loads(text))
                return
            except (ValueError, SteerlensError):
                pass  # a text that looks like one
        last = self._answered() if text and self.follows.value and len(self.prompts) == 1 else None
        if last is not None and last[1].strip():
            turns = [*self.turns, *_turns(*last), Message(role="user", content=change["new"])]
            self._set(self._with_system(turns))
        self._changed(change)


def _turns(prompt: str, answer: str) -> list[Mapping[str, str]]:
    return [Message(role="user", content=prompt), Message(role="assistant", content=answer)]


def _turn(message: Mapping[str, str]) -> str:
    style = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.4;max-width:48em"
    content = html.escape(message["content"])
    return f"<div dir='auto' style='{style}'><b>{message['role']}</b> {content}</div>"
