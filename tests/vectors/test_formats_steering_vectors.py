"""Claims about steering-vectors: applying an exported vector there is ``add`` here."""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from interop_examples import assert_same_vector, example_vector, ulps
from transformer_lens.model_bridge import TransformerBridge
from transformers import LlamaForCausalLM

import steerlens as sl
from steerlens.errors import FileFormatError, SteeringError, SteerlensError
from steerlens.vectors import SteeringVector
from steerlens.vectors.formats.record import shifts_of
from steerlens.vectors.formats.steering_vectors import from_steering_vectors, to_steering_vectors

PROMPTS = ["Tell me about Rome.", "Write a haiku.", "Why is the sky blue, and since when?"]
N_NEW = 10


@pytest.fixture(scope="module")
def title(model: TransformerBridge) -> SteeringVector:
    pairs = sl.contrast_pairs("detectable_format:title", n=8)
    return sl.difference_of_means(sl.cache_residuals(model, pairs, show_progress=False))


def test_steering_vectors_decodes_the_same_tokens_with_an_exported_vector(
    model: TransformerBridge, hf_model: LlamaForCausalLM, title: SteeringVector
) -> None:
    pytest.importorskip("steering_vectors")
    layer = 24
    steering = title.at(layer, operation="add")
    ours = sl.generate(model, PROMPTS, steering, max_new_tokens=N_NEW)
    plain = sl.generate(model, PROMPTS, max_new_tokens=N_NEW)
    theirs = []
    peer: Any = hf_model
    with torch.inference_mode(), to_steering_vectors(title, layers=[layer]).apply(peer):
        for row in ours.prompt_tokens:
            out = peer.generate(
                torch.tensor([row]), max_new_tokens=N_NEW, do_sample=False, pad_token_id=0
            )
            theirs.append(out[0, len(row) :].tolist())

    for mine, peers in zip(ours.tokens, theirs, strict=True):
        assert list(mine) == peers[: len(mine)]
    assert ours.tokens != plain.tokens


def test_the_object_holds_g_times_u_and_gives_the_vector_back_exactly() -> None:
    library = pytest.importorskip("steering_vectors")
    vector = example_vector(layers=(0, 3), d_model=16)

    made = to_steering_vectors(vector)

    assert isinstance(made, library.SteeringVector) and made.layer_type == "decoder_block"
    for row, layer in enumerate((0, 3)):
        expected = np.float64(vector.gaps[row]) * vector.directions[row].double().numpy()
        np.testing.assert_array_equal(made.layer_activations[layer], expected.astype(np.float32))
    assert_same_vector(from_steering_vectors(made), vector)
    assert to_steering_vectors(vector, layers=[3]).layer_activations.keys() == {3}


def test_an_object_of_their_own_making_is_read_as_shifts() -> None:
    library = pytest.importorskip("steering_vectors")
    rows = {4: torch.tensor([0.3, -1.7, 2.0]), 1: torch.tensor([3.0, 0.0, 4.0])}
    vector = from_steering_vectors(library.SteeringVector(layer_activations=rows))
    assert vector.layers == (4, 1) and float(vector.gaps[1]) == 5.0
    assert ulps(shifts_of(vector)[4], rows[4]) <= 1
    assert vector.metadata["targets_known"] is False
    # Changed by their own means, it is read as it is now.
    halved = to_steering_vectors(vector).to(torch.float16)
    assert ulps(shifts_of(from_steering_vectors(halved))[4], rows[4].half().float()) <= 1


def test_vectors_for_places_inside_a_block_are_refused() -> None:
    other = SimpleNamespace(layer_activations={1: torch.ones(3)}, layer_type="mlp")
    with pytest.raises(SteeringError, match="steers at 'mlp', inside a block"):
        from_steering_vectors(other)
    with pytest.raises(SteeringError, match=r"is no steering_vectors\.SteeringVector"):
        from_steering_vectors({"1": 2})
    for rows in ({}, {-1: torch.ones(3)}, {1: torch.ones(2, 2)}):
        with pytest.raises(FileFormatError, match=r"steering_vectors\.SteeringVector"):
            from_steering_vectors(SimpleNamespace(layer_activations=rows))


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "steering_vectors", None)
    with pytest.raises(SteerlensError, match="not installed"):
        to_steering_vectors(example_vector())
