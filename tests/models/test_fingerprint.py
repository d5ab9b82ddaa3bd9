"""The fingerprint of a model's tensors: what changes it, what does not, and its arithmetic."""

import copy
import hashlib

import numpy as np
import pytest
import torch
from tiny_models import byte_tokenizer, tiny_llama
from weight_changes import CHANGES, edited_as_data

from steerlens.engine.modules import fast_modules
from steerlens.models.fingerprint import Stamp, digest_of, fingerprint, is_rearranged, named_tensors
from steerlens.models.loading import load_model

K = 6364136223846793005


@pytest.fixture
def own(tiny_folder):
    """A model of the test's own, to be changed."""
    return load_model(tiny_folder, device="cpu")


def test_a_tensors_columns_are_polynomials_modulo_two_to_the_64():
    rng = np.random.default_rng(0)
    words = rng.integers(-(2**63), 2**63, size=(70, 4096), dtype=np.int64)
    tensor = torch.cat([torch.from_numpy(words.copy()).flatten(), torch.tensor([5, 6])])
    expected = hashlib.sha256(f"torch.int64 ({len(tensor)},)\n".encode())
    columns = np.zeros(4096, dtype=object)
    for row in words.astype(object):
        columns = (columns * K + row) % 2**64
    expected.update(columns.astype(np.uint64).tobytes())
    expected.update(np.array([5, 6], dtype=np.int64).tobytes())
    assert digest_of(tensor) == expected.digest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.complex64])
def test_any_change_of_one_number_or_of_two_places_is_seen(dtype):
    plain = (torch.randn(300, 257, generator=torch.Generator().manual_seed(0)) * 50).to(dtype)
    before = digest_of(plain)
    assert digest_of(plain.T) == digest_of(plain.T.contiguous()) != before
    for row, column in ((0, 0), (299, 256), (150, 3)):
        other = plain.clone()
        other[row, column] += 1
        assert digest_of(other) != before
    # Sums of rows and of columns would not see this.
    crossed = plain.clone()
    crossed[0, 0], crossed[0, 8], crossed[9, 0], crossed[9, 8] = 1, 2, 2, 1
    swapped = crossed.clone()
    swapped[0, 0], swapped[0, 8], swapped[9, 0], swapped[9, 8] = 2, 1, 1, 2
    assert digest_of(crossed) != digest_of(swapped)


def test_threads_devices_and_the_bridges_wrapping_make_no_difference(own):
    before = fingerprint(own)
    names = [name for name, _ in named_tensors(own)]
    with fast_modules(own):
        assert fingerprint(own) == before
        assert [name for name, _ in named_tensors(own)] == names
    assert "model.rotary_emb.inv_freq" in names
    plain = [name for name, _ in [*tiny_llama().named_parameters(), *tiny_llama().named_buffers()]]
    # The bridge gives its unembedding a bias.
    assert set(names) == {*plain, "lm_head.bias"} and len(names) == len(set(names))
    own(torch.tensor([[1, 50, 60]]))
    assert fingerprint(own) == before == fingerprint(copy.deepcopy(own))


@pytest.mark.parametrize("change", CHANGES)
def test_every_way_to_change_weights_changes_the_fingerprint(own, change):
    before, stamp = fingerprint(own), Stamp(own)
    assert stamp.fits(own)
    change(own)
    assert fingerprint(own) != before
    # Torch does not count edits of .data, which is this check's limit.
    assert stamp.fits(own) == (change is edited_as_data)


def test_the_bridges_own_copies_of_a_joint_matrix_belong_to_it(gpt2_folder):
    model = load_model(gpt2_folder, device="cpu")
    before, stamp = fingerprint(model), Stamp(model)
    with torch.no_grad():
        model.blocks[1].attn.q.weight.mul_(1.5)
    assert fingerprint(model) != before and not stamp.fits(model)


def test_while_the_engine_is_at_work_that_can_be_told(own):
    assert not is_rearranged(own)
    with fast_modules(own):
        assert is_rearranged(own)


def test_a_copied_model_fits_no_stamp_of_the_first(own):
    stamp = Stamp(own)
    assert not stamp.fits(copy.deepcopy(own)) and not copy.deepcopy(stamp).fits(own)


def test_frequencies_a_model_sets_anew_in_each_pass_are_read_from_its_copy(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=260,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    model = load_model(tmp_path, device="cpu")
    before = fingerprint(model)
    frequencies = model.original_model.model.rotary_emb.inv_freq.clone()
    model(torch.arange(3, 83)[None])
    assert not torch.equal(model.original_model.model.rotary_emb.inv_freq, frequencies)
    assert fingerprint(model) == before
