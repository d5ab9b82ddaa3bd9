"""Claims about separability and its ranking, against scikit-learn and planted signals."""

import json

import numpy as np
import pytest
import torch
from planted_activations import planted
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import GroupKFold

from steerlens.activations.cache import ResidualCache
from steerlens.attribution import rank_layers
from steerlens.attribution.dimension import instruction_dimension
from steerlens.attribution.null import permutation_null
from steerlens.attribution.probes import probe_layers
from steerlens.attribution.separability import EVIDENCE
from steerlens.errors import ActivationError, SteerlensError, UnknownNameError


def held_out_scores(cache, seed):
    """Scores along differences of means fitted on the other folds, ``[side, layer, pair]``."""
    plus, minus = cache.instructed.double().numpy(), cache.uninstructed.double().numpy()
    n_pairs, n_layers, _ = plus.shape
    scores = np.empty((2, n_layers, n_pairs))
    folds = GroupKFold(n_splits=5, shuffle=True, random_state=seed)
    for train, test in folds.split(np.zeros(n_pairs), groups=np.arange(n_pairs)):
        difference = plus[train].mean(0) - minus[train].mean(0)
        gap = np.linalg.norm(difference, axis=-1, keepdims=True)
        middle = (plus[train].mean(0) + minus[train].mean(0)) / 2
        for side, values in enumerate((plus, minus)):
            scores[side][:, test] = (((values[test] - middle) * difference / gap**2).sum(-1)).T
    return scores


def test_the_planted_layer_is_found_with_confidence():
    ranking = rank_layers(planted(), seed=0)
    assert ranking.best_layer == 2
    assert ranking.selection_frequency[2] > 0.95
    assert sum(ranking.selection_frequency.values()) == pytest.approx(1.0)


def test_measures_equal_scikit_learn_on_the_same_held_out_scores():
    cache = planted(d_prime=1.0)
    scores = held_out_scores(cache, seed=7)
    labels = np.repeat([1, 0], 64)
    table = rank_layers(cache, seed=7, n_resamples=1).table
    flat = scores.transpose(1, 0, 2).reshape(5, -1)
    np.testing.assert_allclose(table.auroc, [roc_auc_score(labels, row) for row in flat])
    np.testing.assert_allclose(
        table.accuracy, [balanced_accuracy_score(labels, row > 0) for row in flat]
    )
    d_prime = (scores[0].mean(1) - scores[1].mean(1)) / np.sqrt(
        (scores[0].var(1, ddof=1) + scores[1].var(1, ddof=1)) / 2
    )
    np.testing.assert_allclose(table.d_prime_held_out, d_prime, rtol=1e-5)


def test_planted_layer_and_d_prime_are_found_in_at_least_93_of_100_seeds():
    found = inside = 0
    for seed in range(100):
        ranking = rank_layers(
            planted(d_prime=2.5, n_layers=3, d_model=64, seed=seed), seed=seed, n_resamples=1
        )
        row = ranking.table.set_index("layer").loc[2]
        found += ranking.best_layer == 2
        inside += row.d_prime_low <= 2.5 <= row.d_prime_high
    assert found == 100
    assert inside >= 93


def test_selection_frequency_equals_resampling_the_queries_and_fitting_again():
    # Given three layers of nearly equal signal,
    cache = planted(d_prime=0.0, n_pairs=24, n_layers=3, d_model=6)
    cache.instructed[:, :, 3] += 1.0
    n_resamples, seed = 50, 3
    ranking = rank_layers(cache, seed=seed, n_resamples=n_resamples)
    # when queries are drawn with replacement and every copy stays in the fold of its query,
    draws = np.random.default_rng(seed).multinomial(24, np.full(24, 1 / 24), size=n_resamples)
    plus, minus = cache.instructed.double().numpy(), cache.uninstructed.double().numpy()
    folds = GroupKFold(n_splits=5, shuffle=True, random_state=seed)
    fold_of = np.empty(24, dtype=int)
    for number, (_, test) in enumerate(folds.split(np.zeros(24), groups=np.arange(24))):
        fold_of[test] = number
    chosen = np.zeros(3)
    for draw in draws:
        taken = np.repeat(np.arange(24), draw)
        aurocs = []
        for layer in range(3):
            scores = np.empty((2, 24))
            for number in range(5):
                fit, test = taken[fold_of[taken] != number], taken[fold_of[taken] == number]
                difference = plus[fit, layer].mean(0) - minus[fit, layer].mean(0)
                middle = (plus[fit, layer].mean(0) + minus[fit, layer].mean(0)) / 2
                for side, values in enumerate((plus, minus)):
                    along = (values[test, layer] - middle) @ difference
                    scores[side][fold_of[taken] == number] = along / (difference @ difference)
            aurocs.append(roc_auc_score(np.repeat([1, 0], 24), scores.ravel()))
        chosen[np.argmax(aurocs)] += 1
    # then the layers are chosen as often, but for AUROCs that tie.
    frequency = np.array(list(ranking.selection_frequency.values()))
    np.testing.assert_allclose(frequency, chosen / n_resamples, atol=0.04)


def test_intervals_hold_their_estimate_and_shrink_with_more_pairs():
    few, many = (rank_layers(planted(n_pairs=n), n_resamples=1).table for n in (24, 192))
    for table in (few, many):
        for name in ("auroc", "d_prime", "d_prime_held_out", "accuracy"):
            assert (table[f"{name}_low"] <= table[name]).all()
            assert (table[name] <= table[f"{name}_high"]).all()
    for name in ("d_prime", "d_prime_held_out"):
        width = [(t[f"{name}_high"] - t[f"{name}_low"])[2] for t in (few, many)]
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
    table = rank_layers(ResidualCache.from_tensors(sides[0], sides[1]), n_resamples=10).table
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


def test_all_evidence_stands_in_one_table_and_equals_that_of_its_own_functions():
    cache = planted(n_pairs=32)
    ranking = rank_layers(cache, seed=2, n_resamples=50, evidence=EVIDENCE)
    table = ranking.table
    probes = probe_layers(cache, seed=2)
    for estimator in ("lda", "logistic", "first_component"):
        rows = probes[probes.probe == estimator]
        for measure in ("auroc", "d_prime", "balanced_accuracy"):
            for end in ("", "_low", "_high"):
                column = table[f"{estimator}_{measure}{end}"]
                np.testing.assert_array_equal(column, rows[f"{measure}{end}"])
            assert f"{estimator}_{measure}" in ranking.kinds
    null = permutation_null(cache, seed=2)
    np.testing.assert_array_equal(table.p_adjusted, null.table.p_adjusted)
    np.testing.assert_array_equal(table.random_auroc, null.table.random_auroc)
    assert ranking.p_value == null.p_value < 0.05
    dimension = instruction_dimension(cache, seed=2, n_resamples=50)
    np.testing.assert_array_equal(table.dimension, dimension.dimension)
    # The difference of means is the same in the ranking, among the probes and under the null.
    rows = probes[probes.probe == "difference_of_means"]
    np.testing.assert_allclose(table.auroc, rows.auroc)
    np.testing.assert_allclose(table.auroc, null.table.auroc)
    np.testing.assert_allclose(table.d_prime_held_out_low, rows.d_prime_low)


def test_the_ranking_as_plain_data_survives_json():
    ranking = rank_layers(planted(n_pairs=16), n_resamples=10, evidence=("null", "dimension"))
    data = json.loads(json.dumps(ranking.to_json()))
    assert data["best_layer"] == ranking.best_layer
    assert data["best_layer_rule"] == "highest held-out AUROC, ties broken by d′"
    assert data["p_value"] == ranking.p_value
    assert [row["layer"] for row in data["layers"]] == list(ranking.table.layer)


def test_runs_that_do_not_vary_within_a_side_are_ranked_without_an_interval_of_d_prime():
    ranking = rank_layers(ResidualCache.from_tensors(torch.ones(8, 1, 3), torch.zeros(8, 1, 3)))
    row = ranking.table.iloc[0]
    assert row.auroc == 1.0 and row.auroc_low < 0.9
    assert row.d_prime == np.inf and np.isnan([row.d_prime_low, row.d_prime_high]).all()


@pytest.mark.parametrize(
    ("cache", "words"),
    [
        (planted(n_pairs=4, groups=[1, 1, 1, 1]), "one base query"),
        (planted(n_pairs=3), "3 base queries cannot fill 5 folds"),
        (
            ResidualCache.from_tensors(torch.ones(6, 1, 3), torch.ones(6, 1, 3)),
            "constant activations",
        ),
    ],
)
def test_what_cannot_be_ranked_is_said_in_one_sentence(cache, words):
    with pytest.raises(ActivationError, match=words):
        rank_layers(cache, n_folds=5)


def test_nonsense_settings_are_refused():
    with pytest.raises(SteerlensError, match="n_folds"):
        rank_layers(planted(), n_folds=1)
    with pytest.raises(SteerlensError, match="n_resamples"):
        rank_layers(planted(), n_resamples=0)
    with pytest.raises(UnknownNameError, match="probes"):
        rank_layers(planted(), evidence=["probe"])
