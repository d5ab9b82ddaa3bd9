"""Claims about carrying over between labels, against directions fitted on the labels by hand."""

import numpy as np
import pytest
import torch
from planted_activations import planted, runs_of
from sklearn.metrics import roc_auc_score

import steerlens as sl
from steerlens.activations.cache import ResidualCache
from steerlens.attribution.generalisation import generalise, pair_labels
from steerlens.attribution.held_out import check_rankable
from steerlens.errors import ActivationError, UnknownNameError
from steerlens.tasks.pairs import ContrastSet


def labelled(own=0.0, common=2.0, n_pairs=60, seed=0):
    """Three labels with a common direction and one of their own each."""
    rng = np.random.default_rng(seed)
    sides = rng.standard_normal((2, n_pairs, 1, 20)).astype(np.float32)
    labels = [("must", "please", "kindly")[i % 3] for i in range(n_pairs)]
    sides[0, :, 0, 9] += common
    sides[0, np.arange(n_pairs), 0, np.arange(n_pairs) % 3] += own
    tensors = torch.from_numpy(sides)
    return ResidualCache.from_tensors(tensors[0], tensors[1]), labels


def test_each_row_equals_fitting_with_or_without_the_label_and_scoring_on_it():
    cache, labels = labelled(own=2.0)
    code, runs = np.array(labels), runs_of(cache, 0)
    folds = check_rankable(cache, 5, seed=3)
    result = generalise(cache, labels, seed=3)
    for row in result.table.itertuples():
        train_on = {"all": np.ones(60, dtype=bool), "others": code != row.test}[row.train]
        scores = np.zeros((2, 60))
        for train, test in folds:
            fit = train[train_on[train]]
            plus, minus = runs[:, fit].mean(axis=1)
            direction = plus - minus
            scores[:, test] = (runs[:, test] - (plus + minus) / 2) @ direction
            scores[:, test] /= direction @ direction
        chosen = scores[:, code == row.test]
        n = chosen.shape[1]
        expected = roc_auc_score(np.repeat([1, 0], n), chosen.ravel())
        assert row.auroc == pytest.approx(expected), (row.train, row.test)
        assert row.auroc_low <= row.auroc <= row.auroc_high
        assert (row.n_train, row.n_test) == (train_on.sum(), n)


def test_a_common_direction_carries_over_and_a_private_one_does_not():
    common = generalise(*labelled(own=0.0, common=2.5)).summary.iloc[0]
    private = generalise(*labelled(own=3.0, common=0.0)).summary.iloc[0]
    assert abs(common.difference) < 0.03 and common.unseen > 0.9
    assert common.difference_low < 0 < common.difference_high
    assert private.difference_high < 0 and private.unseen < 0.7 < private.seen


def test_one_label_only_says_what_cannot_be_computed_and_what_can():
    cache, _ = labelled()
    with pytest.raises(ActivationError, match=r"all 60 pairs.*'must'.*cannot.*rank_layers"):
        generalise(cache, ["must"] * 60)
    with pytest.raises(ActivationError, match="2 labels were given for 60 pairs"):
        generalise(cache, ["a", "b"])


def test_labels_come_from_the_catalogue():
    pairs = sl.contrast_pairs("detectable_format:title", n=20)
    assert pair_labels(pairs) == tuple(pair.phrasing for pair in pairs)
    kinds = {query.text: query.kind for query in sl.base_queries("fit")}
    assert pair_labels(pairs, "kind") == tuple(kinds[pair.base_query] for pair in pairs)


def test_pairs_without_labels_are_refused():
    pairs = ContrastSet.from_prompts(["a b", "c d"], ["a", "c"])
    with pytest.raises(ActivationError, match="pair 0 has no phrasing"):
        pair_labels(pairs)
    with pytest.raises(ActivationError, match="pair 0 has no base query of the catalogue"):
        pair_labels(pairs, "kind")
    with pytest.raises(UnknownNameError, match="phrasing"):
        pair_labels(pairs, "phrase")
    with pytest.raises(ActivationError, match="one base query"):
        generalise(planted(n_pairs=4, groups=[0] * 4), ["a", "b", "a", "b"])
