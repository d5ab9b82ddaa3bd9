"""Steerings on their way to workers: each direction is sent once, rows refer to it.

A piece of 192 rows names few directions, and the same ones come back in piece after piece. `pack`
takes them out of the interventions and gives each to `store` the first time it is seen; `unpack`
puts them back. Directions are told apart by their bytes.

>>> import torch
>>> from steerlens.steering import Intervention
>>> one = Steering((Intervention(3, torch.ones(2), 1.0, 2.0, "add", 1.0, "all"),))
>>> kept = {}
>>> rows = pack([one, None, one], kept.setdefault)
>>> len(kept), unpack(rows, kept)[2].interventions[0].direction
(1, tensor([1., 1.]))
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch

from steerlens.steering import Intervention, Steering

__all__ = ["pack", "unpack"]

Packed = list[list[tuple[str, dict[str, Any]]] | None]
_PLAIN = tuple(one.name for one in fields(Intervention) if one.name != "direction")


def pack(steerings: Sequence[Steering | None], store: Callable[[str, torch.Tensor], Any]) -> Packed:
    """Steerings as plain data with the names of their directions.

    Args:
        steerings: One a row.
        store: Takes each direction under its name; called again for one seen before.
    """
    packed: Packed = []
    for steering in steerings:
        if steering is None:
            packed.append(None)
            continue
        row = []
        for one in steering.interventions:
            direction = one.direction.detach().cpu().contiguous()
            raw: Any = direction.view(torch.uint8).numpy()
            name = hashlib.sha256(f"{direction.dtype}".encode() + raw.tobytes()).hexdigest()[:24]
            store(name, direction)
            row.append((name, {field: getattr(one, field) for field in _PLAIN}))
        packed.append(row)
    return packed


def unpack(packed: Packed, directions: Mapping[str, torch.Tensor]) -> list[Steering | None]:
    """What `pack` was given."""
    return [
        None
        if row is None
        else Steering(tuple(Intervention(direction=directions[name], **rest) for name, rest in row))
        for row in packed
    ]
