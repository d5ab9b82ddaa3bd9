"""Packed weights: the same bits, whatever becomes of the weights; and the choice of kernels."""

import copy

import pytest
import torch
from tiny_models import write_tiny_folder
from torch import nn

import steerlens as sl
from steerlens.engine import kernels, packed_weights
from steerlens.engine.packed_weights import PackedWeights, checksum

PROMPTS = ["tea", "sea and ink", "a longer one"]
needs_kernels = pytest.mark.skipif(
    not packed_weights._works(torch.bfloat16),
    reason="this build of torch cannot pack bfloat16 weights",
)


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """The small model in bfloat16."""
    folder = write_tiny_folder(tmp_path_factory.mktemp("models") / "half")
    return sl.load_model(folder, dtype="bfloat16", device="cpu")


@pytest.fixture
def faster(monkeypatch):
    """Packed weights win every comparison."""
    monkeypatch.setattr(kernels, "_measured", lambda *_: 2.0)


def generated(model, n=kernels._WORTH_PACKING):
    model.original_model.__dict__.pop(kernels._MEASURED, None)
    return sl.generate(model, PROMPTS, max_new_tokens=n, show_progress=False)


def unchanged(model, before):
    after = dict(model.original_model.named_parameters())
    same = all(torch.equal(after[name], own) for name, own in before.items())
    return same and all("forward" not in vars(one) for one in model.original_model.modules())


@needs_kernels
def test_products_have_the_same_bits_for_any_number_of_rows():
    torch.manual_seed(0)
    first, second = nn.Linear(64, 96).bfloat16(), nn.Linear(64, 32, bias=False).bfloat16()
    packed = PackedWeights()
    with torch.inference_mode():
        for rows in (1, 7, 96, 200):
            inputs = torch.randn(rows, 1, 64).bfloat16()
            [joint] = packed.product((first, second), inputs)
            assert torch.equal(joint, torch.cat([first(inputs), second(inputs)], dim=-1))


@needs_kernels
def test_packed_and_plain_weights_give_the_same_tokens_and_the_settings_say_which(
    half, faster, monkeypatch
):
    before = {name: own.clone() for name, own in half.original_model.named_parameters()}
    packed = generated(half)
    assert packed.settings["kernels"] == "fused blocks, packed weights"
    assert unchanged(half, before)
    monkeypatch.setattr(kernels, "_measured", lambda *_: 1.0)
    plain = generated(half)
    assert plain.settings["kernels"] == "fused blocks, plain weights"
    assert packed.tokens == plain.tokens
    assert not PackedWeights.of(half.original_model)


@needs_kernels
@pytest.mark.parametrize("edit", ["data", "in place"])
def test_an_edited_weight_is_packed_again(half, faster, edit):
    generated(half)
    weight = half.original_model.model.layers[1].mlp.up_proj.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        (weight.data if edit == "data" else weight).mul_(-1)
    try:
        packed = generated(half)
        assert "packed" in packed.settings["kernels"]
        half.original_model.__dict__.pop(packed_weights._PACKED)
        assert packed.tokens == generated(half).tokens
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def test_a_checksum_shows_changed_numbers_and_rows_that_change_places():
    weight = torch.randn(6, 5).bfloat16()
    before = checksum(weight)
    assert before == checksum(weight)
    weight[[1, 4]] = weight[[4, 1]]
    swapped = checksum(weight)
    weight[5, 4] += 1
    assert len({before, swapped, checksum(weight)}) == 3


@needs_kernels
def test_ctrl_c_while_packing_leaves_the_model_as_it_was(half, faster, monkeypatch):
    half.original_model.__dict__.pop(packed_weights._PACKED, None)
    before = {name: own.clone() for name, own in half.original_model.named_parameters()}
    packing, done = packed_weights._packed, []

    def interrupted(*given):
        done.append(1)
        if len(done) == 3:
            raise KeyboardInterrupt
        return packing(*given)

    monkeypatch.setattr(packed_weights, "_packed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generated(half)
    assert unchanged(half, before)
    assert generated(half).settings["kernels"] == "fused blocks, packed weights"


@needs_kernels
def test_a_copied_model_packs_its_own(half, faster):
    generated(half)
    assert PackedWeights.of(half.original_model)
    assert not PackedWeights.of(copy.deepcopy(half.original_model))


@pytest.mark.parametrize("reason", ["steps", "memory", "dtype"])
def test_where_packing_cannot_pay_weights_stay_plain(half, tiny_model, monkeypatch, reason):
    half.original_model.__dict__.pop(packed_weights._PACKED, None)
    if reason == "memory":
        monkeypatch.setattr(kernels, "free_memory", lambda device: 1000)
    model = tiny_model if reason == "dtype" else half
    settings = generated(model, 4 if reason == "steps" else 16).settings
    assert settings["kernels"] == "fused blocks, plain weights"
    words = {"steps": "fewer than 16 steps", "memory": "free memory", "dtype": "float32"}
    assert words[reason] in settings["kernels_reason"]
    assert not PackedWeights.of(model.original_model)
