"""A row on its way through the engine, and what it ends with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerlens.engine.sampling import Rule
from steerlens.steering.interventions import Steering

__all__ = ["Choose", "FinishReason", "Row", "advance", "choose_tokens", "out_of_memory"]

FinishReason = Literal["stop", "stop_text", "length", "non-finite"]


@dataclass(eq=False)
class Row:
    """One prompt on its way through the engine.

    Attributes:
        index: The caller's number for it.
        tokens: Prompt token ids.
        steering: Its interventions.
        max_new_tokens: Longest response, in tokens.
        rule: How its tokens are chosen; ``None`` for the greatest logit.
        seed: Of the stream it draws from.
        produced: Response tokens so far.
        shares: Where the strength is adaptive, the share of it left at each step so far.
        reason: Why it ended; ``None`` while it has not.
    """

    index: int
    tokens: tuple[int, ...]
    steering: Steering | None
    max_new_tokens: int
    rule: Rule | None = None
    seed: int = 0
    produced: list[int] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    reason: FinishReason | None = None

    @cached_property
    def threshold(self) -> float:
        """Of its adaptive strength; 0 for a fixed one."""
        return self.steering.adaptive if self.steering is not None else 0.0

    @cached_property
    def stream(self) -> torch.Generator:
        """What it draws from."""
        return torch.Generator().manual_seed(self.seed)

    def restart(self) -> None:
        """Begin anew: no token produced, and none drawn."""
        self.produced.clear()
        self.shares.clear()
        self.__dict__.pop("stream", None)

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


Choose = Callable[[Float[Tensor, "row vocab"], Sequence[Row]], Int[Tensor, "row"]]
"""Picks the next tokens of rows from their logits."""


def choose_tokens(logits: Float[Tensor, "row vocab"], rows: Sequence[Row]) -> Int[Tensor, "row"]:
    """The next token of each row, by its own rule."""
    groups = _by_rule(rows)
    if len(groups) == 1:
        return _chosen(logits, rows)
    following = torch.empty(len(rows), dtype=torch.long, device=logits.device)
    for places in groups:
        at = torch.tensor(places, device=logits.device)
        following[at] = _chosen(logits[at], [rows[i] for i in places])
    return following


def advance(
    logits: Float[Tensor, "row vocab"], rows: Sequence[Row], choose: Choose, ends: frozenset[int]
) -> Int[Tensor, "row"]:
    """Add the chosen token to each row, and end those that are done; gives the tokens."""
    following = choose(logits, rows)
    # With NaN among a row's logits its chosen one is NaN.
    finite = torch.isfinite(logits.gather(-1, following[:, None])[:, 0]).tolist()
    for row, token, sound in zip(rows, following.tolist(), finite, strict=True):
        row.take(token, sound, ends)
    for places in _by_rule(rows):
        rule = rows[places[0]].rule
        if rule is not None and rule.decoding.stop:
            _stop([rows[i] for i in places], rule)
    return following


def _by_rule(rows: Sequence[Row]) -> list[list[int]]:
    """Places of the rows that share a rule."""
    groups: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(id(row.rule), []).append(i)
    return list(groups.values())


def _chosen(logits: Float[Tensor, "row vocab"], rows: Sequence[Row]) -> Int[Tensor, "row"]:
    """For rows that share a rule."""
    if (rule := rows[0].rule) is None:
        # max finds the same index as argmax in a quarter of the time (2 ms for 96 × 49,152).
        return logits.max(-1).indices
    tokens = [[*row.tokens, *row.produced] for row in rows]
    return rule.chosen(logits, tokens, [row.stream for row in rows])


def _stop(rows: Sequence[Row], rule: Rule) -> None:
    """End the rows whose last token completes a stop text."""
    # One that is as long as it may be has not ended by itself yet.
    growing = [row for row in rows if row.produced and row.reason in (None, "length")]
    stopped = rule.stopped([[*row.tokens, *row.produced] for row in growing]) if growing else []
    for row, has_stopped in zip(growing, stopped, strict=True):
        if has_stopped:
            row.reason = "stop_text"


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left, on whatever device."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        "allocate memory" in str(error) or "out of memory" in str(error)
    )
