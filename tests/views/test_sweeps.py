"""Claims about strength on the x-axis."""

import pytest
from report_example import HOSTILE

from steerlens.errors import SteerlensError, UnknownNameError
from steerlens.views import length_over_strength, strength_sweep

ROWS = [
    {"strength": s, "rate": s / 4, "rate_low": s / 5, "rate_high": s / 3, "kl": s * s,
     "perplexity": 10.0 + s, "words": 100 - 10 * s, "words_low": 80.0, "words_high": 120.0}
    for s in (0.0, 0.5, 1.0, 2.0)
]  # fmt: skip


def lines(figure):
    return [trace for trace in figure.data if trace.fill is None]


def test_three_panels_share_the_strengths_whatever_the_order_of_rows():
    figure = strength_sweep(ROWS[::-1], chosen=1.0)

    rate, kl, perplexity = lines(figure)
    assert list(rate.x) == list(kl.x) == list(perplexity.x) == [0.0, 0.5, 1.0, 2.0]
    assert list(rate.y) == [0.0, 0.125, 0.25, 0.5]
    assert list(kl.y) == [0.0, 0.25, 1.0, 4.0]
    band = next(trace for trace in figure.data if trace.fill == "toself")
    assert list(band.y[:4]) == pytest.approx([s / 3 for s in (0.0, 0.5, 1.0, 2.0)], rel=1e-3)
    assert figure.layout.yaxis3.type == "log"
    assert figure.layout.xaxis3.title.text == "strength"
    assert [shape.x0 for shape in figure.layout.shapes] == [1.0] * 3
    assert "bands: 95 % interval" in [note.text for note in figure.layout.annotations]


def test_several_lines_are_told_apart_by_more_than_colour_and_the_placebo_is_grey():
    figure = strength_sweep({"title": ROWS, "lower": ROWS, "placebo": ROWS}, values=["kl"])

    first, second, placebo = lines(figure)
    assert len({first.line.dash, second.line.dash, placebo.line.dash}) == 3
    assert len({first.marker.symbol, second.marker.symbol, placebo.marker.symbol}) == 3
    assert placebo.line.color == "#7d828a"
    assert [trace.showlegend for trace in (first, second, placebo)] == [True] * 3


def test_a_value_that_was_not_measured_leaves_a_gap():
    rows = [{"strength": 0.0, "rate": None}, {"strength": 1.0, "rate": 0.5}]

    assert list(lines(strength_sweep(rows))[0].y) == [None, 0.5]


def test_length_has_its_band_and_unit():
    figure = length_over_strength({HOSTILE: ROWS, "b": ROWS})

    assert list(lines(figure)[0].y) == [100.0, 95.0, 90.0, 80.0]
    assert figure.layout.yaxis.title.text == "words per response"
    assert "<img" not in figure.to_json()
    assert "bands: middle half of responses" in [n.text for n in figure.layout.annotations]
    bands = [trace.name for trace in figure.data if trace.fill == "toself"]
    assert all(name.endswith(", middle half of responses") for name in bands), bands


def test_no_rows_say_that_nothing_was_measured():
    assert length_over_strength([]).layout.annotations[0].text == "not measured"


@pytest.mark.parametrize(
    ("draw", "sentence"),
    [
        (lambda: strength_sweep([{"strength": 1.0}]), "no row has any of 'rate', 'kl'"),
        (lambda: strength_sweep(ROWS, values=["rat"]), "did you mean 'rate'"),
        (lambda: strength_sweep([{"strength": 1.0, "kl": 1.0}], values=["rate"]), "no row has"),
        (lambda: strength_sweep([{"rate": 1.0}]), "column 'strength' is missing"),
        (lambda: strength_sweep([{"strength": None, "rate": 1.0}]), "a row has no strength"),
        (lambda: strength_sweep(ROWS[:1] * 2), "strength 0.0 comes more than once"),
        (lambda: length_over_strength(ROWS, "sentences"), "no column 'sentences'"),
        (lambda: length_over_strength(ROWS, "word"), "did you mean 'words'"),
    ],
)
def test_rows_that_cannot_be_drawn_are_refused_in_one_sentence(draw, sentence):
    with pytest.raises((SteerlensError, UnknownNameError), match=sentence):
        draw()
