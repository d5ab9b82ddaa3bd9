"""Claims about separability, against scikit-learn and planted signals."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold

from steerlens.activations import ResidualCache
from steerlens.attribution import rank_layers
from steerlens.errors import ActivationError, SteerlensError


def planted(d_prime=2.0, layer=2, n_pairs=64, n_layers=5, d_model=16, seed=0, groups=None):
    """Unit-variance noise, with the instructed side shifted by `d_prime` along one axis."""
    rng = np.random.default_rng(seed)
    sides = rng.standard_normal((2, n_pairs, n_layers, d_model)).astype(np.float32)
    sides[0, :, layer, 3] += d_prime
    # A small shift everywhere else: each layer has a direction, but a weak one.
    sides[0, :, :, 5] += 0.1
    tensors = torch.from_numpy(sides)
    return ResidualCache.from_tensors(tensors[0], tensors[1], groups=groups)


def test_the_planted_layer_is_found_with_confidence():
    ranking = rank_layers(planted(), seed=0)
    assert ranking.best_layer == 2
    assert ranking.selection_frequency[2] > 0.95
    assert sum(ranking.selection_frequency.values()) == pytest.approx(1.0)


def test_auroc_equals_scikit_learn_on_the_same_held_out_scores():
    cache = planted(d_prime=1.0)
    plus, minus = cache.instructed.double().numpy(), cache.uninstructed.double().numpy()
    scores = np.empty((2, 5, 64))
    folds = GroupKFold(n_splits=5, shuffle=True, random_state=7)
    for train, test in folds.split(np.zeros(64), groups=np.arange(64)):
        difference = plus[train].mean(0) - minus[train].mean(0)
        gap = np.linalg.norm(difference, axis=-1, keepdims=True)
        middle = (plus[train].mean(0) + minus[train].mean(0)) / 2
        for side, values in enumerate((plus, minus)):
            scores[side][:, test] = (((values[test] - middle) * difference / gap**2).sum(-1)).T
    expected = [
        roc_auc_score(np.repeat([1, 0], 64), np.concatenate([scores[0, n], scores[1, n]]))
        for n in range(5)
    ]
    table = rank_layers(cache, seed=7).table
    np.testing.assert_allclose(table.auroc, expected, atol=1e-6)
    accuracy = ((scores[0] > 0).mean(1) + (scores[1] < 0).mean(1)) / 2
    np.testing.assert_allclose(table.accuracy, accuracy)


def test_intervals_hold_their_estimate_and_shrink_with_more_pairs():
    few, many = (rank_layers(planted(n_pairs=n)).table for n in (24, 192))
    for table in (few, many):
        assert (table.auroc_low <= table.auroc).all()
        assert (table.auroc <= table.auroc_high).all()
    width = [(t.d_prime_high - t.d_prime_low).mean() for t in (few, many)]
    assert width[1] < width[0] / 2


def test_pairs_of_one_base_query_are_never_split_between_training_and_test():
    # Given pairs whose signal is private to their base query, with many pairs a query,
    rng = np.random.default_rng(0)
    private = rng.standard_normal((8, 1, 32)).astype(np.float32) * 3
    sides = rng.standard_normal((2, 64, 1, 32)).astype(np.float32)
    groups = np.repeat(np.arange(8), 8)
    sides[0] += private[groups]
    tensors = torch.from_numpy(sides)
    # when queries may be split, the private signal leaks; when they are kept whole, it cannot.
    leaky = rank_layers(ResidualCache.from_tensors(tensors[0], tensors[1])).table.auroc[0]
    whole = rank_layers(
        ResidualCache.from_tensors(tensors[0], tensors[1], groups=groups.tolist())
    ).table.auroc[0]
    assert leaky > 0.8
    assert whole < leaky - 0.1


def test_noise_alone_scores_about_one_half():
    rng = np.random.default_rng(1)
    sides = torch.from_numpy(rng.standard_normal((2, 200, 10, 16)).astype(np.float32))
    table = rank_layers(ResidualCache.from_tensors(sides[0], sides[1])).table
    assert abs(table.auroc.mean() - 0.5) < 0.06
    assert table.split_half_cosine.abs().mean() < 0.2


def test_split_half_cosine_and_relative_gap_equal_numpy_for_noise_free_sides():
    base = torch.randn(20, 2, 8, generator=torch.Generator().manual_seed(0))
    shift = torch.zeros(2, 8)
    shift[:, 0] = 3.0
    table = rank_layers(ResidualCache.from_tensors(base + shift, base)).table
    np.testing.assert_allclose(table.split_half_cosine, 1.0, atol=1e-5)
    np.testing.assert_allclose(table.gap, 3.0, rtol=1e-5)
    norm = torch.cat([base + shift, base]).norm(dim=-1).mean(0)
    np.testing.assert_allclose(table.relative_gap, 3.0 / norm, rtol=1e-5)


def test_the_same_seed_gives_the_same_ranking():
    one, two = (rank_layers(planted(), seed=5).table for _ in range(2))
    assert one.equals(two)


@pytest.mark.parametrize(
    ("cache", "words"),
    [
        (planted(n_pairs=4, groups=[1, 1, 1, 1]), "one base query"),
        (
            ResidualCache.from_tensors(torch.ones(8, 1, 3), torch.ones(8, 1, 3)),
            "same in all runs",
        ),
    ],
)
def test_what_cannot_be_ranked_is_said_in_one_sentence(cache, words):
    with pytest.raises(ActivationError, match=words):
        rank_layers(cache)


def test_nonsense_settings_are_refused():
    with pytest.raises(SteerlensError, match="n_folds"):
        rank_layers(planted(), n_folds=1)
