"""Private names of PyTorch: a module's parts and hooks, write counts, oneDNN's weights."""

import importlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from steerlens.models.adapter import private

_MODULE_HOOKS = {
    "_forward_pre_hooks": "hook",
    "_forward_hooks": "hook",
    "_backward_pre_hooks": "backward hook",
    "_backward_hooks": "backward hook",
}
_GLOBAL_HOOKS = tuple(f"_global{name}" for name in _MODULE_HOOKS)


def children_of(module: nn.Module) -> dict[str, nn.Module | None]:
    """A module's children by name, to be read or replaced."""
    children: dict[str, nn.Module | None] = private("torch", module, "_modules")
    return children


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """A module's own parameters by name."""
    parameters: dict[str, nn.Parameter | None] = private("torch", module, "_parameters")
    return parameters


def buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    """A module's own buffers by name."""
    buffers: dict[str, Tensor | None] = private("torch", module, "_buffers")
    return buffers


def n_writes(tensor: Tensor) -> int:
    """How many operations have written to a tensor; 0 for inference tensors, which do not count."""
    return 0 if tensor.is_inference() else int(private("torch", tensor, "_version"))


def hooks_of(module: nn.Module) -> Iterator[tuple[str, Sequence[Callable[..., Any]]]]:
    """A module's hooks, with "hook" or "backward hook" for each kind."""
    for name, kind in _MODULE_HOOKS.items():
        yield kind, tuple(private("torch", module, name).values())


@contextmanager
def hooks_silenced(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Within the block, none of the modules' hooks fire."""
    kept = [(m, name, private("torch", m, name)) for m in modules for name in _MODULE_HOOKS]
    try:
        for module, name, _ in kept:
            module.__dict__[name] = OrderedDict()
        yield
    finally:
        for module, name, hooks in kept:
            module.__dict__[name] = hooks


def has_global_hooks() -> bool:
    """Whether PyTorch has hooks on every module of the process."""
    hooks = [private("torch", nn.modules.module, name) for name in _GLOBAL_HOOKS]
    return any(hooks)


def tensors_inside(tensor: Tensor) -> tuple[list[str], Any] | None:
    """Attributes and settings of a tensor made of others (torchao's weights); None if it is not."""
    dispatch = importlib.import_module("torch.utils._python_dispatch")
    if not private("torch", dispatch, "is_traceable_wrapper_subclass")(tensor):
        return None
    inside: tuple[list[str], Any] = private("torch", tensor, "__tensor_flatten__")()
    return inside


def cpu_has(*flags: str) -> str | None:
    """The first of some instruction sets that this CPU has, such as "amx_bf16"."""
    query = getattr(torch.cpu, "get_capabilities", None)
    if query is not None:
        capabilities: Mapping[str, Any] = query()
    else:  # torch before 2.10 has only this
        probe = private("torch", torch.cpu, "_is_avx512_bf16_supported")
        capabilities = {"avx512_bf16": probe()}
    return next((flag for flag in flags if capabilities.get(flag)), None)


def reordered_weight(weight: Tensor, n_rows: int) -> Tensor:
    """A weight in the order that oneDNN's product over `n_rows` rows wants."""
    reordered: Tensor = private("torch", torch.ops.mkldnn, "_reorder_linear_weight")(weight, n_rows)
    return reordered


def reordered_product(inputs: Tensor, reordered: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer with a weight from `reordered_weight`."""
    linear = private("torch", torch.ops.mkldnn, "_linear_pointwise")
    product: Tensor = linear(inputs, reordered, bias, "none", [], "")
    return product
