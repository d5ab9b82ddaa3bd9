"""Pieces on their way to workers: each direction and each prompt is sent once, rows refer to it.

A piece of 192 rows names few directions, and the same ones come back in piece after piece. `pack`
takes them out of the interventions and gives each to `store` the first time it is seen; `unpack`
puts them back. Directions are told apart by their bytes. Prompts come back as well: a search asks
the same ones under every candidate. `pack_prompts` sends those not sent before as one bundle, and
says of each row where its prompt is. `Sent` does both for the pool, and remembers what went out.

>>> import torch
>>> from steerlens.steering.operations import Intervention
>>> one = Steering((Intervention(3, torch.eye(2)[0], 1.0, 2.0, "add", 1.0, "all"),))
>>> kept = {}
>>> rows = pack([one, None, one], kept.setdefault)
>>> len(kept), unpack(rows, kept)[2].interventions[0].direction
(1, tensor([1., 0.]))
>>> known, bundles = {}, {}
>>> first = pack_prompts(["a", "b", "a"], known, bundles.setdefault)
>>> again = pack_prompts(["b", "c"], known, bundles.setdefault)
>>> list(bundles.values()), unpack_prompts(again, bundles)
([('a', 'b'), ('c',)], ['b', 'c'])
"""

import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch

from steerlens.behaviour.answers import Asked, Piece
from steerlens.steering.interventions import Steering
from steerlens.steering.operations import Intervention

__all__ = ["Packed", "Places", "Sent", "pack", "pack_prompts", "unpack", "unpack_prompts"]

Packed = list[list[tuple[str, dict[str, Any]]] | None]
# Of each row, the bundle that its prompt is in, and where in it.
Places = list[tuple[str, int]]
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
            direction = one.unit.detach().cpu().contiguous()
            raw: Any = direction.view(torch.uint8).numpy()
            name = hashlib.sha256(f"{direction.dtype}".encode() + raw.tobytes()).hexdigest()[:24]
            store(name, direction)
            row.append((name, {field: getattr(one, field) for field in _PLAIN}))
        packed.append(row)
    return packed


def unpack(packed: Packed, directions: Mapping[str, Any]) -> list[Steering | None]:
    """What `pack` was given."""
    return [
        None
        if row is None
        else Steering(tuple(Intervention(direction=directions[name], **rest) for name, rest in row))
        for row in packed
    ]


def pack_prompts(
    prompts: Sequence[Asked],
    known: dict[Asked, tuple[str, int]],
    store: Callable[[str, tuple[Asked, ...]], Any],
) -> Places:
    """Prompts as places in bundles.

    Args:
        prompts: One a row, as text or as token ids.
        known: Where prompts sent before are; those sent now are added.
        store: Takes the bundle of those that are new, under its name.
    """
    new = tuple(prompt for prompt in dict.fromkeys(prompts) if prompt not in known)
    if new:
        name = "prompts-" + hashlib.sha256(json.dumps(new).encode()).hexdigest()[:24]
        store(name, new)
        known.update({prompt: (name, place) for place, prompt in enumerate(new)})
    return [known[prompt] for prompt in prompts]


def unpack_prompts(places: Places, bundles: Mapping[str, Any]) -> list[Asked]:
    """What `pack_prompts` was given."""
    return [bundles[name][place] for name, place in places]


class Sent:
    """What the object store has been given; several threads may send.

    Args:
        put: Gives an object to the store, and a reference to it back (``ray.put``).

    Attributes:
        n_directions: Distinct directions given.
    """

    def __init__(self, put: Callable[[Any], Any]) -> None:
        self._put = put
        self._references: dict[str, Any] = {}
        self._known: dict[Asked, tuple[str, int]] = {}
        self._lock = threading.Lock()
        self.n_directions = 0

    @property
    def n_prompts(self) -> int:
        """Distinct prompts given."""
        return len(self._known)

    def packed(self, piece: Piece) -> tuple[Places, Packed, dict[str, Any]]:
        """Prompts and steerings of a piece, and references to what they name."""
        named: dict[str, Any] = {}

        def store(name: str, direction: torch.Tensor) -> None:
            if name not in self._references:
                self._references[name] = self._put(direction.numpy())
                self.n_directions += 1
            named[name] = self._references[name]

        def bundle(name: str, prompts: tuple[Asked, ...]) -> None:
            self._references[name] = self._put(prompts)

        with self._lock:
            steerings = pack([question.steering for question in piece.questions], store)
            places = pack_prompts(piece.asked, self._known, bundle)
            named |= {name: self._references[name] for name, _ in places}
        return places, steerings, named
