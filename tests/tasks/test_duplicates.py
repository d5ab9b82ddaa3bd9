"""Near-duplicates count as one text, by a rule that is the same as comparing all with all."""

import itertools
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steerlens.tasks import base_queries
from steerlens.tasks.duplicates import ADDED, SAME, near_duplicates

TEXTS = st.lists(
    st.lists(st.sampled_from([*"abcdefgh", "A", "b!"]), min_size=1, max_size=14).map(" ".join),
    max_size=14,
)


def by_comparing_all(texts):
    """The rule in the fewest words, for texts of plain letters; groups by repeated merging."""
    plain = [
        tuple("".join(c for c in t.lower() if c not in string.punctuation).split()) for t in texts
    ]

    def near(a, b):
        one, other = set(a), set(b)
        jaccard = len(one & other) / len(one | other)
        subset = one <= other or other <= one
        return a == b or jaccard >= SAME or (subset and jaccard >= ADDED)

    groups = list(range(len(texts)))
    for _ in texts:
        for i, j in itertools.combinations(range(len(texts)), 2):
            if near(plain[i], plain[j]):
                groups[i] = groups[j] = min(groups[i], groups[j])
    return groups


@given(TEXTS)
@settings(deadline=None)
def test_groups_are_those_of_comparing_all_with_all(texts):
    expected = by_comparing_all(texts)
    found = near_duplicates(texts)
    assert [found.index(one) for one in found] == [expected.index(one) for one in expected]


@given(TEXTS, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=30)
def test_groups_do_not_depend_on_the_order(texts, random):
    order = list(range(len(texts)))
    random.shuffle(order)
    found = near_duplicates(texts)
    shuffled = near_duplicates([texts[i] for i in order])
    together = {(i, j) for i in order for j in order if found[i] == found[j]}
    also = {
        (a, b)
        for i, a in enumerate(order)
        for j, b in enumerate(order)
        if shuffled[i] == shuffled[j]
    }
    assert together == also


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Tell me about Rome.", "tell me about  Rome", True),
        ("Why is the sky blue?", "Why is the sky blue, please?", True),
        ("Ｗhy is it so?", "why is it so", True),
        ("Name a river.", "Name a lake.", False),
        ("What is 2 + 3?", "What is 2 × 3?", False),
        ("What is 2 + 3?", "What is 2 + 4?", False),
        ("Write a poem about courage.", "Write a poem about autumn.", False),
        ("Почему небо синее?", "почему небо синее", True),
    ],
)
def test_the_rule_agrees_with_what_a_reader_would_say(one, other, same):
    assert (len(set(near_duplicates([one, other]))) == 1) == same


def test_the_catalogues_base_queries_are_all_different():
    texts = [query.text for split in ("fit", "select", "report") for query in base_queries(split)]
    assert near_duplicates(texts) == tuple(range(len(texts)))


def test_thousands_of_texts_are_grouped_at_once():
    texts = [f"Write an email about topic {i} to my boss in number {i // 2}" for i in range(3000)]
    assert len(set(near_duplicates(texts + texts))) == len(set(near_duplicates(texts)))
