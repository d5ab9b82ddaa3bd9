"""Claims about one prompt answered without and with steering."""

import re

import pytest
from steering_examples import n_hooks, random_vector

from steerlens.effects import record_run, steer
from steerlens.engine.generation import generate
from steerlens.errors import SteeringError
from steerlens.explorer.pins import Pin, pins_table
from steerlens.explorer.trials import Setting
from steerlens.steering.interventions import Steering

LAYER = 14
PROMPT = "Tell me about Rome."


@pytest.fixture(scope="module")
def vector():
    return random_vector(30, 576)


@pytest.fixture(scope="module")
def run(model, vector):
    return steer(model, PROMPT, vector.at(LAYER, "add", 1.5), max_new_tokens=12)


def test_texts_are_those_that_generate_gives(model, run, vector):
    plain = generate(model, PROMPT, max_new_tokens=12)
    steered = generate(model, PROMPT, steering=vector.at(LAYER, "add", 1.5), max_new_tokens=12)

    assert (run.baseline, run.steered) == (plain.texts[0], steered.texts[0])
    n_prompt = run.effects.n_prompt
    assert run.effects.token_ids[n_prompt:] == steered.tokens[0]
    assert run.free.baseline.token_ids[n_prompt:] == plain.tokens[0]
    assert run.parts_at is not None
    assert run.settings["steering"] == ["difference_of_means: add ×1.5 at layer 14 on all"]


def test_a_sampled_baseline_is_the_one_that_generate_samples(model, vector):
    options = {"temperature": 0.8, "seed": 3, "max_new_tokens": 6}

    run = steer(model, PROMPT, vector.at(LAYER, "add", 0.0), **options)

    assert run.baseline == generate(model, PROMPT, **options).texts[0]
    assert run.steered == run.baseline, "both draw from the same stream"


def test_strength_zero_gives_equal_texts_and_no_effect(model, vector):
    run = steer(model, "Hi there.", vector.at(LAYER, "add", 0.0), max_new_tokens=6)

    assert run.baseline == run.steered
    assert run.parts_at is None and run.meets_at is None
    assert run.effects.kl.max() == 0.0
    assert "the texts are equal" in repr(run)


def test_no_hook_stays_on_the_model(model, vector, run):
    assert n_hooks(model) == 0
    record_run(model, [5, 6], [7], [8, 9], vector.at(LAYER))
    assert n_hooks(model) == 0


def test_what_cannot_be_steered_is_refused_before_anything_is_generated(tiny_model, monkeypatch):
    def too_late(*_args, **_kwargs):
        raise AssertionError("generated before the steering was checked")

    monkeypatch.setattr("steerlens.effects.run.generate", too_late)
    for steering, words in [
        (Steering(()), "at least one intervention"),
        ("title", "not 'title'"),
        (random_vector(3, 16), "not SteeringVector"),
        (random_vector(30, 576).at(LAYER), "made for another model"),
    ]:
        with pytest.raises(SteeringError, match=words):
            steer(tiny_model, "Hi", steering)


def test_a_strength_that_breaks_the_logits_is_one_sentence(tiny_model):
    with pytest.raises(SteeringError, match="lower the strength"):
        steer(tiny_model, "Hi", random_vector(3, 16).at(1, "add", 1e38), max_new_tokens=4)


def test_one_run_has_one_mean_kl_wherever_it_is_told(tiny_model) -> None:
    # given a run, and its mean over the positions that predict the response, by plain arithmetic
    steering = random_vector(3, 16).at(1, "add", 3.0)
    run = steer(tiny_model, "Hi there", steering, max_new_tokens=6)
    rows = run.effects.table.kl.tolist()
    predicting = rows[run.effects.n_prompt - 1 :]
    expected = sum(predicting) / len(predicting)
    assert expected > 0 and abs(expected - sum(rows) / len(rows)) > 1e-4, "not that of all tokens"

    # then every view of it tells that number
    assert run.effects.mean_kl == pytest.approx(expected, rel=1e-5)
    assert f"mean KL over the response {expected:.3g} nats" in repr(run.effects)
    pin = Pin.of(Setting("own words", 1), "Hi there", run)
    for view in (run.effects._repr_html_(), pins_table([pin])):
        [told] = re.findall(r"mean KL over the response (?:\(nats\) <b>)?([0-9.]+)", view)
        assert float(told) == pytest.approx(expected, abs=5e-4)
