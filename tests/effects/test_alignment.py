"""Claims about where two responses part and meet, on made-up tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steerlens.effects import align, parts_at
from steerlens.errors import SteerlensError

TOKENS = st.lists(st.integers(0, 3), max_size=24)


def test_texts_that_swap_a_phrase_meet_again_and_end_alike():
    shared, tail = [1, 2, 3], [7, 8, 9, 10, 11, 12]

    found = align([*shared, 50, *tail], [*shared, 60, 61, *tail])

    assert found.parts_at == 3
    assert found.meets_at == (4, 5)
    assert found.ends_alike
    assert found.similarity == pytest.approx(2 * 9 / (10 + 11))
    assert "meet again at 4 (baseline) and 5 (steered), to the end" in repr(found)


def test_runs_shorter_than_asked_do_not_count_as_meeting():
    found = align([1, 5, 2, 3, 6], [1, 7, 2, 3, 8])

    assert found.meets_at is None
    assert not found.ends_alike
    assert "do not meet again" in found.describe()
    assert align([1, 5, 2, 3, 6], [1, 7, 2, 3, 8], min_shared=2).meets_at == (2, 2)


def test_a_text_that_goes_on_parts_where_the_other_ends():
    assert align([1, 2], [1, 2, 3]).parts_at == 2
    assert align([], []).ends_alike
    assert align([], []).similarity == 1.0
    with pytest.raises(SteerlensError, match="min_shared must be at least 1"):
        align([1], [2], min_shared=0)


@given(TOKENS, TOKENS)
def test_every_run_is_common_ordered_and_nothing_common_is_left_at_the_start(one, other):
    found = align(one, other)

    ends = (0, 0)
    for run in found.spans:
        assert (
            one[run.baseline : run.baseline + run.length]
            == (other[run.steered : run.steered + run.length])
        )
        assert run.baseline >= ends[0] and run.steered >= ends[1]
        ends = (run.baseline + run.length, run.steered + run.length)
    shared = len(one) if found.parts_at is None else found.parts_at
    assert one[:shared] == other[:shared]
    assert found.parts_at == parts_at(one, other)
    assert 0 <= found.similarity <= 1


def test_long_degenerate_texts_are_aligned_at_once():
    found = align([1, 2] * 1000, [1, 2] * 990 + [3] + [1, 2] * 10)

    assert found.parts_at == 1980
    assert found.meets_at == (1980, 1981)
