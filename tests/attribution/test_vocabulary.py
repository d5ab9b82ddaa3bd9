"""Claims about the vocabulary read-out, against the plain model's own norm and unembedding."""

import numpy as np
import pytest
import torch

from steerlens.activations.cache import cache_residuals
from steerlens.attribution.vocabulary import vocabulary_readout
from steerlens.errors import SteeringError
from steerlens.tasks.drawing import contrast_pairs
from steerlens.vectors import difference_of_means


@pytest.fixture(scope="module")
def vector(model):
    pairs = contrast_pairs("detectable_format:title", n=8, seed=0)
    return difference_of_means(cache_residuals(model, pairs, layers=[4, 29]))


@pytest.fixture(scope="module")
def readout(model, vector):
    return vocabulary_readout(model, vector, n_tokens=5)


@torch.no_grad()
def test_tokens_and_logits_equal_the_plain_model(hf_model, vector, readout):
    for row, layer in enumerate(vector.layers):
        logits = hf_model.lm_head(hf_model.model.norm(vector.directions[row]))
        for side, largest in (("promoted", True), ("suppressed", False)):
            expected = logits.topk(5, largest=largest)
            found = readout.table[(readout.table.layer == layer) & (readout.table.side == side)]
            assert list(found.token_id) == expected.indices.tolist()
            assert np.allclose(found.logit, expected.values, atol=1e-3)
            assert list(found["rank"]) == [1, 2, 3, 4, 5]


def test_the_read_out_draws_its_tokens_largest_first(readout):
    [bars] = readout.plot(n=3).data
    assert len(bars.x) == 6
    assert list(bars.x[:3]) == sorted(bars.x[:3], reverse=True)
    assert "<table" in readout._repr_html_()
    with pytest.raises(SteeringError, match="layer 999 was not read"):
        readout.plot(layer=999)


@torch.no_grad()
def test_z_tells_a_tokens_logit_from_its_logits_over_random_directions(hf_model, readout):
    row = readout.table.iloc[0]
    random = torch.randn(2000, 576, generator=torch.Generator().manual_seed(123))
    unembedding = hf_model.lm_head.weight[int(row.token_id)]
    usual = hf_model.model.norm(random) @ unembedding
    assert row.z == pytest.approx(float((row.logit - usual.mean()) / usual.std()), rel=0.3)


def test_titles_read_as_angle_brackets_at_the_last_layer_and_as_noise_before(readout):
    last = readout.table[(readout.table.layer == 29) & (readout.table.side == "promoted")]
    assert "<<" in readout.tokens(29)
    assert last.z.max() > last.placebo_z.iloc[0]
    early = readout.table[readout.table.layer == 4]
    assert early.z.abs().max() < early.placebo_z.iloc[0]


def test_random_directions_stay_below_their_own_bound(model, vector):
    from dataclasses import replace

    noise = torch.randn(2, 576, generator=torch.Generator().manual_seed(77))
    random = replace(vector, directions=noise / noise.norm(dim=-1, keepdim=True))
    table = vocabulary_readout(model, random, n_tokens=50).table
    assert table.z.abs().max() < 1.1 * table.placebo_z.iloc[0]


def test_layers_can_be_chosen(model, vector):
    readout = vocabulary_readout(model, vector, layers=[29], n_tokens=2, n_placebos=20)
    assert len(readout.table) == 4
    assert repr(readout).startswith("VocabularyReadout(1 layers, at layer 29 most promoted: ")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"layers": [5]}, "layer 5 is out of range for this vector"),
        ({"layers": []}, "at least one layer"),
        ({"n_tokens": 0}, "n_tokens"),
        ({"n_placebos": 3}, "at least 20 n_placebos"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(model, vector, change, sentence):
    with pytest.raises(SteeringError, match=sentence):
        vocabulary_readout(model, vector, **change)


def test_a_vector_of_another_model_is_refused(tiny_model, vector):
    with pytest.raises(SteeringError, match="d_model 576"):
        vocabulary_readout(tiny_model, vector)
