"""Claims about pictures of the residual stream."""

import re

import numpy as np
import pytest
import torch
from report_example import HOSTILE

from steerlens.activations.cache import ResidualCache
from steerlens.effects.propagation import Propagation
from steerlens.errors import SteerlensError
from steerlens.views import (
    kl_over_response,
    projection_histogram,
    survival_curve,
    vector_curves,
)

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


def test_the_band_of_norms_is_the_percentiles_its_name_says():
    # given residuals of 64 pairs, whose norms differ widely
    instructed, uninstructed = (RNG.normal(mean, 2, (64, 3, 5)) for mean in (3.0, 1.0))
    cache = ResidualCache.from_tensors(
        *(torch.tensor(side, dtype=torch.float32) for side in (instructed, uninstructed))
    )

    figure = cache.plot()

    # then the name of each band holds the percentiles that numpy finds at its edges
    for name, side in (("instructed", instructed), ("uninstructed", uninstructed)):
        norms = np.linalg.norm(side, axis=2)
        [band] = [t for t in figure.data if t.name.startswith(f"norm, {name},")]
        low, high = map(int, re.search(r"(\d+)th to (\d+)th percentile", band.name).groups())
        edges = [*np.percentile(norms, high, axis=0), *np.percentile(norms, low, axis=0)[::-1]]
        assert list(band.y) == pytest.approx(edges, rel=1e-3)
        line = named(figure, f"norm, {name}")
        assert list(line.y) == pytest.approx(np.median(norms, axis=0), rel=1e-3)
    gap = np.linalg.norm(instructed.mean(0) - uninstructed.mean(0), axis=1)
    assert list(named(figure, "distance of the means").y) == pytest.approx(gap, rel=1e-3)
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


def test_the_band_of_survival_is_the_percentiles_its_name_says():
    # given what is left of one intervention at two layers, on 40 tokens
    share = RNG.gamma(2.0, 0.5, (1, 2, 40))
    change = torch.tensor(share, dtype=torch.float32)
    flat = torch.ones(2, 40)
    travel = Propagation((3, 4), (3,), change, flat, flat, flat, change)

    band, line = travel.plot().data[:2]

    low, high = map(int, re.search(r"(\d+)th to (\d+)th percentile", band.name).groups())
    expected = [*np.percentile(share[0], high, axis=1), *np.percentile(share[0], low, axis=1)[::-1]]
    assert list(band.y) == pytest.approx(expected, rel=1e-3)
    assert list(line.y) == pytest.approx(np.median(share[0], axis=1), rel=1e-3)


def test_the_band_of_kl_over_responses_is_the_middle_half_its_name_says():
    values = RNG.gamma(1.0, 1.0, (12, 3))
    rows = [{"position": t, "kl": kl} for own in values for t, kl in enumerate(own)]

    band, line = kl_over_response(rows).data[:2]

    assert band.name == "median KL, middle half of prompts"
    edges = [*np.percentile(values, 75, axis=0), *np.percentile(values, 25, axis=0)[::-1]]
    assert list(band.y) == pytest.approx(edges, rel=1e-3)
    assert list(line.y) == pytest.approx(np.median(values, axis=0), rel=1e-3)
