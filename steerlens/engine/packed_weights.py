"""Weights in the order that the CPU's matrix kernels want, kept beside a model.

oneDNN rearranges a weight matrix before it multiplies with it, which costs a third of the product
or more in a step of decoding. `PackedWeights` holds copies that are rearranged once, and joins
matrices that read the same input (queries, keys and values; gate and up) into one. The products
have the same bits. On one core of a processor without AMX, reading weights from memory, 1 row:
576 × 3072 in 310 instead of 456 µs, 49,152 × 576 in 3.7 instead of 6.4 ms.

**Whether they are used is measured** (`steerlens.engine.kernels`): with AMX they win nothing. They
are copies, so they are only made where they take at most an eighth of the free memory. A model's
weights may be changed at any time, also through ``parameter.data``, which torch does not count; so
each copy is compared with a checksum of its weights at the beginning of every call (20 ms for 135M
parameters, where packing takes 150).
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from steerlens.errors import SteerlensError
from steerlens.models.adapter.pytorch import reordered_product, reordered_weight

__all__ = ["PackedWeights", "can_pack", "checksum"]

_PACKED = "steerlens_packed_weights"
# The number of rows that the order is chosen for; other numbers work too, to the same bits.
_ROWS = 96
# Knuth's multiplier (MMIX), as in `steerlens.models.fingerprint`.
_MULTIPLIER = 6364136223846793005
_WORD = 8


@dataclass(frozen=True, eq=False)
class _Copy:
    """One rearranged matrix, and what its weights were then."""

    checksums: tuple[Any, ...]
    weight: Tensor
    bias: Tensor | None


class PackedWeights:
    """The rearranged copies of one model's weights, by the linear layers they are made from."""

    def __init__(self) -> None:
        self._copies: dict[tuple[int, ...], _Copy] = {}
        self._checked: set[tuple[int, ...]] = set()

    @classmethod
    def of(cls, root: nn.Module) -> "PackedWeights":
        """Those of a Hugging Face model, which keeps them; every copy is checked anew."""
        packed: PackedWeights = root.__dict__.setdefault(_PACKED, cls())
        packed._checked.clear()
        return packed

    def __reduce__(self) -> tuple[type["PackedWeights"], tuple[()]]:
        """A copied model packs its own."""
        return PackedWeights, ()

    def __bool__(self) -> bool:
        return bool(self._copies)

    def clear(self) -> None:
        """Give the memory back."""
        self._copies.clear()

    def product(self, linears: Sequence[nn.Linear], inputs: Tensor) -> tuple[Tensor]:
        """What linear layers put out for one input, side by side in one tensor."""
        copy = self.copy_of(linears)
        return (reordered_product(inputs, copy.weight, copy.bias),)

    def copy_of(self, linears: Sequence[nn.Linear]) -> _Copy:
        """The copy of these layers' weights as they are now."""
        key = tuple(id(linear) for linear in linears)
        if key in self._checked:
            return self._copies[key]
        checksums = tuple(checksum(linear.weight) for linear in linears)
        known = self._copies.get(key)
        if known is None or known.checksums != checksums:
            self._copies[key] = known = _packed(linears, checksums)
        elif known.bias is not None:  # biases are short, so they are always read anew
            known.bias.copy_(_joined_bias(linears))
        self._checked.add(key)
        return known


def _packed(linears: Sequence[nn.Linear], checksums: tuple[Any, ...]) -> _Copy:
    with torch.inference_mode():
        weights = [linear.weight for linear in linears]
        joined = weights[0] if len(weights) == 1 else torch.cat(weights)
        has_bias = any(linear.bias is not None for linear in linears)
        bias = _joined_bias(linears) if has_bias else None
        return _Copy(checksums, reordered_weight(joined, _ROWS), bias)


def _joined_bias(linears: Sequence[nn.Linear]) -> Tensor:
    return torch.cat(
        [
            linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias
            for linear in linears
        ]
    )


def checksum(weight: Tensor) -> tuple[Any, ...]:
    """Shows an edit of a matrix: sums of its rows as 64-bit integers, weighted by their places."""
    flat = weight.detach().view(len(weight), -1)
    n_bytes = flat.shape[1] * flat.element_size()
    if n_bytes % _WORD or flat.storage_offset() * flat.element_size() % _WORD:
        flat = torch.nn.functional.pad(flat, (0, -flat.shape[1] % _WORD)).contiguous()
    sums = flat.view(torch.int64).sum(1)
    places = torch.arange(1, 2 * len(sums), 2, device=sums.device) * _MULTIPLIER
    return (weight.data_ptr(), weight.dtype, tuple(weight.shape), int((sums * places).sum()))


def can_pack(linear: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a layer is a plain one whose weight can be rearranged."""
    return (
        type(linear) is nn.Linear
        and "forward" not in vars(linear)
        and linear.weight.dim() == 2
        and linear.weight.device.type == "cpu"
        and linear.weight.is_contiguous()
        and _works(linear.weight.dtype)
    )


@functools.cache
def _works(dtype: torch.dtype) -> bool:
    """Whether this build multiplies with rearranged weights of this dtype, to the same bits."""
    if dtype != torch.bfloat16:
        return False
    weight = torch.arange(48 * 32, dtype=torch.float32).sin().view(48, 32).to(dtype)
    inputs = torch.arange(3 * 32, dtype=torch.float32).cos().view(3, 1, 32).to(dtype)
    try:
        with torch.inference_mode():
            product = reordered_product(inputs, reordered_weight(weight, _ROWS), None)
            return torch.equal(product, nn.functional.linear(inputs, weight))
    except (SteerlensError, NotImplementedError, RuntimeError, TypeError):
        return False
