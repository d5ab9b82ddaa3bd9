"""Claims about per-token effects, against an independent Hugging Face computation."""

import math

import pytest
import torch
from steering_examples import random_vector

from steerlens.effects import steer, token_effects
from steerlens.generation import generate

LAYER = 14


@pytest.fixture(scope="module")
def vector():
    return random_vector(30, 576)


@pytest.fixture(scope="module")
def run(model, vector):
    return steer(model, "Tell me about Rome.", vector.at(LAYER, "add", 6.0), max_new_tokens=12)


def hf_logits(hf_model, ids, layer=None, shift=None):
    """Logits of a plain Hugging Face model, with `shift` added to the output of one block."""

    def hook(_module, _args, out):
        return (out[0] + shift, *out[1:]) if isinstance(out, tuple) else out + shift

    handle = None if layer is None else hf_model.model.layers[layer].register_forward_hook(hook)
    with torch.inference_mode():
        logits = hf_model(torch.tensor([ids])).logits[0].double()
    if handle:
        handle.remove()
    return logits.log_softmax(-1)


def test_effects_equal_a_plain_hugging_face_computation(run, vector, hf_model):
    ids = list(run.effects.token_ids)
    u, g = vector.directions[LAYER], vector.gaps[LAYER]
    p = hf_logits(hf_model, ids)
    q = hf_logits(hf_model, ids, LAYER, 6.0 * g * u)
    frame = run.effects.frame
    kl = (q.exp() * (q - p)).sum(-1)
    torch.testing.assert_close(torch.tensor(frame.kl), kl, rtol=2e-3, atol=1e-4)
    entropy = (p.exp() * p - q.exp() * q).sum(-1)
    torch.testing.assert_close(torch.tensor(frame.entropy_change), entropy, rtol=1e-3, atol=1e-4)
    own = torch.arange(len(ids) - 1)
    for column, logprobs in (("logprob_baseline", p), ("logprob_steered", q)):
        expected = logprobs[own, torch.tensor(ids[1:])]
        measured = torch.tensor(frame[column][1:].to_list(), dtype=torch.float64)
        torch.testing.assert_close(measured, expected, rtol=1e-4, atol=1e-4)
        assert math.isnan(frame[column][0])


def test_add_moves_every_projection_by_strength_times_gap(run, vector):
    moved = run.effects.projection_after - run.effects.projection_before
    expected = torch.full_like(moved, 6.0 * float(vector.gaps[LAYER]))
    torch.testing.assert_close(moved, expected, rtol=1e-3, atol=1e-3)


def test_promoted_tokens_are_those_whose_probability_rose_most(run, hf_model, vector, model):
    ids = list(run.effects.token_ids)
    shift = 6.0 * vector.gaps[LAYER] * vector.directions[LAYER]
    p, q = hf_logits(hf_model, ids), hf_logits(hf_model, ids, LAYER, shift)
    position = len(ids) - 2
    rise = q[position].exp() - p[position].exp()
    expected = [model.tokenizer.decode([i]) for i in rise.topk(5).indices.tolist()]
    assert [token for token, _ in run.effects.promoted[position]] == expected


def test_strength_zero_has_no_effect_and_equal_texts(model, vector):
    run = steer(model, "Hi there.", vector.at(LAYER, "add", 0.0), max_new_tokens=6)
    assert run.baseline == run.steered
    assert run.parts_at is None
    assert run.effects.kl.max() == 0.0
    assert run.effects.entropy_change.abs().max() == 0.0


def test_texts_are_those_that_generate_gives(model, run, vector):
    plain = generate(model, "Tell me about Rome.", max_new_tokens=12)
    assert run.baseline == plain.texts[0]
    assert run.parts_at is not None


def test_response_scope_leaves_the_prompt_alone(model, vector, run):
    n = run.effects.n_prompt
    ids = run.effects.token_ids
    effects = token_effects(model, ids[:n], ids[n:], vector.at(LAYER, "add", 6.0, "response"))
    assert not effects.steered[0, :n].any()
    assert effects.steered[0, n:].all()
    assert effects.kl[:n].max() < 1e-6
    assert effects.kl[n:].min() > 0


def test_the_frame_has_a_row_a_token_also_for_an_empty_response(model, vector, run):
    effects = token_effects(model, run.effects.token_ids[:5], [], vector.at(LAYER))
    assert len(effects.frame) == 5
    assert list(effects.frame.columns[:5]) == ["position", "token", "role", "steered", "kl"]


def test_what_cannot_be_steered_is_refused_before_anything_is_generated(tiny_model, monkeypatch):
    from steerlens import effects
    from steerlens.errors import SteeringError
    from steerlens.steering import Steering

    def too_late(*_args, **_kwargs):
        raise AssertionError("generated before the steering was checked")

    monkeypatch.setattr(effects, "generate", too_late)
    for steering, words in [
        (Steering(()), "at least one intervention"),
        (random_vector(30, 576).at(LAYER), "made for another model"),
    ]:
        with pytest.raises(SteeringError, match=words):
            steer(tiny_model, "Hi", steering)


def test_a_strength_that_breaks_the_logits_is_one_sentence(tiny_model):
    from steerlens.errors import SteeringError

    with pytest.raises(SteeringError, match="lower the strength"):
        steer(tiny_model, "Hi", random_vector(3, 16).at(1, "add", 1e38), max_new_tokens=4)
