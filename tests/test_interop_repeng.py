"""Claims about repeng's objects: the same directions at the same layers, and exact coming back."""

import importlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from interop_examples import assert_same_vector, example_vector, ulps
from transformers import LlamaForCausalLM

from steerlens.errors import FileFormatError, SteeringError, SteerlensError
from steerlens.vectors.formats.objects import from_repeng, to_repeng
from steerlens.vectors.formats.record import shifts_of


@pytest.fixture
def repeng(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(np, "float_", np.float64, raising=False)  # repeng 0.4.0 asks for it
    return pytest.importorskip("repeng")


def test_repeng_gets_g_times_u_at_every_layer_and_gives_it_back_exactly(repeng: Any) -> None:
    vector = example_vector(layers=(0, 3), d_model=16)

    control = to_repeng(vector, model_type="llama")

    assert isinstance(control, repeng.ControlVector) and control.model_type == "llama"
    for row, layer in enumerate((0, 3)):
        expected = np.float64(vector.gaps[row]) * vector.directions[row].double().numpy()
        np.testing.assert_array_equal(control.directions[layer], expected.astype(np.float32))
    assert_same_vector(from_repeng(control), vector)
    assert to_repeng(vector, layers=[3]).model_type == "a-model"


def test_a_control_vector_changed_by_repeng_is_read_as_it_is_now(repeng: Any) -> None:
    control = to_repeng(example_vector(layers=(0, 3)))
    doubled = from_repeng(2.0 * control)
    for layer, direction in control.directions.items():
        assert ulps(shifts_of(doubled)[layer], torch.from_numpy(2 * direction)) <= 1
    assert doubled.metadata["targets_known"] is False

    control.directions[3] = -control.directions[3]
    changed = from_repeng(control)
    assert ulps(shifts_of(changed)[3], torch.from_numpy(control.directions[3])) <= 1


def test_repengs_numbers_are_the_blocks_from_zero(repeng: Any, hf_model: LlamaForCausalLM) -> None:
    """What repeng adds for layer 5 is added to the output of block 5, as here."""
    vector = example_vector(layers=(5,), d_model=hf_model.config.hidden_size)
    tokens = torch.tensor([[1, 40, 41, 42]])

    def read_by(block: int, run: Any) -> torch.Tensor:
        """What a block reads: the output of the one before it, after whatever was added."""
        seen: list[torch.Tensor] = []
        layer: Any = hf_model.model.layers[block]
        handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            with torch.inference_mode():
                run(tokens)
        finally:
            handle.remove()
        return seen[0]

    before = {block: read_by(block, hf_model) for block in (5, 6)}
    control = repeng.ControlModel(hf_model, [5])
    try:
        control.set_control(to_repeng(vector, model_type="llama"))
        after = {block: read_by(block, control) for block in (5, 6)}
    finally:
        control.reset()
        control.unwrap()

    assert torch.equal(after[5], before[5])
    expected = shifts_of(vector)[5].expand(1, 4, -1)
    torch.testing.assert_close(after[6] - before[6], expected, atol=1e-3, rtol=1e-3)


def test_objects_that_are_no_control_vectors_are_refused() -> None:
    with pytest.raises(SteeringError, match=r"int is no repeng\.ControlVector"):
        from_repeng(3)
    for directions in ({}, {"a": np.ones(3)}, {1: "x"}, {1: np.ones((2, 2))}, {1: [np.nan]}):
        with pytest.raises(FileFormatError, match=r"repeng.ControlVector"):
            from_repeng(SimpleNamespace(model_type="m", directions=directions))


def test_a_repeng_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise AttributeError("`np.float_` was removed")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(SteerlensError, match="numpy<2"):
        to_repeng(example_vector())
