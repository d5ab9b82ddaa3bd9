"""Claims about the permutation null and its controls, against explicit swapping and counting."""

import numpy as np
import pytest
import torch
from planted_activations import planted, runs_of
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold

from steerlens.activations.cache import ResidualCache
from steerlens.attribution.null import permutation_null
from steerlens.errors import ActivationError, SteerlensError


def explicit_auroc(runs, groups, seed):
    """Cross-validated AUROC of the difference of means by scikit-learn."""
    n_pairs = runs.shape[1]
    scores = np.empty((2, n_pairs))
    folds = GroupKFold(5, shuffle=True, random_state=seed)
    for train, test in folds.split(np.zeros(n_pairs), groups=groups):
        plus, minus = runs[:, train].mean(axis=1)
        direction = plus - minus
        scores[:, test] = (runs[:, test] - (plus + minus) / 2) @ direction / (direction @ direction)
    return roc_auc_score(np.repeat([1, 0], n_pairs), scores.ravel())


def test_maxima_equal_swapping_the_sides_fitting_again_and_taking_the_best_layer():
    # Given pairs of 15 base queries, two each,
    groups = np.repeat(np.arange(15), 2)
    cache = planted(d_prime=0.5, n_pairs=30, n_layers=3, groups=groups.tolist())
    null = permutation_null(cache, seed=4, n_permutations=19)
    # when the sides of the same base queries are swapped by hand,
    swaps = np.random.default_rng(4).choice((-1.0, 1.0), size=(19, 15))[:, groups]
    maxima = []
    for signs in swaps:
        swapped = [
            np.where(signs[:, None] > 0, runs, runs[::-1])
            for runs in (runs_of(cache, layer) for layer in cache.layers)
        ]
        maxima.append(max(explicit_auroc(runs, groups, 4) for runs in swapped))
    # then maxima, AUROC and p-values are those of the hand-made null.
    np.testing.assert_allclose(null.maxima, maxima)
    observed = [explicit_auroc(runs_of(cache, layer), groups, 4) for layer in cache.layers]
    np.testing.assert_allclose(null.table.auroc, observed)
    expected = [(1 + sum(m >= auroc for m in maxima)) / 20 for auroc in observed]
    np.testing.assert_allclose(null.table.p_adjusted, expected)
    assert null.p_value == min(expected)


def test_the_planted_layer_is_significant_and_the_others_are_not():
    null = permutation_null(planted(d_prime=2.0), n_permutations=199)
    assert null.table.p_adjusted.le(0.05).tolist() == [False, False, True, False, False]
    assert null.p_value == 1 / 200
    assert null.table.auroc[2] > null.threshold > null.table.auroc.drop(index=2).max()


def test_a_true_null_is_rejected_at_5_percent_in_3_to_7_percent_of_300_seeds():
    rejected = 0
    for seed in range(300):
        rng = np.random.default_rng([11, seed])
        # Layers that add to each other, and sides that share their query, as in a model.
        query, plus, minus = rng.standard_normal((3, 30, 3, 12)).cumsum(axis=2)
        sides = torch.from_numpy(np.stack([query + plus, query + minus]))
        cache = ResidualCache.from_tensors(sides[0], sides[1])
        null = permutation_null(cache, seed=seed, n_permutations=99, n_directions=1)
        rejected += null.p_value <= 0.05
        assert (null.table.auroc.max() > null.threshold) == (null.p_value <= 0.05)
    assert 0.03 * 300 <= rejected <= 0.07 * 300


def test_shuffled_labels_say_one_half():
    table = permutation_null(planted(d_prime=3.0), n_permutations=199).table
    assert (table.shuffled_auroc - 0.5).abs().max() < 0.03
    assert (table.shuffled_auroc_low < 0.45).all() and (table.shuffled_auroc_high > 0.55).all()


def test_random_directions_separate_only_where_the_difference_is_everywhere():
    # Given one layer whose sides differ along one axis and one where they differ along all,
    sides = torch.randn(2, 64, 2, 48, generator=torch.Generator().manual_seed(0))
    sides[0, :, 0, 3] += 3.0
    sides[0, :, 1] += 3.0
    table = permutation_null(
        ResidualCache.from_tensors(sides[0], sides[1]), n_permutations=19, n_directions=60
    ).table
    # then fitted directions separate in both, random ones only in the second.
    assert (table.auroc > 0.9).all()
    assert table.random_auroc[0] < 0.65 and table.random_auroc[1] > 0.85


def test_bad_settings_and_unrankable_caches_are_refused():
    with pytest.raises(SteerlensError, match="at least 19 permutations"):
        permutation_null(planted(), n_permutations=5)
    with pytest.raises(ActivationError, match="one base query"):
        permutation_null(planted(n_pairs=4, groups=[0] * 4))
