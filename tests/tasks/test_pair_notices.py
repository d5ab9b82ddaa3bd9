"""What about pairs makes evidence look better than it is: measured, grouped, and said."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from planted_activations import planted
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold

import steerlens as sl
from steerlens.activations.shards import shard_residuals
from steerlens.errors import ActivationError, SteerlensWarning
from steerlens.models.chat import tokenize_prompts
from steerlens.tasks.notices import about_pairs, length_auroc
from steerlens.tasks.pairs import ContrastSet

QUERIES = [
    "Why is the sky blue?",
    "How do boats float?",
    "Name three rivers of Asia.",
    "Who painted the sea at night?",
    "Describe your favourite season in detail.",
    "Is tea better than coffee?",
]
LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=20)


def near(text, i):
    """The same request, written a little differently."""
    return [text, text.lower(), text.rstrip(".?"), f"{text} Please!"][i % 4]


@given(LENGTHS, LENGTHS)
def test_the_auroc_of_length_is_scikit_learns(one, other):
    labels = [1] * len(one) + [0] * len(other)
    assert length_auroc(one, other) == pytest.approx(roc_auc_score(labels, one + other))


def test_near_duplicate_queries_are_held_out_together_and_said(tiny_model):
    queries = [near(text, i) for i in range(4) for text in QUERIES]
    pairs = ContrastSet.from_prompts([f"{text} No commas" for text in queries], queries)
    with pytest.warns(SteerlensWarning, match=r"18 of 24 base queries are near-duplicates .* 6 q"):
        cache = sl.cache_residuals(tiny_model, pairs)
    assert cache.groups == tuple(range(len(QUERIES))) * 4
    assert cache.metadata["near_duplicates"] == 18
    assert cache.metadata["n_queries"] == len(QUERIES)
    ranking = sl.rank_layers(cache, n_resamples=20)
    assert any("near-duplicates" in notice for notice in ranking.notices)
    assert "near-duplicates" in ranking._repr_html_()
    assert ranking.to_json()["metadata"]["near_duplicates"] == 18


def test_noise_that_comes_in_near_duplicates_no_longer_looks_separable():
    # given: noise without any instruction in it, every query eight times with a little of its own
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((2, 6, 1, 32)).repeat(8, axis=1)
    sides = torch.from_numpy(noise + 0.05 * rng.standard_normal(noise.shape))
    texts = [near(text, i) for text in QUERIES for i in range(8)]
    groups = ContrastSet.from_prompts([f"{t} x" for t in texts], texts).query_groups
    # when
    apart = sl.rank_layers(sl.ResidualCache.from_tensors(*sides), n_resamples=20)
    together = sl.rank_layers(sl.ResidualCache.from_tensors(*sides, groups=groups), n_resamples=20)
    # then: held out with their like they say nothing; split from them they said it all
    assert apart.table["auroc"][0] > 0.95
    assert together.table["auroc"][0] < 0.75
    folds = GroupKFold(2).split(texts, groups=groups)
    assert all(not {groups[i] for i in a} & {groups[i] for i in b} for a, b in folds)


def test_eight_identical_pairs_are_said_and_not_ranked(tiny_model):
    pairs = ContrastSet.from_prompts(["Why? Use no commas."] * 8, ["Why?"] * 8)
    with pytest.warns(SteerlensWarning, match="7 of 8 pairs repeat another one word for word"):
        cache = sl.cache_residuals(tiny_model, pairs)
    with pytest.raises(ActivationError, match="near-duplicates and repeated pairs count"):
        sl.rank_layers(cache)


def test_identical_pairs_share_a_group_whatever_their_queries_are_called():
    prompts = ["Why? No commas.", "Who? No commas.", "Why? No commas."]
    plain = ["Why?", "Who?", "Why?"]
    pairs = ContrastSet.from_prompts(prompts, plain, ["sky", "painter", "tides"])
    assert pairs.query_groups == (0, 1, 0)


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        (None, "what is held out was also fitted on"),
        ((0, 1, 2, 3, 4, 5, 0, 1), "held out together"),
    ],
)
def test_pairs_from_elsewhere_with_identical_residuals_are_said(groups, words):
    one = planted(n_pairs=6)
    order = [0, 1, 2, 3, 4, 5, 0, 1]
    sides = one.instructed[order], one.uninstructed[order]
    cache = sl.ResidualCache.from_tensors(*sides, groups=groups)
    with pytest.warns(SteerlensWarning, match=f"2 of 8 pairs have the very residuals.*{words}"):
        ranking = sl.rank_layers(cache, n_resamples=20)
    assert ranking.metadata["identical_pairs"] == 2
    assert len(ranking.notices) == 1


def test_length_alone_is_said_with_its_auroc(tiny_model):
    pairs = ContrastSet.from_prompts(
        [f"{text} Answer without a single comma, please, whatever you do." for text in QUERIES],
        QUERIES,
    )
    with pytest.warns(SteerlensWarning, match=r"separates the two sides with AUROC 1\.00 .*longer"):
        cache = sl.cache_residuals(tiny_model, pairs)
    lengths = [
        [len(row) for row in tokenize_prompts(tiny_model, side)]
        for side in ([p.instructed for p in pairs], [p.uninstructed for p in pairs])
    ]
    labels = [1] * len(QUERIES) + [0] * len(QUERIES)
    assert cache.metadata["length_auroc"] == roc_auc_score(labels, [*lengths[0], *lengths[1]])
    assert sl.rank_layers(cache, n_resamples=20).notices == tuple(cache.metadata["notices"])


def test_shorter_prompts_separate_as_well(tiny_model):
    long = [f"{text} And take all the time that you need to think." for text in QUERIES]
    with pytest.warns(SteerlensWarning, match=r"AUROC 1\.00 \(instructed prompts are shorter"):
        sl.cache_residuals(tiny_model, ContrastSet.from_prompts(QUERIES, long, QUERIES))


def test_sides_of_one_length_are_not_warned_of(tiny_model):
    pairs = ContrastSet.from_prompts(
        [f"{text} Use no commas." for text in QUERIES],
        [f"{text} Be at ease now" for text in QUERIES],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", SteerlensWarning)
        cache = sl.cache_residuals(tiny_model, pairs)
    assert cache.metadata["length_auroc"] == 0.5


def test_pairs_of_the_catalogue_record_it_and_say_nothing():
    pairs = sl.contrast_pairs("punctuation:no_comma", n=4)
    about = about_pairs(pairs, [30, 31, 32, 33], [10, 11, 12, 13])
    assert about["length_auroc"] == 1.0
    assert about["notices"] == []


def test_shards_say_it_once_and_of_all_pairs(tiny_model, tmp_path):
    queries = [near(text, i) for i in range(4) for text in QUERIES]
    pairs = ContrastSet.from_prompts([f"{text} No commas" for text in queries], queries)
    with pytest.warns(SteerlensWarning) as told:
        shards = shard_residuals(tiny_model, pairs, tmp_path / "shards", pairs_per_shard=6)
    assert sum("18 of 24 base queries" in str(one.message) for one in told) == 1
    assert shards.groups == pairs.query_groups
    assert shards.metadata["near_duplicates"] == 18


def test_pairs_with_nothing_to_contrast_are_said(tiny_model):
    pairs = ContrastSet.from_prompts(["a b", "c", "d"], ["a", "c", "d"])
    with pytest.warns(SteerlensWarning, match="2 of 3 pairs have the same text on both sides"):
        sl.cache_residuals(tiny_model, pairs)
    same = {"instructed": "a", "uninstructed": "a", "instructed_response": "YES"}
    answered = [{**same, "uninstructed_response": one} for one in "yn"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", SteerlensWarning)
        sl.cache_residuals(tiny_model, ContrastSet.from_dataset(answered), "last_response")
