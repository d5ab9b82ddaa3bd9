"""Claims about the other-task control and about vectors made beside other tasks."""

import numpy as np
import pytest
import torch
from steering_examples import random_vector

from analyses.specific_calibration import World, drawn
from steerlens.attribution.causal import causal_recovery, first_token_recovery
from steerlens.attribution.model_evidence import tokenized_sides
from steerlens.attribution.teacher_forcing import kl_to_instructed
from steerlens.errors import SteeringError
from steerlens.tasks.pairs import ContrastSet
from steerlens.vectors import difference_from_others, norm_matched, other_task_vectors, own_part
from steerlens.vectors.others import others_of

PAIRS = ContrastSet.from_prompts(["ab!!!", "cde!!!", "f!!!"], ["ab", "cde", "f"])
WORLD = World(own=8.0, n_tasks=6, d_model=64, n_queries=12)


def test_the_control_is_the_mean_over_others_pushed_as_far_and_the_difference_is_paired(tiny_model):
    vector, *others = (random_vector(3, 16, seed) for seed in (1, 2, 3))
    table = first_token_recovery(tiny_model, PAIRS, vector, others=others).table
    matched = [norm_matched(other, vector) for other in others]
    alone = [first_token_recovery(tiny_model, PAIRS, each).table.recovery for each in matched]
    np.testing.assert_allclose(table.other_task, np.mean(alone, axis=0), atol=1e-6)
    np.testing.assert_allclose(table.specific, table.recovery - table.other_task, atol=1e-9)
    # The interval by hand: the jackknife of a ratio of sums over three queries, t with two degrees
    # of freedom.
    sides = tokenized_sides(tiny_model, PAIRS, "auto")
    steerings = [None, *(each.at(1) for each in (vector, *matched))]
    kl = kl_to_instructed(tiny_model, *sides, [(0,)] * 3, steerings, False)[:, :, 0]
    gained, whole = kl[2:].mean(0) - kl[1], kl[0]
    ratio = gained.sum() / whole.sum()
    without = [np.delete(gained, i).sum() / np.delete(whole, i).sum() for i in range(3)]
    spread = np.sqrt(2 / 3 * sum((each - ratio) ** 2 for each in without))
    row = table.set_index("layer").loc[1]
    expected = [ratio, ratio - 4.30265 * spread, ratio + 4.30265 * spread]
    assert row[["specific", "specific_low", "specific_high"]].tolist() == pytest.approx(
        expected, abs=1e-5
    )


def test_whole_responses_have_the_same_control_at_the_first_token(tiny_model):
    vector, *others = (random_vector(3, 16, seed) for seed in (1, 2, 3))
    first = first_token_recovery(tiny_model, PAIRS, vector, others=others).table
    table = causal_recovery(
        tiny_model, PAIRS, vector, scopes=("prompt",), horizons=(1, 4), others=others
    ).table
    short = table[table.horizon == 1]
    for name in ("other_task", "specific", "specific_low", "specific_high"):
        np.testing.assert_allclose(short[name], first[name], atol=1e-4)
    assert "placebo" not in table


def test_a_matched_vector_pushes_as_far_from_its_own_baseline():
    vector, other = random_vector(3, 16, 1), random_vector(3, 16, 2)
    matched = norm_matched(other, vector)
    torch.testing.assert_close(matched.gaps, vector.gaps)
    torch.testing.assert_close(matched.targets - matched.baselines, vector.gaps)
    torch.testing.assert_close(matched.directions, other.directions)
    with pytest.raises(SteeringError, match="differ in width"):
        norm_matched(random_vector(3, 8, 1), vector)


def test_directions_beside_others_equal_numpys():
    grid, _ = drawn(WORLD, seed=0)
    fit = np.array(grid.halves) == 0
    runs = grid.instructed[:, fit, 1].double().numpy()
    bare = grid.uninstructed[fit, 1].double().numpy().mean(0)
    against = runs[0].mean(0) - runs[1:].mean((0, 1))
    vector = difference_from_others(grid)
    np.testing.assert_allclose(
        vector.gaps[1] * vector.directions[1], against, atol=1e-5 * np.abs(against).max()
    )
    others = (runs[1:].mean(1) - bare).T
    difference = runs[0].mean(0) - bare
    rest = difference - others @ np.linalg.lstsq(others, difference, rcond=None)[0]
    direction = own_part(grid).directions[1].double().numpy()
    np.testing.assert_allclose(direction, rest / np.linalg.norm(rest), atol=1e-5)
    assert np.abs(direction @ others).max() < 1e-5
    names = {other.metadata["instruction"] for other in others_of(grid, n=3)}
    assert len(names) == 3 and "task 0" not in names


def test_nothing_is_left_of_a_task_that_the_others_span():
    grid, _ = drawn(World(own=8.0, n_tasks=20, d_model=16, n_queries=4), seed=0)
    with pytest.raises(SteeringError, match="nothing of 'task 0' is left beside the 19 other"):
        own_part(grid)


def test_control_vectors_of_a_model_are_those_of_its_other_tasks(
    roomy_model, tmp_path, monkeypatch
):
    monkeypatch.setenv("STEERLENS_CACHE", str(tmp_path))
    others = ["startend:quotation", "language:response_language_de"]
    vectors = other_task_vectors(roomy_model, "detectable_format:title", others=others, n_queries=4)
    assert {vector.name for vector in vectors} == set(others)
    with pytest.raises(SteeringError, match="at least 1 other task"):
        other_task_vectors(roomy_model, "detectable_format:title", n=0)
