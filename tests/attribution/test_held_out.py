"""Claims about held-out scores, against directions fitted explicitly in the full space."""

import numpy as np
import pytest
import torch
from planted_activations import planted, runs_of
from sklearn.model_selection import GroupKFold

from steerlens.activations.cache import ResidualCache
from steerlens.attribution.held_out import (
    check_rankable,
    difference_scores,
    group_numbers,
)
from steerlens.errors import ActivationError, SteerlensError


def explicit_scores(runs, folds, counts=None, signs=None):
    """The module's equation, direction by direction."""
    n_pairs = runs.shape[1]
    counts = np.ones(n_pairs) if counts is None else counts
    signs = np.ones(n_pairs) if signs is None else signs
    swapped = np.where(signs[:, None] > 0, runs, runs[::-1])
    scores = np.zeros((2, n_pairs))
    for train, test in folds:
        plus, minus = (np.average(side[train], axis=0, weights=counts[train]) for side in swapped)
        direction = plus - minus
        middle = (plus + minus) / 2
        scores[:, test] = (runs[:, test] - middle) @ direction / (direction @ direction)
    return scores


def test_scores_equal_scores_along_explicit_directions():
    runs = runs_of(planted(d_model=40), 2) + 100.0
    folds = check_rankable(planted(d_model=40), 5, seed=3)
    np.testing.assert_allclose(
        difference_scores(runs, folds)[:, 0], explicit_scores(runs, folds), rtol=1e-8
    )


def test_resamples_and_swaps_equal_fitting_on_the_resampled_and_swapped_pairs():
    # Given draws with repeats and pairs whose sides are swapped,
    rng = np.random.default_rng(0)
    runs = runs_of(planted(d_model=40), 2)
    folds = check_rankable(planted(d_model=40), 5, seed=0)
    counts = rng.multinomial(64, np.full(64, 1 / 64), size=3).astype(float)
    signs = rng.choice((-1.0, 1.0), size=(3, 64))
    # when all are scored at once, each row is that of its own fit.
    scores = difference_scores(runs, folds, counts, signs)
    for row in range(3):
        expected = explicit_scores(runs, folds, counts[row], signs[row])
        np.testing.assert_allclose(scores[:, row], expected, rtol=1e-8)


def test_folds_are_those_of_scikit_learn_and_keep_base_queries_whole():
    groups = np.repeat(np.arange(16), 4)
    folds = check_rankable(planted(groups=groups.tolist()), 5, seed=7)
    expected = GroupKFold(5, shuffle=True, random_state=7).split(np.zeros(64), groups=groups)
    for (train, test), (train_too, test_too) in zip(folds, expected, strict=True):
        np.testing.assert_array_equal(train, train_too)
        np.testing.assert_array_equal(test, test_too)
        assert not set(groups[train]) & set(groups[test])


def test_group_numbers_have_no_gaps():
    assert group_numbers([40, 7, 40, 9]).tolist() == [2, 0, 2, 1]


def with_layer(change):
    """A good cache whose layer 1 is changed after it passed the door of the cache itself."""
    cache = planted(n_pairs=8, n_layers=3)
    change(cache.instructed, cache.uninstructed)
    return cache


def constant(plus, minus):
    plus[:, 1] = 1.0
    minus[:, 1] = 1.0


def equal_means(plus, minus):
    plus[:, 1] = minus[:, 1].flip(0)


def all_constant():
    same = torch.ones(10, 3, 4)
    return ResidualCache.from_tensors(same, same)


def infinite(plus, minus):
    minus[5, 1, 0] = torch.inf


@pytest.mark.parametrize(
    ("cache", "words"),
    [
        (planted(n_pairs=6, groups=[1] * 6), r"one base query.*difference_of_means"),
        (planted(n_pairs=4), r"4 base queries cannot fill 5 folds.*n_folds=4"),
        (with_layer(constant), r"layer 1 .*constant activations.*other 2 layers can be ranked"),
        (all_constant(), r"layer 0 .*so it is at 2 more, so no .*there; check that the pairs"),
        (with_layer(equal_means), r"layer 1 has the same mean .*other 2 layers can be ranked"),
        (with_layer(infinite), r"layer 1 holds NaN or infinity.*uninstructed run of pair 5"),
    ],
)
def test_what_cannot_be_computed_and_what_can_is_said_in_one_sentence(cache, words):
    with pytest.raises(ActivationError, match=words):
        check_rankable(cache, 5, 0)


@pytest.mark.parametrize(("n_folds", "seed"), [(1, 0), (5, -1), (5, 2**32)])
def test_settings_out_of_range_are_refused(n_folds, seed):
    with pytest.raises(SteerlensError, match="must be"):
        check_rankable(planted(), n_folds, seed)


def test_a_fold_without_training_pairs_scores_zero():
    cache = ResidualCache.from_tensors(torch.ones(2, 1, 3), torch.zeros(2, 1, 3))
    scores = difference_scores(
        runs_of(cache, 0),
        [(np.array([0]), np.array([1])), (np.array([1]), np.array([0]))],
        counts=np.array([[0.0, 2.0]]),
    )
    # The first pair is drawn for no fold, so nothing can be fitted to score the second.
    assert (scores[:, :, 1] == 0).all()
