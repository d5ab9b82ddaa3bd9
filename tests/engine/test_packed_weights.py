"""Packed weights: the same bits while they are packed, and the same weights afterwards."""

import ctypes
import signal
import sys

import psutil
import pytest
import torch
from tiny_models import write_tiny_folder
from torch import nn

import steerlens as sl
from steerlens.engine import decoding, packed_weights
from steerlens.engine.packed_weights import packed_linears

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


def weights_of(model):
    return {name: own.clone() for name, own in model.original_model.named_parameters()}


def unchanged(model, before):
    after = dict(model.original_model.named_parameters())
    same = all(torch.equal(after[name], own) for name, own in before.items())
    free = all("forward" not in vars(one) for one in model.original_model.modules())
    return same and free


@needs_kernels
def test_products_have_the_same_bits_for_any_number_of_rows():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(64, 96), nn.Linear(96, 32, bias=False)).to(torch.bfloat16)
    inputs = [torch.randn(rows, 1, 64).to(torch.bfloat16) for rows in (1, 7, 96, 200)]
    with torch.inference_mode():
        expected = [layers(one) for one in inputs]
        with packed_linears(layers) as packed:
            assert packed == 2
            assert all(torch.equal(layers(x), y) for x, y in zip(inputs, expected, strict=True))
        assert all(torch.equal(layers(x), y) for x, y in zip(inputs, expected, strict=True))


@needs_kernels
def test_generation_is_the_same_and_leaves_the_weights_as_they_were(half, monkeypatch):
    before = weights_of(half)
    packed = sl.generate(half, PROMPTS, max_new_tokens=decoding._WORTH_PACKING)
    assert unchanged(half, before)
    monkeypatch.setattr(decoding, "_WORTH_PACKING", 10**9)
    plain = sl.generate(half, PROMPTS, max_new_tokens=40)
    assert packed.tokens == plain.tokens


@needs_kernels
@pytest.mark.parametrize("fault", [KeyboardInterrupt, RuntimeError])
def test_weights_are_put_back_after_a_fault(half, fault):
    before = weights_of(half)
    with pytest.raises(fault), packed_linears(half.original_model) as packed:
        assert packed > 0
        raise fault
    assert unchanged(half, before)


@needs_kernels
def test_ctrl_c_while_they_are_put_back_waits_until_they_are(half, monkeypatch):
    before = weights_of(half)
    put_back = packed_weights._put_back

    def interrupted(done):
        signal.raise_signal(signal.SIGINT)
        put_back(done)

    monkeypatch.setattr(packed_weights, "_put_back", interrupted)
    with pytest.raises(KeyboardInterrupt), packed_linears(half.original_model):
        pass
    assert unchanged(half, before)


@needs_kernels
def test_a_weight_with_another_use_stays_readable():
    embed, out = nn.Embedding(32, 16), nn.Linear(16, 32, bias=False)
    out.weight = embed.weight
    model = nn.ModuleList([embed, out]).to(torch.bfloat16)
    expected = embed(torch.arange(4))
    with torch.inference_mode(), packed_linears(model) as packed:
        assert packed == 1
        assert torch.equal(embed(torch.arange(4)), expected)


def test_float32_is_left_alone(tiny_model):
    with packed_linears(tiny_model.original_model) as packed:
        assert packed == 0


def test_gradients_flow_after_packing():
    layer = nn.Linear(16, 8).to(torch.bfloat16)
    with torch.inference_mode(), packed_linears(layer):
        layer(torch.ones(2, 16, dtype=torch.bfloat16))
    layer(torch.ones(2, 16, dtype=torch.bfloat16)).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0


@needs_kernels
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="about glibc's memory")
def test_packed_weights_take_the_place_of_the_plain_ones():
    layers = nn.Sequential(*(nn.Linear(640, 1024) for _ in range(120))).to(torch.bfloat16)
    size = sum(own.numel() * own.element_size() for own in layers.parameters())
    process = psutil.Process()
    ctypes.CDLL(None).malloc_trim(0)
    before = process.memory_info().rss
    with packed_linears(layers):
        packed = process.memory_info().rss
    after = process.memory_info().rss
    assert packed - before < size / 4
    assert after - before < size / 4
