"""Weights in the order that the CPU's matrix kernels want, for the time of decoding.

oneDNN rearranges a weight matrix before it multiplies with it, which costs a third of the product
or more in a step of decoding: on two cores in bfloat16 the products of a step over 96 rows take 30
instead of 44 ms with weights rearranged once, to the same bits. `packed_linears` does it for a
model's linear layers, and puts the weights back on leaving, also after an exception or Ctrl-C.

A rearranged weight takes the place of the plain one, so no memory is added, except where a weight
has another use (an unembedding tied to the embedding). Weights must not be read meanwhile. Where
the kernels cannot do it (another device, dtype or build of torch), nothing happens.
"""

import ctypes
import functools
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from steerlens.errors import SteerlensError
from steerlens.models.adapter.pytorch import parameters_of, reordered_product, reordered_weight
from steerlens.models.exclusion import to_its_end

__all__ = ["packed_linears"]

# The number of rows that the order is chosen for; other numbers work too, to the same bits.
_ROWS = 96
# Weights rearranged before the memory of the plain ones goes back to the system.
_BETWEEN_TRIMS = 50


@contextmanager
def packed_linears(root: nn.Module) -> Iterator[int]:
    """Rearrange the weights of a model's linear layers; yields how many.

    Args:
        root: A Hugging Face model, to be called under ``inference_mode`` only.
    """
    done: list[tuple[nn.Linear, Tensor]] = []
    try:
        with torch.inference_mode(False), torch.no_grad():
            for module, shared in _packable(root):
                packed = reordered_weight(module.weight, _ROWS)
                done.append((module, packed))
                vars(module)["forward"] = _product(packed, module.bias)
                if not shared:
                    module.weight.data = module.weight.new_empty(0)
                if len(done) % _BETWEEN_TRIMS == 0:
                    _trim()
        _trim()
        yield len(done)
    finally:
        to_its_end(lambda: _put_back(done))


def _packable(root: nn.Module) -> list[tuple[nn.Linear, bool]]:
    """Linear layers that can be packed, and whether something else holds the weight too."""
    weights = [weight for module in root.modules() for weight in parameters_of(module).values()]
    uses = Counter(weight.data_ptr() for weight in weights if weight is not None)
    return [
        (module, uses[module.weight.data_ptr()] > 1)
        for module in root.modules()
        if type(module) is nn.Linear
        and module.weight.dim() == 2
        and module.weight.device.type == "cpu"
        and module.weight.is_contiguous()
        and "forward" not in vars(module)
        and _works(module.weight.dtype)
    ]


def _product(packed: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    def forward(inputs: Tensor) -> Tensor:
        return reordered_product(inputs, packed, bias)

    return forward


def _put_back(done: list[tuple[nn.Linear, Tensor]]) -> None:
    """The last first, each released as soon as it is plain again."""
    _trim()
    # Not inference tensors, also where the caller is in inference mode: gradients flow afterwards.
    with torch.inference_mode(False), torch.no_grad():
        while done:
            module, packed = done[-1]
            if module.weight.numel() == 0:
                module.weight.data = packed.to_dense()
            vars(module).pop("forward", None)
            done.pop()
            del packed
            if len(done) % _BETWEEN_TRIMS == 0:
                _trim()


def _trim() -> None:
    """Give freed memory back to the system; glibc would keep the plain weights' for later."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


@functools.cache
def _works(dtype: torch.dtype) -> bool:
    """Whether this build multiplies with rearranged weights of this dtype, to the same bits."""
    if dtype != torch.bfloat16:
        return False
    weight = torch.arange(48 * 32, dtype=torch.float32).sin().view(48, 32).to(dtype)
    inputs = torch.arange(3 * 32, dtype=torch.float32).cos().view(3, 1, 32).to(dtype)
    try:
        with torch.inference_mode(False), torch.no_grad():
            packed = reordered_weight(weight, _ROWS)
            same = torch.equal(_product(packed, None)(inputs), nn.functional.linear(inputs, weight))
            return same and torch.equal(packed.to_dense(), weight)
    except (SteerlensError, NotImplementedError, RuntimeError, TypeError):
        return False
