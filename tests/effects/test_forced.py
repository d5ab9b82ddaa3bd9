"""Claims about forced mode: per-token effects equal a plain Hugging Face computation."""

import math

import pytest
import torch
from hf_reference import adding, kl, one_pass
from steering_examples import random_vector

from steerlens.effects import token_effects
from steerlens.effects.texts import token_texts
from steerlens.errors import ActivationError, ModelError, SteeringError, UnknownNameError
from steerlens.steering.interventions import Steering

LAYER, STRENGTH = 14, 6.0
# Relative too: a KL of 8 nats sums as many products as one of 0.1, each rounded to its own size.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
TEXT = (
    "Rome began as a small town on the Tiber and grew into the capital of an empire. Its roads, "
    "laws and buildings are still with us."
)


@pytest.fixture(scope="module")
def vector():
    return random_vector(30, 576)


@pytest.fixture(scope="module")
def ids(model):
    return model.tokenizer(TEXT)["input_ids"]


@pytest.fixture(scope="module")
def effects(model, ids, vector):
    steering = vector.at(LAYER, "add", STRENGTH)
    return token_effects(model, ids[:12], ids[12:], steering, read_at="last_prompt")


@pytest.fixture(scope="module")
def shift(vector):
    return STRENGTH * vector.gaps[LAYER] * vector.directions[LAYER]


def test_kl_entropies_and_log_probabilities_equal_hugging_face_to_1e_4(
    effects, ids, hf_model, shift
):
    p, q = (
        one_pass(hf_model, ids).logprobs,
        one_pass(hf_model, ids, [adding(LAYER, shift)]).logprobs,
    )

    torch.testing.assert_close(effects.kl.double(), kl(q, p), **CLOSE)
    for measured, logprobs in ((effects.entropy_baseline, p), (effects.entropy_steered, q)):
        expected = -(logprobs.exp() * logprobs).sum(-1)
        torch.testing.assert_close(measured.double(), expected, **CLOSE)
    own = torch.arange(len(ids) - 1)
    for measured, logprobs in ((effects.logprob_baseline, p), (effects.logprob_steered, q)):
        expected = logprobs[own, torch.tensor(ids[1:])]
        torch.testing.assert_close(measured[1:].double(), expected, **CLOSE)
        assert math.isnan(measured[0])


def test_projections_equal_hugging_face_to_1e_4_of_the_stream(
    effects, ids, hf_model, vector, shift
):
    u = vector.directions[LAYER].double()
    plain, moved = one_pass(hf_model, ids), one_pass(hf_model, ids, [adding(LAYER, shift)])

    scale = float(plain.resid[LAYER].norm(dim=-1).median())
    for measured, run in (
        (effects.projection_baseline, plain),
        (effects.projection_before, plain),
        (effects.projection_after, moved),
    ):
        expected = run.resid[LAYER] @ u
        torch.testing.assert_close(measured[0].double() / scale, expected / scale, **CLOSE)


def test_the_plain_path_gives_what_the_fast_one_does(effects, model, ids, vector):
    def looking(resid, hook):
        return None

    with model.hooks(fwd_hooks=[("blocks.3.attn.hook_pattern", looking)]):
        plain = token_effects(model, ids[:12], ids[12:], vector.at(LAYER, "add", STRENGTH))

    for name in ("kl", "logprob_steered", "entropy_baseline", "projection_after"):
        left, right = getattr(plain, name), getattr(effects, name)
        torch.testing.assert_close(left, right, rtol=1e-4, atol=2e-4, equal_nan=True)


@pytest.mark.parametrize("operation", ["add", "set_projection", "ablate"])
@pytest.mark.parametrize("hooked", [False, True], ids=["fast", "plain"])
def test_strength_zero_changes_exactly_nothing(model, ids, vector, operation, hooked):
    hooks = [("blocks.3.attn.hook_pattern", lambda resid, hook: None)] if hooked else []
    with model.hooks(fwd_hooks=hooks):
        effects = token_effects(model, ids[:12], ids[12:], vector.at(LAYER, operation, 0.0))

    assert effects.kl.abs().max() == 0
    assert effects.entropy_change.abs().max() == 0
    assert torch.equal(effects.logprob_steered[1:], effects.logprob_baseline[1:])
    assert torch.equal(effects.projection_after, effects.projection_baseline)
    assert effects.propagation.shift.abs().max() == 0
    assert effects.propagation.norm_change.abs().max() == 0


def test_promoted_tokens_are_those_whose_probability_rose_most(
    effects, ids, hf_model, shift, model
):
    p, q = (
        one_pass(hf_model, ids).logprobs,
        one_pass(hf_model, ids, [adding(LAYER, shift)]).logprobs,
    )

    rise = q.exp() - p.exp()
    for position in (3, 20):
        best = rise[position].topk(5).indices
        expected = [model.tokenizer.decode([i]) for i in best.tolist()]
        assert [token for token, _ in effects.promoted[position]] == expected
        changes = [change for _, change in effects.promoted[position]]
        assert changes == pytest.approx((q - p)[position, best].tolist(), abs=1e-4)
    mean = rise[11:].mean(0)
    assert effects.mean_promoted[0][1] == pytest.approx(float(mean.max()), abs=1e-5)
    assert effects.mean_suppressed[0][0] == model.tokenizer.decode([int(mean.argmin())])


def test_scope_response_leaves_the_prompt_alone(model, ids, vector):
    effects = token_effects(model, ids[:12], ids[12:], vector.at(LAYER, "add", 6.0, "response"))

    assert not effects.steered[0, :12].any() and effects.steered[0, 12:].all()
    assert effects.kl[:12].max() == 0
    assert effects.kl[12:].min() > 0


def test_interventions_at_two_layers_are_told_apart(model, ids, vector, hf_model):
    both = vector.at(20, "ablate") + vector.at(10, "add", 3.0, "prompt")

    effects = token_effects(model, ids[:12], ids[12:], both)

    assert effects.propagation.starts == (20, 10)
    assert effects.propagation.layers == tuple(range(10, 30))
    assert effects.projection_after[0].abs().max() < 1e-2, "ablated"
    plain = one_pass(hf_model, ids).resid[20] @ vector.directions[20].double()
    torch.testing.assert_close(effects.projection_baseline[0].double(), plain, rtol=0, atol=5e-3)
    assert not torch.allclose(effects.projection_before[0], effects.projection_baseline[0])


def test_the_frame_has_a_row_a_token_also_for_an_empty_response(model, ids, vector, effects):
    alone = token_effects(model, ids[:5], [], vector.at(LAYER))

    assert len(alone.table) == 5
    assert list(alone.table.columns[:5]) == ["position", "token", "role", "steered", "kl"]
    assert "read" not in alone.table
    assert effects.table.read.tolist() == [position == 11 for position in range(len(ids))]
    assert effects.mode == "forced"


def test_where_the_vector_was_read_is_marked_as_activations_name_it(model, ids, vector):
    def read(at):
        return token_effects(model, ids[:4], ids[4:8], vector.at(29), read_at=at).read.tolist()

    assert read("response_mean") == [False] * 4 + [True] * 4
    assert read("last_response") == [False] * 7 + [True]
    assert read(-2) == read(2) == [False, False, True, False] + [False] * 4


def test_what_cannot_be_scored_is_refused_in_one_sentence(tiny_model, vector):
    own = random_vector(3, 16).at(1)
    for arguments, error, words in [
        (([1], [2], Steering(())), SteeringError, "at least one intervention"),
        (([1], [2], vector.at(LAYER)), SteeringError, "made for another model"),
        (([], [], own), ModelError, "no tokens"),
        (([5] * 200, [], own), ModelError, "200 tokens, and .* at most 128"),
        (([1], [99999], own), ModelError, "token 99999 is not in this model's vocabulary"),
        (([1], [2], own, [7]), ActivationError, "layer 7 is out of range"),
        (([1], [2], own, None, (), "last_promt"), UnknownNameError, "did you mean 'last_prompt'"),
        (([1], [2], own, None, (), 5), SteeringError, "read at position 5 of a prompt of 1"),
    ]:
        with pytest.raises(error, match=words):
            token_effects(tiny_model, *arguments)


@pytest.mark.parametrize("text", ["שלום עולם", "😀 👩\u200d💻 ok", "日本語 naïve", "plain text"])
def test_characters_of_several_tokens_are_whole_and_the_texts_join_to_the_text(model, text):
    ids = model.tokenizer(text)["input_ids"]

    texts = token_texts(model, ids)

    assert len(texts) == len(ids)
    assert "".join(texts) == text
    broken = token_texts(model, ids[:-1])
    assert len(broken) == len(ids) - 1, "a text may end inside a character"
