"""How a model's matrix products are computed while rows are decoded: a choice, and its reason.

Two things are chosen, by rows, processor and dtype. Blocks of known kinds run **fused**
(`steerlens.engine.fused_blocks`), whatever the processor. Weights are **packed**
(`steerlens.engine.packed_weights`) or **plain**: packed is for bfloat16 on a CPU, for calls with
enough steps to pay for packing, and where a short comparison on the model's own weights finds it
faster with that many rows. The comparison is made once per model, number of threads and few or
many rows, and takes some 20 ms. On two cores without AMX packed weights are 1.5 times as fast with
one row; with AMX they win nothing.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.fused_blocks import Product, fused_blocks, plainly
from steerlens.engine.modules import blocks_of, device_of, dtype_of
from steerlens.engine.packed_weights import PackedWeights, can_pack
from steerlens.engine.paths import free_memory
from steerlens.models.adapter.blocks import block_parts
from steerlens.models.exclusion import to_its_end

__all__ = ["FEW_ROWS", "Kernels", "kernels"]

_MEASURED = "steerlens_kernels_measured"
# Steps from which on packing pays: it takes as long as some ten steps over one row.
_WORTH_PACKING = 16
_MEMORY_SHARE = 1 / 8
FEW_ROWS = 4
"""Up to so many rows a product is bound by reading its weight."""
# Blocks compared, several so that weights come from memory, and how often.
_BLOCKS, _TIMES = 4, 3
# How many times as fast packed weights must be.
_GAIN = 1.1


@dataclass(frozen=True)
class Kernels:
    """What was chosen.

    Attributes:
        blocks: ``"fused"``, or ``"own"`` where the model has blocks of an unknown kind.
        weights: ``"packed"`` or ``"plain"``.
        reason: Why the weights are, in a phrase.
    """

    blocks: str
    weights: str
    reason: str

    def __str__(self) -> str:
        return f"{self.blocks} blocks, {self.weights} weights"


@contextmanager
def kernels(model: TransformerBridge, n_rows: int, n_steps: int) -> Iterator[Kernels]:
    """Choose for a call, and compute so within the block.

    Args:
        model: A model inside `fast_modules`, to be called under ``inference_mode`` only.
        n_rows: Rows of a step.
        n_steps: Steps to come.
    """
    root = model.original_model
    packed = PackedWeights.of(root)
    gain, reason = _gain(model, packed, n_rows, n_steps)
    product: Product = plainly
    with ExitStack() as stack:
        if gain:
            product = packed.product
            stack.enter_context(_packed_linears(model, packed))
        all_fused = stack.enter_context(fused_blocks(model, product))
        yield Kernels("fused" if all_fused else "own", "packed" if gain else "plain", reason)


def _gain(
    model: TransformerBridge, packed: PackedWeights, n_rows: int, n_steps: int
) -> tuple[bool, str]:
    """Whether weights are packed, and why."""
    root, dtype = model.original_model, str(dtype_of(model)).removeprefix("torch.")
    linears = [module for module in root.modules() if can_pack(module)]
    if not linears:
        return False, f"{dtype} on this {device_of(model).type} has no packed form"
    if not packed and n_steps < _WORTH_PACKING:
        return False, f"fewer than {_WORTH_PACKING} steps do not pay for packing"
    n_bytes = sum(one.weight.numel() * one.weight.element_size() for one in linears)
    if not packed and n_bytes > _MEMORY_SHARE * free_memory(device_of(model)):
        return False, "packed copies would take more than an eighth of the free memory"
    measured: dict[Any, float] = root.__dict__.setdefault(_MEASURED, {})
    key = (n_rows <= FEW_ROWS, torch.get_num_threads())
    if key not in measured:
        measured[key] = _measured(model, packed, n_rows)
    ratio = measured[key]
    if max(measured.values()) < _GAIN:
        packed.clear()
    return ratio >= _GAIN, f"packed ones are {ratio:.1f} times as fast here"


def _measured(model: TransformerBridge, packed: PackedWeights, n_rows: int) -> float:
    """How many times as fast packed weights are, over some blocks' products."""
    linears = [(one,) for one in model.original_model.modules() if can_pack(one)]
    groups: Any = _groups(model)[: 4 * _BLOCKS] or linears
    inputs = [
        torch.ones(n_rows, 1, group[0].in_features, dtype=group[0].weight.dtype) for group in groups
    ]

    def seconds(product: Product) -> float:
        started = time.perf_counter()
        for group, own in zip(groups, inputs, strict=True):
            product(group, own)
        return time.perf_counter() - started

    with torch.inference_mode():
        pairs = [(seconds(plainly), seconds(packed.product)) for _ in range(1 + _TIMES)]
    del pairs[0]  # which packed
    return min(plain for plain, _ in pairs) / min(rearranged for _, rearranged in pairs)


def _groups(model: TransformerBridge) -> list[tuple[nn.Linear, ...]]:
    """The linear layers of the blocks that can be packed, together where they are multiplied so."""
    groups: list[tuple[nn.Linear, ...]] = []
    for block in blocks_of(model):
        parts = block_parts(block)
        if parts is None:
            groups += [(one,) for one in block.modules() if can_pack(one)]
        else:
            groups += parts.products
    return groups


@contextmanager
def _packed_linears(model: TransformerBridge, packed: PackedWeights) -> Iterator[None]:
    """Multiply with packed weights in all layers outside of blocks that are fused."""
    root = model.original_model
    inside = {
        id(module)
        for block in blocks_of(model)
        if block_parts(block) is not None
        for module in block.modules()
    }
    linears = [one for one in root.modules() if id(one) not in inside and can_pack(one)]

    def forward(linear: Any) -> Callable[[Tensor], Tensor]:
        return lambda inputs: packed.product((linear,), inputs)[0]

    try:
        for linear in linears:
            vars(linear)["forward"] = forward(linear)
        yield
    finally:
        to_its_end(lambda: _let_go(linears))


def _let_go(linears: Sequence[nn.Module]) -> None:
    for linear in linears:
        vars(linear).pop("forward", None)
