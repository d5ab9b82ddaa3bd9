"""Modules that others have changed act in the package as in plain loops.

A parametrised or foreign weight, a replaced forward or submodule: whatever `model(ids)` of the
plain Hugging Face model does with it, the package does as well, and says why it left its fast path.
"""

import copy
import functools
import threading
from typing import Any

import pytest
import torch
from architectures import write_family
from foreign_changes import (
    MODULES,
    Pair,
    adds,
    check,
    outcome,
)
from torch import Tensor, nn
from torch.nn.utils import parametrize

from steerlens.engine.generation import generate
from steerlens.engine.outside import outside_change
from steerlens.models.loading import load_model


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    return {name: Pair(name, tmp_path_factory.mktemp("hooked") / name) for name in MODULES}


class Grown(nn.Module):
    """A parametrisation: the weight times 1.5."""

    def forward(self, weight: Tensor) -> Tensor:
        return 1.5 * weight


class GrownTensor(Tensor):
    """A weight that is 1.5 times as large wherever a product uses it."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        plain_args = [
            one.as_subclass(Tensor) if isinstance(one, GrownTensor) else one for one in args
        ]
        if func in (nn.functional.linear, torch.addmm):
            plain_args[-1 if func is torch.addmm else 1] = (
                1.5 * plain_args[-1 if func is torch.addmm else 1]
            )
            return func(*plain_args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs or {})


class LowRank(nn.Module):
    """What adapters put in a projection's place: itself, and a product of two thin matrices."""

    def __init__(self, base: nn.Module, n_in: int, n_out: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(2)
        self.base = base
        self.down = nn.Parameter(torch.randn(2, n_in, generator=draw))
        self.up = nn.Parameter(torch.randn(n_out, 2, generator=draw))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x)
        return out + x @ self.down.T @ self.up.T


def grown_by_parametrisation(model: nn.Module, modules: dict[str, nn.Module], path: str) -> None:
    parametrize.register_parametrization(modules[path], "weight", Grown())


def grown_by_subclass(model: nn.Module, modules: dict[str, nn.Module], path: str) -> None:
    weight = modules[path].weight
    modules[path].weight = nn.Parameter(weight.data.as_subclass(GrownTensor))


def replaced_forward(model: nn.Module, modules: dict[str, nn.Module], path: str) -> None:
    before = modules[path].forward
    modules[path].forward = lambda x: 1.5 * before(x)  # type: ignore[method-assign]


def replaced_block_forward(model: nn.Module, modules: dict[str, nn.Module], path: str) -> None:
    block = modules[path.rsplit(".", 2)[0]]
    before = block.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        return adds(block, args, before(*args, **kwargs))

    block.forward = forward  # type: ignore[method-assign]


def low_rank_beside(model: nn.Module, modules: dict[str, nn.Module], path: str) -> None:
    parent, _, name = path.rpartition(".")
    projection = modules[path]
    n_out, n_in = projection.weight.shape
    if name == "c_proj":
        n_in, n_out = n_out, n_in
    setattr(modules[parent], name, LowRank(modules[parent]._modules[name], n_in, n_out))


CHANGES = [
    grown_by_parametrisation,
    grown_by_subclass,
    replaced_forward,
    replaced_block_forward,
    low_rank_beside,
]


@pytest.mark.parametrize("change", CHANGES, ids=[change.__name__ for change in CHANGES])
@pytest.mark.parametrize("family", MODULES)
def test_a_module_changed_after_the_bridge_was_made_acts_as_in_the_plain_model(
    pairs, family, change
):
    pair, path = pairs[family], MODULES[family]["MLP output"]
    changed, inner = copy.deepcopy(pair.plain), copy.deepcopy(pair.plain)
    modules = dict(inner.named_modules())
    model = pair.boot(inner)
    outcome(model)  # the verdict about this model is made before the change
    change(changed, dict(changed.named_modules()), path)
    change(inner, modules, path)
    check(pair, changed, model, may_be_fast=change is low_rank_beside)


@pytest.mark.parametrize("change", CHANGES, ids=[change.__name__ for change in CHANGES])
@pytest.mark.parametrize("family", MODULES)
def test_a_module_changed_before_the_bridge_was_made_acts_as_in_the_plain_model(
    pairs, family, change
):
    pair, path = pairs[family], MODULES[family]["MLP output"]
    changed, inner = copy.deepcopy(pair.plain), copy.deepcopy(pair.plain)
    change(changed, dict(changed.named_modules()), path)
    change(inner, dict(inner.named_modules()), path)
    check(pair, changed, pair.boot(inner), may_be_fast=change is low_rank_beside)


def test_a_forward_replaced_by_a_wrapping_function_is_seen(tmp_path):
    model = load_model(write_family("llama", tmp_path / "m"), device="cpu")
    mlp = model.original_model.model.layers[0].mlp.original_component
    inner = mlp.forward

    @functools.wraps(inner)
    def doubled(*args, **kwargs):
        return 2 * inner(*args, **kwargs)

    mlp.forward = doubled
    made = generate(model, "Where is Rome?", max_new_tokens=2)
    assert made.settings["attention"] == "eager"
    assert "replaced forward" in made.settings["attention_reason"]


def test_transformer_lens_caching_hooks_around_generate_are_filled(tmp_path):
    model = load_model(write_family("llama", tmp_path / "m"), device="cpu")
    cache = model.add_caching_hooks()
    generate(model, "Where is Rome?", max_new_tokens=2)
    assert len(cache) > 0
    model.reset_hooks()


def test_looking_for_changes_waits_for_a_thread_that_decodes(tmp_path):
    model = load_model(write_family("llama", tmp_path / "m"), device="cpu")
    expected = generate(model, "Where is Rome?", max_new_tokens=12).tokens
    stop, found = threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            found.append(outside_change(model))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(10):
            assert generate(model, "Where is Rome?", max_new_tokens=12).tokens == expected
    finally:
        stop.set()
        thread.join()
    assert set(found) == {None}
