"""Claims about the dimension of an instruction, against singular value decompositions."""

import numpy as np
import pytest
import torch
from planted_activations import planted, runs_of
from sklearn.metrics import roc_auc_score

from steerlens.activations.cache import ResidualCache
from steerlens.attribution.dimension import instruction_dimension
from steerlens.attribution.held_out import check_rankable
from steerlens.errors import ActivationError, SteerlensError


def cache_of(runs):
    sides = torch.from_numpy(runs[:, :, None]).float()
    return ResidualCache.from_tensors(sides[0], sides[1])


def spread_over(n_axes, noise=0.3, large=6.0, n_pairs=80, d_model=24, seed=0):
    """A mean difference over `n_axes` axes, each of them also varying, in different amounts."""
    rng = np.random.default_rng(seed)
    runs = rng.standard_normal((2, n_pairs, d_model)) * noise
    sizes = np.arange(1, n_axes + 1) * large
    # Every query is moved along one of the axes only, so none of them carries all.
    axis = np.arange(n_pairs) % n_axes
    runs[0, np.arange(n_pairs), axis] += sizes[axis]
    return runs


def test_the_share_equals_projecting_on_singular_vectors_of_the_training_folds():
    cache = cache_of(spread_over(3))
    runs, folds = runs_of(cache, 0), check_rankable(cache, 5, seed=2)
    carried, whole = np.zeros(6), 0.0
    for train, test in folds:
        difference = runs[0] - runs[1]
        components = np.linalg.svd(difference[train], full_matrices=False)[2][:6]
        mean = difference[train].mean(axis=0)
        held_out = difference[test].sum(axis=0)
        carried += np.cumsum((components @ held_out) * (components @ mean))
        whole += held_out @ mean
    table = instruction_dimension(cache, seed=2)
    assert table.first_share[0] == pytest.approx(carried[0] / whole)
    assert table.dimension[0] == 1 + int(np.argmax(carried / whole >= 0.9))


@pytest.mark.parametrize("n_axes", [1, 2, 4])
def test_an_instruction_spread_over_axes_has_their_number_as_dimension(n_axes):
    # 0.99 of the mean difference needs every axis; the smallest of four carries 1/30 of it.
    row = instruction_dimension(cache_of(spread_over(n_axes)), share=0.99).iloc[0]
    assert row.dimension == n_axes
    assert row.dimension_low <= n_axes <= row.dimension_high


def test_what_remains_equals_the_auroc_after_projecting_components_out():
    cache = cache_of(spread_over(3))
    runs, folds = runs_of(cache, 0), check_rankable(cache, 5, seed=0)
    row = instruction_dimension(cache, share=0.5).iloc[0]
    scores = np.zeros(runs.shape[:2])
    for train, test in folds:
        difference = (runs[0] - runs[1])[train]
        components = np.linalg.svd(difference, full_matrices=False)[2][: int(row.dimension)]
        mean = difference.mean(axis=0)
        rest = mean - components.T @ (components @ mean)
        middle = runs[:, train].mean(axis=(0, 1))
        scores[:, test] = (runs[:, test] - middle) @ rest / (rest @ rest)
    expected = roc_auc_score(np.repeat([1, 0], 80), scores.ravel())
    assert row.remaining_auroc == pytest.approx(expected)
    assert row.remaining_auroc_low < expected < row.remaining_auroc_high


def test_where_queries_share_nothing_there_is_no_dimension():
    # Given twelve layers of noise: held-out means point along training means by chance only,
    sides = torch.randn(2, 20, 12, 300, generator=torch.Generator().manual_seed(0))
    cache = ResidualCache.from_tensors(sides[0], sides[1])
    table = instruction_dimension(cache, seed=1)
    difference = (sides[0] - sides[1]).double().numpy()
    along = np.zeros(12)
    for train, test in check_rankable(cache, 5, seed=1):
        along += (difference[test].sum(0) * difference[train].mean(0)).sum(-1)
    # then a layer has a dimension where they do, and none where they do not.
    np.testing.assert_array_equal(table.dimension.notna(), along > 0)
    np.testing.assert_array_equal(table.remaining_auroc.notna(), along > 0)
    assert 0 < table.dimension.notna().sum() < 12


def test_bad_settings_and_unrankable_caches_are_refused():
    with pytest.raises(SteerlensError, match="share must lie between 0 and 1"):
        instruction_dimension(planted(), share=1.0)
    with pytest.raises(ActivationError, match="one base query"):
        instruction_dimension(planted(n_pairs=4, groups=[0] * 4))
