"""Calibration by how many responses follow: counted on the real model, chosen by a stated rule."""

import numpy as np
import pytest
from steering_examples import random_vector

import steerlens as sl
from steerlens.behaviour.calibration import calibrate_rate, calibrated
from steerlens.behaviour.calibration.rates import _chosen
from steerlens.errors import PairsError, SteeringError, UnknownNameError
from steerlens.tasks.fluency import fluency, is_degenerate

TITLE = "detectable_format:title"


@pytest.fixture(scope="module")
def title(model):
    pairs = sl.contrast_pairs(TITLE, n=16)
    return sl.difference_of_means(sl.cache_residuals(model, pairs, show_progress=False))


@pytest.fixture(scope="module")
def found(model, title):
    return calibrate_rate(
        model, title.at(24), TITLE, strengths=[1.0, 2.0], n_prompts=4, max_new_tokens=24
    )


def test_rates_are_those_of_responses_generated_one_strength_at_a_time(model, title, found):
    pairs = sl.contrast_pairs(TITLE, n=4, split="select")
    prompts = [pair.uninstructed for pair in pairs]
    for row in found.table.to_dict("records"):
        steering = title.at(24, strength=row["strength"])
        texts = sl.generate(model, prompts, [steering] * 4, max_new_tokens=24).texts
        passed = [sl.catalogue[TITLE].check(text, loose=True) for text in texts]
        clean = [p and not is_degenerate(fluency(t)) for p, t in zip(passed, texts, strict=True)]
        assert row["passed"] == np.mean(passed)
        assert row["rate"] == np.mean(clean)
        assert row["rate_low"] <= row["rate"] <= row["rate_high"]
    assert found.table.strength.tolist() == [0.0, 1.0, 2.0]


def test_the_strength_found_travels_with_its_vector(title, found, tmp_path):
    assert found.reached and found.strength in (1.0, 2.0)
    path = found.saved_with(title).save(tmp_path / "title.safetensors")
    loaded = sl.SteeringVector.load(path)
    [one] = calibrated(loaded, instruction=TITLE).interventions
    assert (one.layer, one.strength) == (24, found.strength)
    assert "successes" in repr(found) and found.plot().data and "<table" in found._repr_html_()


def test_the_smallest_strength_that_suffices_is_chosen_and_none_wins_ties():
    assert _chosen(np.array([0.0, 0.5, 0.9, 0.9]), [0.0, 1.0, 2.0, 3.0], None) == (2, "")
    assert _chosen(np.array([0.0, 0.5, 0.9, 0.9]), [0.0, 1.0, 2.0, 3.0], 0.5) == (1, "")
    assert _chosen(np.array([0.2, 0.2]), [0.0, 1.0], None)[1].endswith("gains anything over none")
    best, reason = _chosen(np.array([0.0, 0.4, 0.3]), [0.0, 1.0, 2.0], 0.8)
    assert best == 1 and "comes nearest with 40%" in reason


def test_what_gains_nothing_is_not_saved(tiny_model):
    vector = random_vector(tiny_model.cfg.n_layers, tiny_model.cfg.d_model)
    found = calibrate_rate(
        tiny_model, vector.at(1, "add"), TITLE, strengths=[1.0], n_prompts=2, max_new_tokens=2
    )
    assert not found.reached and found.strength == 0
    with pytest.raises(SteeringError, match="no calibrated strength to save"):
        found.saved_with(vector)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"strengths": []}, SteeringError, "at least one"),
        ({"strengths": [-1.0]}, SteeringError, "positive"),
        ({"strengths": [float("nan")]}, SteeringError, "finite"),
        ({"target_rate": 1.5}, SteeringError, "at most 1"),
        ({"task": "format:titel"}, UnknownNameError, "titel"),
        ({"n_prompts": 10_000}, PairsError, "10000"),
    ],
)
def test_bad_numbers_and_names_are_refused(tiny_model, changes, error, words):
    vector = random_vector(tiny_model.cfg.n_layers, tiny_model.cfg.d_model)
    with pytest.raises(error, match=words):
        calibrate_rate(
            tiny_model, vector.at(1, "add"), **{"task": TITLE, "n_prompts": 2, **changes}
        )
