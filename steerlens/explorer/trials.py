"""What the explorer tries: a question, answered under one or more settings of the steering."""

import re
from dataclasses import dataclass

from steerlens.engine.sampling import GREEDY, Decoding
from steerlens.models.conversations import Conversation, Prompt, continued, shown
from steerlens.steering.interventions import Steering
from steerlens.vectors import SteeringVector

__all__ = ["Question", "Setting", "Trial"]


@dataclass(frozen=True)
class Setting:
    """What one panel of controls is set to.

    Attributes:
        source: Where the vector comes from; see `steerlens.explorer.sources`.
        layer: Block whose output is steered.
        operation: ``"add"``, ``"set_projection"`` or ``"ablate"``.
        strength: Multiplies the change; see `SteeringVector.at`.
        scope: ``"all"``, ``"prompt"``, ``"response"`` or ``"first:N"``.
        adaptive: Threshold of a strength lowered while decoding; 0 for a fixed one.
    """

    source: str
    layer: int
    operation: str = "set_projection"
    strength: float = 1.0
    scope: str = "all"
    adaptive: float = 0.0

    def steering(self, vector: SteeringVector) -> Steering:
        """The vector, steered as this setting says.

        Raises:
            SteeringError: As `SteeringVector.at`.
        """
        return vector.at(
            self.layer, self.operation, self.strength, self.scope, adaptive=self.adaptive
        )

    def describe(self) -> str:
        """In words.

        >>> Setting("detectable_format:title", 20).describe()
        'detectable_format:title: set_projection ×1 at layer 20 on all'
        """
        adaptive = f", adaptive {self.adaptive:g}" if self.adaptive else ""
        return (
            f"{self.source}: {self.operation} ×{self.strength:g} at layer {self.layer} on "
            f"{self.scope}{adaptive}"
        )


@dataclass(frozen=True)
class Question:
    """What is answered, and how.

    Attributes:
        prompts: The user's messages, each answered by itself; token ids where one is a list of
            whole numbers, ``[1, 9690]``.
        system: A system message of your own; empty for the model's.
        turns: Messages between it and the prompts.
        decoding: How answers are decoded.
        max_new_tokens: Longest answer, in tokens.
    """

    prompts: tuple[str, ...]
    system: str = ""
    turns: Conversation = ()
    decoding: Decoding = GREEDY
    max_new_tokens: int = 48

    @property
    def asked(self) -> tuple[Prompt, ...]:
        """Each prompt, after the system message and the earlier turns."""
        system = [{"role": "system", "content": self.system}] if self.system.strip() else []
        before = (*system, *self.turns)
        return tuple(continued(before, _token_ids(text) or text) for text in self.prompts)

    def describe(self, prompt: int = 0) -> str:
        """One of its prompts, with the decoding where it is not greedy."""
        words = repr(shown(self.asked[prompt]))
        return words if self.decoding == GREEDY else f"{words}; {self.decoding.describe()}"


@dataclass(frozen=True)
class Trial:
    """A question with the settings it is answered under, side by side."""

    question: Question
    settings: tuple[Setting, ...]


def _token_ids(text: str) -> list[int]:
    """Token ids that a text spells; none for any other text.

    >>> _token_ids("[1, 9690]"), _token_ids("[1, a]"), _token_ids("[]")
    ([1, 9690], [], [])
    """
    match = re.fullmatch(r"\s*\[([\d\s,]+)\]\s*", text)
    return [int(part) for part in match[1].split(",") if part.strip()] if match else []
