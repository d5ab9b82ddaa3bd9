"""Token rows in batches: which rows together, padded on which side."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

__all__ = [
    "PASS_TOKENS",
    "common_prefix",
    "left_padded",
    "length_batches",
    "packs",
    "right_padded",
]

PASS_TOKENS = 2048
"""Tokens of one pass, padding included: enough to keep the matrix units busy, few enough that
Ctrl-C is answered within a second or two on two cores."""
# Shorter passes are not split off: each has a fixed cost.
_WORTH_A_PASS = 256

Item = TypeVar("Item")


def packs(
    items: Sequence[Item],
    width: Callable[[Item], int],
    most_tokens: int | None = None,
    most_rows: int | None = None,
    n_rows: Callable[[Item], int] = lambda item: 1,
    tight: bool = False,
) -> Iterator[list[Item]]:
    """Items in order, in packs that fit one pass each; a pack has at least one item.

    Args:
        items: What is packed.
        width: Tokens of each of an item's rows.
        most_tokens: Tokens of a pack, padding included.
        most_rows: Rows of a pack.
        n_rows: Rows of an item.
        tight: End a pack that is worth a pass where the next item would be padded to more than one
            and a half times its width.

    >>> list(packs([5, 4, 2, 2], width=lambda n: n, most_tokens=10))
    [[5, 4], [2, 2]]
    """
    pack: list[Item] = []
    rows = widest = 0
    for item in items:
        n, together = width(item), rows + n_rows(item)
        full = most_rows is not None and together > most_rows
        full |= most_tokens is not None and max(widest, n) * together > most_tokens
        full |= tight and widest > 1.5 * n and widest * rows > _WORTH_A_PASS
        if pack and full:
            yield pack
            pack, together, widest = [], n_rows(item), 0
        pack.append(item)
        rows, widest = together, max(widest, n)
    if pack:
        yield pack


def length_batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first, so that memory peaks at once.

    >>> list(length_batches([3, 9, 5], batch_size=2))
    [[1, 2], [0]]
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return packs(order, lengths.__getitem__, most_rows=batch_size)


def common_prefix(rows: Sequence[Sequence[int]], least: int = 1) -> int:
    """Length of the beginning that several rows share, short of the shortest row's last token.

    Args:
        rows: Token ids; for a single row the answer is 0.
        least: A shorter beginning counts as none.

    >>> common_prefix([[1, 2, 3, 4], [1, 2, 5], [1, 2, 3]])
    2
    """
    if len(rows) < 2:
        return 0
    limit = max(min(len(row) for row in rows) - 1, 0)
    first = rows[0]
    shared = next((i for i in range(limit) if any(row[i] != first[i] for row in rows)), limit)
    return shared if shared >= least else 0


def left_padded(
    rows: Sequence[Sequence[int]], device: str | torch.device | None = None, pad_id: int = 0
) -> tuple[Tensor, Tensor]:
    """Token rows as one left-padded batch.

    Returns:
        Token ids and attention mask (1 on real tokens), both ``[batch pos]`` and integer. The pad
        id is never looked at: chat models often share it with the end-of-turn token.

    >>> left_padded([[5, 6], [7]])[0].tolist()
    [[5, 6], [0, 7]]
    """
    width = max(len(row) for row in rows)
    tokens = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for i, row in enumerate(rows):
        tokens[i, width - len(row) :] = torch.tensor(row, dtype=torch.long)
        mask[i, width - len(row) :] = 1
    return tokens.to(device), mask.to(device)


def right_padded(
    rows: Sequence[Sequence[int]], device: str | torch.device
) -> Int[Tensor, "row pos"]:
    """Token rows with padding after them, where causal attention never looks."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
