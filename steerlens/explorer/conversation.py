"""The explorer's conversation: a system message, earlier turns, and the user's next message."""

import html
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from steerlens.errors import SteerlensError
from steerlens.models.conversations import Conversation, Message, conversation_of

__all__ = ["ConversationControls"]


class ConversationControls:
    """Widgets for a conversation.

    Attributes:
        view: All of them.
        system: A system message of your own.
        prompt: The user's next message. A conversation pasted here as JSON takes the place of what
            there is.
        turns: The messages before it, without the system's.
    """

    def __init__(self, ipywidgets: Any, changed: Callable[[Any], None]) -> None:
        w = ipywidgets
        wide = {
            "layout": w.Layout(width="48em", max_width="98%"),
            "style": {"description_width": "6em"},
        }
        self.system = w.Text(
            "", description="system", placeholder="the model's", continuous_update=False, **wide
        )
        self.prompt = w.Text(
            "Tell me about Rome.",
            description="prompt",
            placeholder="your next message",
            continuous_update=False,
            **wide,
        )
        self.turns: Conversation = ()
        self._changed = changed
        self._shown = w.HTML()
        self._anew = w.Button(description="new conversation", tooltip="without the earlier turns")
        self._anew.on_click(lambda _: self.ask(self._with_system([])))
        self._earlier = w.VBox(
            [self._shown, self._anew], layout=w.Layout(display="none", max_width="98%")
        )
        self.system.observe(changed, "value")
        self.prompt.observe(self._typed, "value")
        self.view = w.VBox([self.system, self._earlier, self.prompt])

    def ask(self, messages: Iterable[Mapping[str, str]]) -> None:
        """Set the widgets to a conversation; where it does not end with a user's, type the next.

        Raises:
            ModelError: As `steerlens.models.conversations.conversation_of`.
        """
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
        self._changed(None)

    def reply_to(self, prompt: str, answer: str) -> None:
        """Keep what was asked and answered as earlier turns; the next message is yet to be typed.

        Raises:
            ModelError: The answer is blank.
        """
        turns = [Message(role="user", content=prompt), Message(role="assistant", content=answer)]
        self.ask(self._with_system([*self.turns, *turns]))

    def _with_system(self, turns: list[Mapping[str, str]]) -> list[Mapping[str, str]]:
        system = self.system.value
        return [Message(role="system", content=system), *turns] if system.strip() else turns

    def _typed(self, change: Any) -> None:
        text = self.prompt.value.strip()
        if text.startswith("[{"):
            try:
                self.ask(json.loads(text))
                return
            except (ValueError, SteerlensError):
                pass  # a text that looks like one
        self._changed(change)


def _turn(message: Mapping[str, str]) -> str:
    style = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.4;max-width:48em"
    content = html.escape(message["content"])
    return f"<div dir='auto' style='{style}'><b>{message['role']}</b> {content}</div>"
