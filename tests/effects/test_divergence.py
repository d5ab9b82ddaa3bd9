"""Claims about what steering costs per response token, against a plain Hugging Face computation."""

from dataclasses import replace

import numpy as np
import pytest
from hf_reference import Change, kl, one_pass
from steering_examples import n_hooks, random_vector

from steerlens.effects.divergence import interval_of, resampled, response_kl, statistic_of, token_kl
from steerlens.engine.generation import generate
from steerlens.errors import SteeringError

PROMPTS = ["Tell me about Rome.", "Why is the sky blue?", "List fruits.", "Write a short poem."]


@pytest.mark.parametrize("scope", ["all", "response"])
def test_kl_equals_a_plain_hugging_face_computation(model, hf_model, scope):
    layer, vector = 20, random_vector(30, 576)
    steering = vector.at(layer, "add", 0.5, scope)
    u, g = vector.directions[layer], vector.gaps[layer]
    answers = generate(model, PROMPTS[:2], max_new_tokens=8)
    [found] = token_kl(model, answers, [steering])
    for prompt, response, found_kl in zip(
        answers.prompt_tokens, answers.tokens, found, strict=True
    ):
        change = Change(layer, lambda x: x + 0.5 * g * u, scope)
        plain, steered = (
            one_pass(hf_model, prompt, changes, response).logprobs[len(prompt) - 1 : -1]
            for changes in ([], [change])
        )
        np.testing.assert_allclose(found_kl, kl(steered, plain), rtol=2e-3, atol=2e-5)
    if scope == "response":
        assert all(one[0] < 1e-6 for one in found)


def test_several_steerings_are_scored_side_by_side_as_they_would_be_alone(tiny_model):
    vector = random_vector(tiny_model.cfg.n_layers, tiny_model.cfg.d_model)
    several = [vector.at(0, "add"), vector.at(2), vector.at(1, "ablate", scope="response")]
    short, long = (generate(tiny_model, PROMPTS[:2], max_new_tokens=n) for n in (3, 6))
    answers = replace(long, tokens=(short.tokens[0], long.tokens[1]))  # of different lengths
    before = n_hooks(tiny_model)
    together = token_kl(tiny_model, answers, several)
    assert n_hooks(tiny_model) == before
    for steering, rows in zip(several, together, strict=True):
        [alone] = token_kl(tiny_model, answers, [steering])
        for one, other in zip(rows, alone, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_strength_zero_costs_nothing(tiny_model):
    vector = random_vector(tiny_model.cfg.n_layers, tiny_model.cfg.d_model)
    cost = response_kl(tiny_model, vector.at(1, strength=0.0), PROMPTS, max_new_tokens=5)
    # Rows that run together in another number may round otherwise, on some processors: a
    # log-probability of −16 has steps of 1e-6 in float32.
    assert cost.kl < 1e-6 and cost.high < 1e-6


def test_the_mean_is_over_tokens_and_the_interval_over_prompts(tiny_model):
    vector = random_vector(tiny_model.cfg.n_layers, tiny_model.cfg.d_model)
    cost = response_kl(tiny_model, vector.at(1, "add"), PROMPTS, max_new_tokens=6)
    every = np.concatenate(cost.tokens)
    assert cost.kl == pytest.approx(every.mean())
    assert cost.low <= cost.kl <= cost.high
    median = response_kl(tiny_model, vector.at(1, "add"), PROMPTS, 0.5, max_new_tokens=6)
    assert median.kl == pytest.approx(np.median(every))
    assert "0.5 quantile" in repr(median) and "4 prompts" in repr(median)


@pytest.mark.parametrize("quantile", [None, 0.75])
def test_resamples_draw_whole_prompts(quantile):
    tokens = [np.array([1.0, 2.0, 3.0]), np.array([10.0]), np.array([]), np.array([5.0, 5.0])]
    samples = resampled(tokens, quantile, n_resamples=300, seed=0)
    # three prompts have tokens, so there are 3³ equally likely draws
    filled = [row for row in tokens if len(row)]
    possible = [
        statistic_of([filled[i] for i in (a, b, c)], quantile)
        for a in range(3)
        for b in range(3)
        for c in range(3)
    ]
    assert all(np.isclose(possible, sample).any() for sample in samples)
    assert samples.mean() == pytest.approx(np.mean(possible), rel=0.1)
    low, high = interval_of(tokens, quantile, 300, 0)
    assert (low, high) == pytest.approx(tuple(np.percentile(samples, (2.5, 97.5))))


def test_a_steering_that_breaks_the_model_costs_more_than_any_budget(tiny_model):
    vector = random_vector(tiny_model.cfg.n_layers, tiny_model.cfg.d_model)
    answers = generate(tiny_model, PROMPTS[:2], max_new_tokens=4)
    [rows] = token_kl(tiny_model, answers, [vector.at(1, "add", 1e38)])
    assert all(np.isinf(row).all() for row in rows)


def test_only_unsteered_greedy_responses_are_accepted(tiny_model):
    vector = random_vector(tiny_model.cfg.n_layers, tiny_model.cfg.d_model)
    steering = vector.at(1, "add")
    steered = generate(tiny_model, PROMPTS[:2], steering=steering, max_new_tokens=3)
    sampled = generate(tiny_model, PROMPTS[:2], temperature=1.0, max_new_tokens=3)
    for answers in (steered, sampled):
        with pytest.raises(SteeringError, match="greedy responses without steering"):
            response_kl(tiny_model, steering, answers)


@pytest.mark.parametrize(
    "wrong", [{"quantile": 1.0}, {"quantile": 0.0}, {"n_resamples": 0}, {"seed": -1}]
)
def test_numbers_out_of_range_are_refused(tiny_model, wrong):
    vector = random_vector(tiny_model.cfg.n_layers, tiny_model.cfg.d_model)
    with pytest.raises(SteeringError, match="quantile must lie"):
        response_kl(tiny_model, vector.at(1), PROMPTS, **wrong)
