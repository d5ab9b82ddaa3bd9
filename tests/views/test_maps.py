"""Claims about one quantity over layers and tokens."""

import json

import numpy as np
import pytest
from report_example import HOSTILE

from steerlens.errors import SteerlensError
from steerlens.views import layer_token_map

VALUES = np.array([[100.0, 1.0, -2.0], [50.0, 0.5, np.nan]])


def test_signed_values_are_centred_at_zero_and_the_first_token_does_not_set_the_scale():
    figure = layer_token_map(["a", "b", "c"], [3, 5], VALUES, "change", n_prompt=1)

    cells = figure.data[0]
    np.testing.assert_allclose(np.asarray(cells.z, dtype=float), VALUES)
    assert cells.zmin == -cells.zmax
    assert cells.zmax == pytest.approx(2.0, rel=0.02)
    assert list(cells.y) == ["3", "5"]
    assert {shape.x0 for shape in figure.layout.shapes} == {0.5}, "where the prompt ends"


def test_one_sided_values_start_at_zero_and_a_limit_is_kept():
    cells = layer_token_map(["a"], [0], [[4.0]], "kl", unit="nats", signed=False, limit=8.0).data[0]

    assert (cells.zmin, cells.zmax) == (0.0, 8.0)
    assert cells.colorbar.title.text == "kl<br>nats"


def test_every_column_has_a_name_of_its_own_and_hostile_tokens_are_text():
    tokens = [HOSTILE, "the", "the", "\n", "", "مرحبا"]

    figure = layer_token_map(tokens, [0], np.zeros((1, 6)), "x")

    assert len(set(figure.data[0].x)) == 6
    assert "<img" not in json.dumps(figure.to_plotly_json(), default=str)
    assert list(figure.layout.xaxis.ticktext)[1:] == ["the", "the", "⏎", "·", "مرحبا"]


def test_long_texts_name_some_tokens_only_and_draw_no_gaps():
    figure = layer_token_map(["w"] * 500, [0, 1], np.ones((2, 500)), "x")

    assert len(figure.layout.xaxis.tickvals) <= 48
    assert figure.data[0].xgap == 0


def test_no_tokens_and_wrong_shapes_are_said():
    empty = layer_token_map([], [0, 1], np.empty((2, 0)), "x")
    assert empty.layout.annotations[0].text == "no tokens"
    with pytest.raises(SteerlensError, match=r"need values of shape \(1, 2\), not \(2, 1\)"):
        layer_token_map(["a", "b"], [0], [[1.0], [2.0]], "x")
    with pytest.raises(SteerlensError, match="limit must be a number above zero"):
        layer_token_map(["a"], [0], [[1.0]], "x", limit=0.0)
