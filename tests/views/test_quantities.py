"""Claims about what tokens are shaded by."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steerlens.errors import SteerlensError, UnknownNameError
from steerlens.views import token_strip
from steerlens.views.quantities import LEVELS, level, limit_of, quantity_of, token_rows


@given(st.floats(-10, 10), st.floats(0.01, 10))
def test_levels_follow_the_square_root_and_keep_the_sign(value, limit):
    found = level(value, limit)

    assert abs(found) <= LEVELS
    assert found * value >= 0
    exact = LEVELS * math.sqrt(min(abs(value) / limit, 1.0))
    assert abs(abs(found) - exact) <= 0.5 + 1e-9


def test_any_numeric_column_can_shade_and_its_sign_is_found():
    rows, found = token_rows(
        [{"token": "a", "my_score": -0.5}, {"token": "b", "my_score": 2.0}], "my_score"
    )

    assert found.signed and found.name == "my score"
    assert limit_of(rows, found) == 2.0
    assert "my score" in token_strip(rows, "my_score")
    assert not quantity_of("x", [{"x": 1.0}]).signed


def test_missing_numbers_have_no_shade():
    assert [level(value, 1.0) for value in (None, 0.0)] == [0, 0]
    assert quantity_of("kl", []).value({"kl": math.nan}) is None


def test_columns_that_some_rows_lack_and_texts_are_refused():
    with pytest.raises(UnknownNameError, match="unknown quantity 'score'"):
        token_rows([{"token": "a", "score": 1.0}, {"token": "b"}], "score")
    with pytest.raises(SteerlensError, match="expected a number or None, got 'high'"):
        token_strip([{"token": "a", "score": "high"}], "score")


def test_tokens_the_vector_was_read_at_are_boxed_and_the_legend_says_so():
    markup = token_strip([{"token": "a", "kl": 1.0, "read": True}, {"token": "b", "kl": 0.0}])

    assert '<b class="k8 read"' in markup
    assert "vector read" in markup
    assert "vector read" not in token_strip([{"token": "b", "kl": 0.0}])
