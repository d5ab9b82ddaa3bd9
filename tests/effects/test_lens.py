"""Claims about the logit lens: what streams say at a layer, against a plain Hugging Face model."""

import pytest
import torch
from hf_reference import adding, kl, one_pass
from steering_examples import random_vector

from steerlens.effects import token_effects
from steerlens.errors import ModelError, SteerlensError

LAYER, STRENGTH = 14, 4.0
IDS = list(range(300, 312))


@pytest.fixture(scope="module")
def vector():
    return random_vector(30, 576)


@pytest.fixture(scope="module")
def effects(model, vector):
    steering = vector.at(LAYER, "add", STRENGTH)
    return token_effects(model, IDS[:5], IDS[5:], steering, lens_layers=(22, 29))


def read(hf_model, resid):
    with torch.inference_mode():
        return hf_model.lm_head(hf_model.model.norm(resid.float())).double().log_softmax(-1)


def test_read_outs_equal_the_models_own_norm_and_unembedding(effects, hf_model, vector, model):
    shift = STRENGTH * vector.gaps[LAYER] * vector.directions[LAYER]
    p = read(hf_model, one_pass(hf_model, IDS).resid[22])
    q = read(hf_model, one_pass(hf_model, IDS, [adding(LAYER, shift)]).resid[22])

    lens = effects.lens
    torch.testing.assert_close(lens.kl[0].double(), kl(q, p), rtol=1e-4, atol=1e-4)
    expected = q[torch.arange(len(IDS) - 1), torch.tensor(IDS[1:])]
    torch.testing.assert_close(lens.logprob_steered[0, 1:].double(), expected, rtol=0, atol=2e-4)
    entropy = -(p.exp() * p).sum(-1)
    torch.testing.assert_close(lens.entropy_baseline[0].double(), entropy, rtol=0, atol=1e-4)
    best = [model.tokenizer.decode([i]) for i in q[7].topk(5).indices.tolist()]
    assert list(lens.top(22, 7)) == best
    assert lens.top(22, 7, steered=False)[0] == model.tokenizer.decode([int(p[7].argmax())])


def test_the_last_layers_read_out_is_what_the_model_says(effects):
    torch.testing.assert_close(effects.lens.kl[1], effects.kl, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        effects.lens.logprob_baseline[1, 1:], effects.logprob_baseline[1:], rtol=0, atol=1e-4
    )


def test_below_the_steered_layer_both_streams_say_the_same(model, vector):
    lens = token_effects(model, IDS[:5], IDS[5:], vector.at(LAYER), lens_layers=(-20,)).lens

    assert lens.layers == (10,)
    assert lens.kl.abs().max() == 0
    assert torch.equal(lens.top_baseline, lens.top_steered)


def test_the_frame_has_a_row_a_layer_and_position_and_others_are_refused(effects):
    frame = effects.lens.table

    assert frame.groupby("layer").position.apply(list).to_dict() == {
        22: list(range(12)),
        29: list(range(12)),
    }
    assert frame.top_steered[3] == effects.lens.top(22, 3)
    with pytest.raises(SteerlensError, match="layer 5 and position 0 were not read"):
        effects.lens.top(5, 0)


def test_a_model_that_the_lens_cannot_read_is_one_sentence(tiny_model):
    tiny_model.train()
    try:
        with pytest.raises(ModelError, match=r"the logit lens cannot read this model: .*eval"):
            token_effects(tiny_model, [5], [6], random_vector(3, 16).at(1), lens_layers=[2])
    finally:
        tiny_model.eval()
