"""Token rows as batches: which rows together, padded on which side."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

__all__ = ["common_prefix", "left_padded", "length_batches", "right_padded"]


def length_batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first, so that memory peaks at once.

    >>> list(length_batches([3, 9, 5], batch_size=2))
    [[1, 2], [0]]
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


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


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Length of the beginning that all rows share, short of the shortest row's last token.

    >>> common_prefix([[1, 2, 3, 4], [1, 2, 5], [1, 2, 3]])
    2
    """
    limit = min((len(row) for row in rows), default=1) - 1
    first = rows[0] if rows else ()
    for i in range(limit):
        if any(row[i] != first[i] for row in rows):
            return i
    return max(limit, 0)


def right_padded(
    rows: Sequence[Sequence[int]], device: str | torch.device
) -> Int[Tensor, "row pos"]:
    """Token rows with padding after them, where causal attention never looks."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
