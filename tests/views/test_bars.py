"""Claims about bars: ranked tokens, and lengths of responses."""

import numpy as np
import pytest
from report_example import HOSTILE

from steerlens.errors import SteerlensError
from steerlens.views import ranked_tokens, response_lengths


def test_the_most_promoted_stands_on_top_and_the_most_suppressed_below():
    figure = ranked_tokens([("a", 0.3), ("b", 0.1)], [("z", -0.4), ("y", -0.2)])

    bars = figure.data[0]
    assert list(bars.x) == [0.3, 0.1, -0.2, -0.4]
    assert list(bars.customdata) == ["a", "b", "y", "z"]
    assert figure.layout.yaxis.autorange == "reversed"
    assert list(bars.marker.color) == ["#D55E00", "#D55E00", "#0072B2", "#0072B2"]
    assert figure.layout.xaxis.title.text == "mean change of probability"


def test_only_so_many_and_only_those_that_moved_the_right_way():
    figure = ranked_tokens([("a", 0.3), ("b", 0.1), ("c", 0.0)], [("z", 0.2)], n=1)

    assert list(figure.data[0].customdata) == ["a"]


def test_tokens_with_the_same_text_keep_a_bar_each_and_spaces_are_seen():
    figure = ranked_tokens([(" Rome", 0.3), ("�", 0.2), ("�", 0.1), (HOSTILE, 0.05)], [])

    assert len(set(figure.data[0].y)) == 4
    assert list(figure.layout.yaxis.ticktext)[:3] == ["␣Rome", "�", "�"]
    assert "<img" not in figure.to_json()


def test_nothing_promoted_is_said():
    assert ranked_tokens([], []).layout.annotations[0].text == "no token changed"
    with pytest.raises(SteerlensError, match="n must be at least 1"):
        ranked_tokens([], [], n=0)


def test_every_response_is_counted_once_under_its_reason():
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.integers(3, 200, 97), 128)
    rows = [
        {"n_tokens": int(n), "finish_reason": "length" if n == 128 else "stop"} for n in lengths
    ]

    figure = response_lengths(rows)

    counted = {trace.name: sum(trace.y) for trace in figure.data}
    n_cut = int((lengths == 128).sum())
    assert counted == {"ended by the model": 97 - n_cut, "cut at the limit": n_cut}
    for trace in figure.data:
        for centre, width, count in zip(trace.x, trace.width, trace.y, strict=True):
            kept = lengths[(lengths == 128) == (trace.name == "cut at the limit")]
            inside = (kept > centre - width / 2) & (kept < centre + width / 2)
            assert int(inside.sum()) == count


def test_no_responses_and_a_single_empty_one_are_pictures():
    assert response_lengths([]).layout.annotations[0].text == "no responses"
    single = response_lengths([{"n_tokens": 0, "finish_reason": "non-finite"}])
    assert list(single.data[0].y) == [1]
