"""Claims about first-token causal recovery, against a plain Hugging Face computation."""

import pytest
import torch
from steering_examples import random_vector

from steerlens.activations.cache import cache_residuals
from steerlens.attribution import first_token_recovery
from steerlens.errors import SteeringError
from steerlens.models.loading import render_prompt
from steerlens.tasks.drawing import contrast_pairs
from steerlens.tasks.pairs import ContrastSet
from steerlens.vectors import difference_of_means, random_direction


@pytest.fixture(scope="module")
def fitted(model):
    pairs = contrast_pairs("detectable_format:title", n=16, seed=0)
    cache = cache_residuals(model, pairs)
    return difference_of_means(cache), random_direction(cache)


@pytest.fixture(scope="module")
def held_out():
    return contrast_pairs("detectable_format:title", n=6, seed=0, split="select")


def test_recovery_equals_a_plain_hugging_face_computation(model, hf_model, fitted, held_out):
    vector, _ = fitted
    layer = 24
    u, z = vector.directions[layer], vector.targets[layer]

    def first_token(text, steered=False):
        ids = model.tokenizer(render_prompt(model, text), add_special_tokens=False)["input_ids"]

        def hook(_m, _a, out):
            x = out[0] if isinstance(out, tuple) else out
            x = x + (z - x @ u)[..., None] * u
            return (x, *out[1:]) if isinstance(out, tuple) else x

        handle = hf_model.model.layers[layer].register_forward_hook(hook) if steered else None
        with torch.inference_mode():
            logits = hf_model(torch.tensor([ids])).logits[0, -1].double()
        if handle:
            handle.remove()
        return logits.log_softmax(-1)

    def kl(p, q):
        return float((p.exp() * (p - q)).sum())

    remaining = whole = 0.0
    for pair in held_out:
        instructed = first_token(pair.instructed)
        whole += kl(instructed, first_token(pair.uninstructed))
        remaining += kl(instructed, first_token(pair.uninstructed, steered=True))
    curve = first_token_recovery(model, held_out, vector, layers=[layer], batch_size=4)
    assert curve.table.recovery[0] == pytest.approx(1 - remaining / whole, abs=1e-3)


def test_strength_zero_recovers_nothing(model, fitted, held_out):
    curve = first_token_recovery(model, held_out, fitted[0], layers=[5, 24], strength=0.0)
    assert curve.table.recovery.abs().max() < 1e-5


def test_titles_are_recovered_late_and_not_early_and_the_placebo_does_not(model, fitted, held_out):
    vector, placebo = fitted
    table = first_token_recovery(
        model, held_out, vector, layers=[6, 24], placebo=placebo
    ).table.set_index("layer")
    assert table.recovery[24] > 0.5
    assert table.recovery[6] < 0.3
    assert table.placebo.max() < 0.3
    assert table.low[24] <= table.recovery[24] <= table.high[24]


def test_scope_response_is_refused_because_it_cannot_act(model, fitted, held_out):
    with pytest.raises(SteeringError, match="cannot change the first response token"):
        first_token_recovery(model, held_out, fitted[0], scope="response")


def test_pairs_without_an_effect_have_nothing_to_recover(model, fitted):
    same = ContrastSet.from_prompts(["Hi.", "Why?"], ["Hi.", "Why?"])
    with pytest.raises(SteeringError, match="no effect to recover"):
        first_token_recovery(model, same, fitted[0], layers=[24])


@pytest.mark.parametrize("wrong", [{"layers": []}, {"batch_size": 0}])
def test_numbers_out_of_range_are_refused(model, fitted, held_out, wrong):
    with pytest.raises(SteeringError, match="at least"):
        first_token_recovery(model, held_out, fitted[0], **wrong)


def test_a_placebo_for_another_model_is_refused(model, fitted, held_out):
    with pytest.raises(SteeringError, match="d_model 16"):
        first_token_recovery(model, held_out, fitted[0], placebo=random_vector(30, 16))
