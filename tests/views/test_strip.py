"""Claims about texts drawn as figures: shades, marks and sections shown, everything told."""

import html
import json

import pandas as pd
import pytest
from report_example import HOSTILE

from steerlens.errors import SteerlensError, UnknownNameError
from steerlens.views import Section, text_figure


def rows(*texts, **columns):
    return [{"token": text, "kl": 0.1 * i, **columns} for i, text in enumerate(texts)]


def words(figure):
    """What is written as tokens, in order, as a reader sees it."""
    trace = next(one for one in figure.data if one.mode == "text" and one.customdata is not None)
    return [html.unescape(text) for text in trace.text]


def named(figure, name):
    return next((trace for trace in figure.data if trace.name == name), None)


def test_a_figure_shows_texts_marks_and_sections():
    tokens = [{**row, "steered": True, "read": i == 1} for i, row in enumerate(rows("a", "b", "c"))]

    figure = text_figure(
        [Section("prompt", tokens[:2]), Section("answer", tokens[2:], parts_at=0, meets_at=(0,))],
        title="T",
        subtitle="S",
    )

    assert words(figure) == ["a", "b", "c"]
    assert [a.text for a in figure.layout.annotations] == ["<b>prompt</b>", "<b>answer</b>"]
    assert len([x for x in named(figure, "intervention applied").x if x is None]) == 3
    assert len([x for x in named(figure, "vector read here").x if x is None]) == 1
    assert len(named(figure, "parts from the other text").x) == 1
    assert len(named(figure, "meets it again").x) == 1
    assert (figure.layout.title.text, figure.layout.title.subtitle.text) == ("T", "S")


def test_shades_follow_the_quantity_and_signed_ones_have_two_colours():
    tokens = [{"token": "x", "score": value} for value in (-1.0, 0.0, None, 0.25, 1.0)]

    figure = text_figure([Section("", tokens)], "score")

    scale_boxes = 16
    boxes = [trace for trace in figure.data if trace.fill == "toself"]
    assert len(boxes) == scale_boxes, "eight levels to each side"
    n_boxes = {trace.fillcolor: list(trace.x).count(None) for trace in boxes}
    # One swatch a level in the legend, and one more where a token has it.
    assert n_boxes["rgba(213,94,0,0.6)"] == 2
    assert n_boxes["rgba(213,94,0,0.3)"] == 2, "√¼ of eight levels is the fourth"
    assert n_boxes["rgba(0,114,178,0.6)"] == 2
    assert sum(n_boxes.values()) == scale_boxes + 3


def test_hovering_tells_everything_and_hostile_text_is_text():
    tokens = rows(HOSTILE, "$x$", position=3, promoted=[[HOSTILE, 1.0]] * 5)

    figure = text_figure([Section(HOSTILE, tokens)], title=HOSTILE)

    assert words(figure) == [HOSTILE, "$x$"]
    drawn = json.dumps(figure.to_plotly_json(), default=str)
    assert (
        "<img" not in drawn and "<script" not in drawn and "$" not in drawn.replace("$schema", "")
    )
    told = next(t for t in figure.data if t.customdata is not None).customdata[0]
    assert "KL(steered‖baseline) 0.000 nats" in told
    assert max(len(line) for line in told.split("<br>")) < 200


@pytest.mark.parametrize("sections", [[], [Section("prompt", [])], [Section("", pd.DataFrame())]])
def test_no_tokens_is_a_figure_that_says_so(sections):
    figure = text_figure(sections)

    assert any("(no tokens)" in note.text for note in figure.layout.annotations)


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(UnknownNameError, match="unknown quantity 'klx'"):
        text_figure([Section("", rows("a"))], "klx")
    with pytest.raises(SteerlensError, match="limit must be a number above zero"):
        text_figure([Section("", rows("a"))], limit=-1.0)
    with pytest.raises(SteerlensError, match="token 0 of the strip is 3, not text"):
        text_figure([Section("", [{"token": 3, "kl": 1.0}])])
