"""A row on its way through the engine, and what it ends with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerlens.steering.interventions import Steering

__all__ = ["Choose", "FinishReason", "Row", "is_sound", "out_of_memory"]

FinishReason = Literal["stop", "length", "non-finite"]
Choose = Callable[[Float[Tensor, "row vocab"], Sequence[int]], Int[Tensor, "row"]]
"""Picks next tokens from logits, given the rows' indices."""


@dataclass(eq=False)
class Row:
    """One prompt on its way through the engine.

    Attributes:
        index: The caller's number for it.
        tokens: Prompt token ids.
        steering: Its interventions.
        max_new_tokens: Longest response, in tokens.
        produced: Response tokens so far.
        reason: Why it ended; ``None`` while it has not.
    """

    index: int
    tokens: tuple[int, ...]
    steering: Steering | None
    max_new_tokens: int
    produced: list[int] = field(default_factory=list)
    reason: FinishReason | None = None

    def take(self, token: int, sound: bool, ends: frozenset[int]) -> None:
        """Add the chosen token, or end; a row that has ended ignores it.

        Args:
            token: The chosen token.
            sound: Whether its logits were finite.
            ends: Token ids that end a response; they are not part of it.
        """
        if self.reason is not None:
            return
        if not sound:
            self.reason = "non-finite"
        elif token in ends:
            self.reason = "stop"
        else:
            self.produced.append(token)
            if len(self.produced) == self.max_new_tokens:
                self.reason = "length"


def is_sound(logits: Float[Tensor, "row vocab"], following: Int[Tensor, "row"]) -> list[bool]:
    """Whether each row's chosen logit is a finite number; with NaN among its logits it is not."""
    return torch.isfinite(logits.gather(-1, following[:, None])[:, 0]).tolist()


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left, on whatever device."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        "allocate memory" in str(error) or "out of memory" in str(error)
    )
