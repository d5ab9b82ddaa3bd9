"""Claims about pictures of the residual stream."""

import numpy as np
import pytest
from report_example import HOSTILE

from steerlens.errors import SteerlensError
from steerlens.plots import norm_curves, projection_histogram, survival_curve, vector_curves

RNG = np.random.default_rng(0)


def named(figure, name):
    return next(trace for trace in figure.data if trace.name == name)


def test_a_histograms_shares_are_numpys_and_sum_to_one():
    sides = {name: RNG.normal(mean, 1, 64) for name, mean in
             (("instructed", 3.0), ("uninstructed", 0.0), ("steered", 2.5))}  # fmt: skip

    figure = projection_histogram(*(s.tolist() for s in sides.values()), layer=7, target=3.0)

    for name, values in sides.items():
        trace = named(figure, name)
        edges = np.unique(np.array(trace.x))
        heights = np.array(trace.y)[1:-1:2]
        expected = np.histogram(values, np.array(trace.x)[::2])[0] / 64
        assert heights == pytest.approx(expected, abs=1 / 64 + 1e-3), "edges are rounded"
        assert heights.sum() == pytest.approx(1.0, abs=1e-3)
        assert len(edges) == len(heights) + 1
    assert "at layer 7" in figure.layout.xaxis.title.text
    assert figure.layout.shapes[0].x0 == 3.0


def test_gaps_are_left_out_and_nothing_at_all_is_said():
    figure = projection_histogram([1.0, float("nan"), 1.0], [])

    assert max(named(figure, "instructed").y) == 1.0
    assert projection_histogram([], []).layout.annotations[0].text == "no projections"
    with pytest.raises(SteerlensError, match="expected a number"):
        projection_histogram(["x"], [])


def test_a_vector_shows_its_gap_and_both_projections():
    rows = [{"layer": l, "gap": 2.0 + l, "target": 1.0 + l, "baseline": -1.0} for l in (3, 1)]  # noqa: E741

    figure = vector_curves(rows)

    assert list(figure.data[0].x) == [1, 3]
    assert [list(trace.y) for trace in figure.data] == [[3.0, 5.0], [2.0, 4.0], [-1.0, -1.0]]
    with pytest.raises(SteerlensError, match="column 'target' is missing"):
        vector_curves([{"layer": 0, "gap": 1.0}])


def test_norms_have_their_spread_and_the_distance_of_the_means():
    rows = [
        {"layer": layer, "gap": 2.0, "instructed": 30.0, "instructed_low": 25.0,
         "instructed_high": 40.0, "uninstructed": 28.0, "uninstructed_low": 24.0,
         "uninstructed_high": 36.0}
        for layer in range(3)
    ]  # fmt: skip

    figure = norm_curves(rows)

    assert (
        list(named(figure, "norm, instructed, 5th to 95th percentile").y) == [40.0] * 3 + [25.0] * 3
    )
    assert list(named(figure, "distance of the means").y) == [2.0] * 3
    assert figure.layout.yaxis.type == "log"


def test_survival_has_a_line_for_each_intervention():
    rows = [
        {"intervention": number, "layer": layer, "survival": 1.0 - number / 4,
         "survival_low": 0.1, "survival_high": 1.5}
        for number in (0, 1) for layer in (2, 3)
    ]  # fmt: skip

    figure = survival_curve(rows, {0: HOSTILE})

    assert list(named(figure, "intervention 1").y) == [0.75, 0.75]
    assert "<img" not in figure.to_json()
    assert survival_curve([]).layout.annotations[0].text == "not measured"
