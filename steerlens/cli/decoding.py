"""Options about decoding, which `steer`, `search` and `evaluate` share."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from steerlens.cli.values import count, given, option

if TYPE_CHECKING:
    from steerlens.engine.sampling import Decoding
    from steerlens.models.conversations import Conversation

__all__ = ["DecodingOptions"]

_DRAWN = "of what is drawn from, keep "


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """How answers are decoded, and what they continue."""

    temperature: Annotated[float | None, option("0 is greedy (default)")] = None
    top_p: Annotated[float | None, option(f"{_DRAWN}the smallest set of this probability")] = None
    top_k: Annotated[int | None, option(f"{_DRAWN}this many tokens")] = None
    min_p: Annotated[float | None, option(f"{_DRAWN}this share of the likeliest one's")] = None
    repetition_penalty: Annotated[float | None, option("such as 1.1; 1 is none (default)")] = None
    stop: Annotated[list[str] | None, option("a text that ends an answer; repeat it")] = None
    samples: Annotated[int | None, count("answers per prompt")] = None
    messages: Annotated[
        Path | None,
        option('a conversation that prompts continue: JSON, [{"role": …, "content": …}, …]'),
    ] = None

    def decoding(self, seed: int = 0) -> "Decoding | None":
        """The decoding asked for; None where nothing is."""
        from steerlens.engine.sampling import Decoding

        parts = given(**{name: value for name, value in vars(self).items() if name != "messages"})
        return Decoding(**parts, seed=seed) if parts else None

    def conversation(self) -> "Conversation":
        """The messages of the file."""
        from steerlens.models.conversations import read_conversation

        return () if self.messages is None else read_conversation(self.messages)

    def settings(self, seed: int) -> dict[str, Any]:
        """What is asked for, as settings of searches and evaluations."""
        return given(decoding=self.decoding(seed), conversation=self.conversation() or None)
