"""Claims about calibrated strengths."""

import math

import numpy as np
import pytest
from steering_examples import random_vector

from steerlens.behaviour.calibration import calibrate, calibrated
from steerlens.effects.divergence import response_kl
from steerlens.engine.generation import generate
from steerlens.errors import SteeringError
from steerlens.steering.interventions import Steering
from steerlens.vectors import SteeringVector

PROMPTS = ["Tell me about Rome.", "Why is the sky blue?", "List fruits.", "Write a short poem."]


@pytest.fixture(scope="module")
def vector(tiny_model) -> SteeringVector:
    return random_vector(tiny_model.cfg.n_layers, tiny_model.cfg.d_model)


@pytest.fixture(scope="module")
def answers(tiny_model):
    return generate(tiny_model, PROMPTS, max_new_tokens=8)


def test_the_calibrated_strength_meets_the_budget_in_the_real_model(model):
    vector = random_vector(30, 576)
    answers = generate(model, PROMPTS, max_new_tokens=12)
    calibration = calibrate(model, vector.at(20, "add"), answers, target_kl=0.05)
    # measured anew, at the strength that came out
    cost = response_kl(model, vector.at(20, "add", calibration.strength), answers)
    assert calibration.reached and calibration.reason == ""
    assert cost.kl == pytest.approx(0.05, rel=0.011)
    assert calibration.kl == pytest.approx(cost.kl, rel=1e-3)
    assert (calibration.kl_low, calibration.kl_high) == pytest.approx((cost.low, cost.high), 1e-3)
    assert calibration.strength_low <= calibration.strength <= calibration.strength_high
    assert calibration.metadata["n_tokens"] == sum(len(row) for row in answers.tokens)


@pytest.mark.parametrize("target", [0.001, 0.02, 0.3])
@pytest.mark.parametrize("operation", ["add", "ablate"])
def test_budgets_over_orders_of_magnitude_are_met(tiny_model, vector, answers, target, operation):
    steering = vector.at(1, operation)
    calibration = calibrate(tiny_model, steering, answers, target, highest=64.0)
    assert calibration.reached
    again = response_kl(tiny_model, calibration.steering, answers)
    assert again.kl == pytest.approx(target, rel=0.011)
    assert calibration.table.strength.is_monotonic_increasing


def test_a_quantile_can_be_held_instead_of_the_mean(tiny_model, vector, answers):
    calibration = calibrate(tiny_model, vector.at(1, "add"), answers, 0.05, quantile=0.9)
    cost = response_kl(tiny_model, calibration.steering, answers)
    assert np.quantile(np.concatenate(cost.tokens), 0.9) == pytest.approx(0.05, rel=0.02)


def test_twice_the_direction_takes_half_the_strength(tiny_model, vector, answers):
    once = calibrate(tiny_model, vector.at(1, "add"), answers, 0.05)
    twice = calibrate(tiny_model, (2 * vector).at(1, "add"), answers, 0.05)
    assert twice.strength == pytest.approx(once.strength / 2, rel=0.02)


def test_strength_may_be_anything_a_function_makes_of_it(tiny_model, vector, answers):
    def at_two_layers(strength: float) -> Steering:
        return vector.at(0, "add", strength) + vector.at(2, "add", strength / 2)

    calibration = calibrate(tiny_model, at_two_layers, answers, 0.05)
    strengths = [one.strength for one in calibration.steering.interventions]
    assert strengths == [calibration.strength, calibration.strength / 2]
    assert response_kl(tiny_model, calibration.steering, answers).kl == pytest.approx(0.05, 0.011)


def test_the_smallest_of_several_strengths_is_taken(tiny_model, vector, answers):
    # given a steering that costs the same at s and at 4 − s
    def up_and_down(strength: float) -> Steering:
        return vector.at(1, "add", min(strength, abs(4.0 - strength)))

    calibration = calibrate(tiny_model, up_and_down, answers, 0.02, highest=4.0)
    assert calibration.reached and calibration.strength < 2.0


def test_prompts_may_be_given_as_text(tiny_model, vector):
    calibration = calibrate(tiny_model, vector.at(1, "add"), PROMPTS, 0.05, max_new_tokens=8)
    assert calibration.metadata["n_prompts"] == 4
    assert calibration.metadata["prompts_hash"].startswith("sha256:")


def test_a_budget_that_no_strength_reaches_is_said_to_be_missed(tiny_model, vector, answers):
    within = calibrate(tiny_model, vector.at(1), answers, 50.0, highest=1.0)
    assert not within.reached
    assert "no strength up to 1 costs 50 nats" in within.reason
    assert "not reached" in repr(within)
    assert within.kl == pytest.approx(within.table.kl.max())
    with pytest.raises(SteeringError, match="no calibrated strength to save"):
        within.saved_with(vector)


def test_a_budget_below_the_smallest_strength_is_said_to_be_missed(tiny_model, vector, answers):
    found = calibrate(tiny_model, vector.at(1, "add"), answers, 1e-9, lowest=1.0)
    assert not found.reached and found.strength == 1.0
    assert "even strength 1 costs" in found.reason


def test_strengths_that_break_the_model_are_no_obstacle(tiny_model, vector, answers):
    def explosive(strength: float) -> Steering:
        return vector.at(1, "add", strength if strength < 1 else 1e38)

    calibration = calibrate(tiny_model, explosive, answers, 0.01)
    assert calibration.reached and calibration.strength < 1
    assert math.isinf(calibration.table.kl.iloc[-1])


def test_a_calibration_travels_with_its_vector(tiny_model, vector, answers, tmp_path):
    small = calibrate(tiny_model, vector.at(1, "add"), answers, 0.01)
    large = calibrate(tiny_model, vector.at(1, "add"), answers, 0.1)
    kept = large.saved_with(small.saved_with(vector))
    loaded = SteeringVector.load(kept.save(tmp_path / "v.safetensors"))
    assert [one["target_kl"] for one in loaded.metadata["calibration"]] == [0.01, 0.1]
    [one] = calibrated(loaded, target_kl=0.1).interventions
    assert (one.layer, one.operation, one.strength) == (1, "add", large.strength)
    # the same question answered again takes the place of the first answer
    assert len(large.saved_with(kept).metadata["calibration"]) == 2
    with pytest.raises(SteeringError, match="2 calibrations of this vector fit"):
        calibrated(loaded)
    with pytest.raises(SteeringError, match=r"0 calibrations .* it has: none"):
        calibrated(vector)


def test_a_calibration_of_something_else_is_not_saved_with_a_vector(tiny_model, vector, answers):
    other = random_vector(tiny_model.cfg.n_layers, tiny_model.cfg.d_model, seed=5)
    for steering in (other.at(1, "add"), vector.at(1, "add") + vector.at(2, "add")):
        calibration = calibrate(tiny_model, steering, answers, 0.05)
        with pytest.raises(SteeringError, match="at one layer"):
            calibration.saved_with(vector)


@pytest.mark.parametrize(
    "wrong",
    [
        {"target_kl": 0.0},
        {"target_kl": float("nan")},
        {"lowest": 0.0},
        {"lowest": 4.0, "highest": 2.0},
        {"tolerance": 0.0},
    ],
)
def test_numbers_out_of_range_are_refused(tiny_model, vector, answers, wrong):
    with pytest.raises(SteeringError, match="target_kl must be positive"):
        calibrate(tiny_model, vector.at(1), answers, **wrong)


def test_a_vector_of_another_model_is_refused(tiny_model, answers):
    with pytest.raises(SteeringError, match="d_model 17"):
        calibrate(tiny_model, random_vector(3, 17).at(1), answers)
