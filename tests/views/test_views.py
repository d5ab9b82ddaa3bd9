"""Pictures show the numbers they were given, gaps as gaps, and hostile text as text."""

import html
import json
import math
from html.parser import HTMLParser
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_example import HOSTILE, report_example

from steerlens.errors import SteerlensError, UnknownNameError
from steerlens.views import (
    cosine_matrix,
    instruction_layer_heatmap,
    layer_curves,
    recovery_curve,
    token_strip,
)
from steerlens.views.numbers import compact, show, show_interval
from steerlens.views.tokens import strip_css, visible

EXAMPLE = report_example(n_instructions=3, n_layers=9, n_samples=1)
LAYERS = EXAMPLE["instructions"][0]["layers"]
RECOVERY = EXAMPLE["instructions"][0]["recovery"]
TOKENS = EXAMPLE["instructions"][0]["samples"][0]["steered"]["tokens"]
CELLS = [
    {"instruction": instruction["id"], **row}
    for instruction in EXAMPLE["instructions"]
    for row in instruction["layers"]
]


def named(figure: go.Figure, name: str) -> Any:
    return next(trace for trace in figure.data if trace.name == name)


class Strip(HTMLParser):
    """What a browser would see of a strip: the text of each token, tags, classes and titles."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tokens: list[str] = []
        self.shades: list[str] = []
        self.titles: list[str] = []
        self.underlined: list[bool] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._inside: list[tuple[str, dict[str, str | None]]] = []
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self._inside.append((tag, attributes))
        self.tags.append((tag, attributes))
        if tag == "b" and not self._within("legend"):
            self.tokens.append("")
            self.shades.append(attributes.get("class") or "k0")
            self.titles.append(attributes.get("title") or "")
            self.underlined.append(self._within("steered"))

    def handle_endtag(self, tag: str) -> None:
        assert self._inside.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if self._inside and self._inside[-1][0] == "b" and not self._within("legend"):
            self.tokens[-1] += data

    def _within(self, name: str) -> bool:
        return any(name in (attrs.get("class") or "").split() for _, attrs in self._inside)


def test_the_heat_map_shows_each_value_in_its_cell_in_the_order_given() -> None:
    figure = instruction_layer_heatmap(CELLS, "auroc")

    pivot = pd.DataFrame(CELLS).pivot(index="instruction", columns="layer", values="auroc")
    expected = pivot.loc[[instruction["id"] for instruction in EXAMPLE["instructions"]]]
    drawn = pd.DataFrame(list(figure.data[0].z)).to_numpy()
    assert drawn == pytest.approx(expected.to_numpy(), rel=1e-3)
    assert list(figure.data[0].y) == list(expected.index)
    assert list(figure.data[0].x) == [str(layer) for layer in expected.columns]


def test_layers_that_were_not_measured_are_gaps_and_no_zeros() -> None:
    rows = [
        {"instruction": "a", "layer": 0, "recovery": 0.5},
        {"instruction": "b", "layer": 3, "recovery": math.nan},
        {"instruction": "b", "layer": 0, "recovery": None},
    ]

    figure = instruction_layer_heatmap(rows, "recovery")

    assert [list(row) for row in figure.data[0].z] == [[0.5, None], [None, None]]
    assert "NaN" not in figure.to_json()


def test_marks_lie_on_the_layers_named_and_only_where_there_is_a_cell() -> None:
    first, second = EXAMPLE["instructions"][0]["id"], EXAMPLE["instructions"][1]["id"]

    figure = instruction_layer_heatmap(CELLS, "auroc", marked={first: 4, second: 99, "other": 1})

    assert (list(figure.data[1].x), list(figure.data[1].y)) == (["4"], [first])


@pytest.mark.parametrize(
    ("rows", "value", "sentence"),
    [
        (CELLS, "aurok", "unknown heat map value 'aurok'; did you mean 'auroc'"),
        ([{"instruction": "a", "auroc": 1.0}], "auroc", "column 'layer' is missing"),
        ([{"instruction": "a", "layer": 1}], "auroc", "column 'auroc' is missing"),
        ([{"instruction": "a", "layer": 0.5, "auroc": 1.0}], "auroc", "0.5 is not a layer"),
        ([{"instruction": "a", "layer": 1, "auroc": "x"}], "auroc", "expected a number"),
        ([{"instruction": "a", "layer": 1, "auroc": 1.0}] * 2, "auroc", "layer 1 comes more than"),
    ],
)
def test_a_table_that_cannot_be_drawn_is_refused_in_one_sentence(
    rows: list[dict[str, Any]], value: str, sentence: str
) -> None:
    with pytest.raises(SteerlensError, match=sentence):
        instruction_layer_heatmap(rows, value)


def test_layer_curves_draw_value_and_band_whatever_the_order_of_rows() -> None:
    figure = layer_curves(pd.DataFrame(LAYERS).sample(frac=1, random_state=0), best_layer=5)

    band, line = named(figure, "AUROC, 95 % interval"), named(figure, "AUROC")
    assert list(line.x) == list(range(9))
    assert list(line.y) == pytest.approx([row["auroc"] for row in LAYERS], rel=1e-3)
    highs, lows = list(band.y[:9]), list(band.y[9:])[::-1]
    assert highs == pytest.approx([row["auroc_high"] for row in LAYERS], rel=1e-3)
    assert lows == pytest.approx([row["auroc_low"] for row in LAYERS], rel=1e-3)
    assert named(figure, "split-half cosine, middle 95 % of splits"), "50 splits, no interval"
    vertical = [shape for shape in figure.layout.shapes if shape.x0 == shape.x1 == 5]
    assert len(vertical) == 4, "the best layer is marked in every panel"


def test_what_is_missing_of_a_layer_is_a_dash_on_hover_and_leaves_its_band() -> None:
    rows = [dict(row) for row in LAYERS]
    rows[2].update(auroc_low=None, auroc_high=math.nan, accuracy=None)

    figure = layer_curves(rows)

    assert list(named(figure, "AUROC").customdata[2])[1] == "–"
    assert "[" not in named(figure, "AUROC").customdata[2][0]
    assert 2 not in named(figure, "AUROC, 95 % interval").x


def test_layer_curves_name_the_column_they_miss() -> None:
    with pytest.raises(SteerlensError, match="layer table: column 'd_prime_low' is missing"):
        layer_curves(pd.DataFrame(LAYERS).drop(columns="d_prime_low"))


def test_recovery_stands_beside_its_placebo() -> None:
    figure = recovery_curve(RECOVERY, steered_layer=6)

    expected = {"steering": "recovery", "placebo": "placebo"}
    for name, column in expected.items():
        drawn = list(named(figure, name).y)
        assert drawn == pytest.approx([row[column] for row in RECOVERY], rel=1e-3)
        assert named(figure, f"{name}, 95 % interval").fill == "toself"


def test_one_measured_layer_shows_its_interval_as_error_bars() -> None:
    figure = recovery_curve(RECOVERY[:1])

    bars = named(figure, "steering").error_y
    row = RECOVERY[0]
    assert bars.array[0] == pytest.approx(row["high"] - row["recovery"], rel=1e-3)
    assert bars.arrayminus[0] == pytest.approx(row["recovery"] - row["low"], rel=1e-3)


def test_recovery_that_was_not_measured_says_so() -> None:
    figure = recovery_curve([])

    assert figure.layout.annotations[0].text == "not measured"


def test_the_cosine_matrix_keeps_its_values_and_refuses_what_is_none() -> None:
    figure = cosine_matrix(["a", "b"], [[1.0, None], [-0.25, 1.0]], 7)

    assert [list(row) for row in figure.data[0].z] == [[1.0, None], [-0.25, 1.0]]
    with pytest.raises(SteerlensError, match="2 ids need 2 × 2 values"):
        cosine_matrix(["a", "b"], [[1.0, 0.0]])
    with pytest.raises(SteerlensError, match="is not a cosine"):
        cosine_matrix(["a"], [[1.5]])


def test_every_figure_is_transparent_and_shows_hostile_names_as_written() -> None:
    figures = [
        instruction_layer_heatmap([{"instruction": HOSTILE, "layer": 0, "auroc": 1.0}], "auroc"),
        layer_curves(LAYERS, title=HOSTILE),
        recovery_curve(RECOVERY, title=HOSTILE),
        cosine_matrix([HOSTILE], [[1.0]], 0),
    ]

    for figure in figures:
        assert figure.layout.template.layout.paper_bgcolor == "rgba(0,0,0,0)"
        # Plotly reads a small HTML in labels; the text must reach it escaped.
        assert html.escape(HOSTILE, quote=False) in json.dumps(figure.to_dict(), default=list)
        assert "<img" not in json.dumps(figure.to_dict(), default=list)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=12), st.floats(0, 50)), max_size=8))
def test_a_strip_shows_any_text_as_it_is_and_no_tag_of_it(tokens: list[tuple[str, float]]) -> None:
    strip = Strip(token_strip([{"token": text, "kl": kl} for text, kl in tokens], styled=False))

    assert strip.tokens == [visible(text) for text, _ in tokens]
    assert {tag for tag, _ in strip.tags} <= {"p", "div", "span", "b"}


@given(st.text())
def test_nothing_in_a_shown_token_can_hide_or_reorder_text(text: str) -> None:
    shown = visible(text)

    assert shown
    assert not any(mark in shown for mark in "\0\r\x1b\u202e\u2066\ufeff\u2028")
    shown.encode("utf-8")


def test_newlines_emoji_and_right_to_left_text_stay_readable() -> None:
    texts = ["مرحبا", " שלום", "👩\u200d💻", "\n", "\t", ""]

    strip = Strip(token_strip([{"token": text, "kl": 0.1} for text in texts]))

    assert strip.tokens == ["مرحبا", " שלום", "👩\u200d💻", "⏎\n", "⇥", "·"]
    assert any(attributes.get("dir") == "auto" for _, attributes in strip.tags)


def test_a_strip_gets_darker_with_kl_and_its_limit_is_the_darkest() -> None:
    tokens = [{"token": "x", "kl": kl} for kl in (0.0, 0.02, 0.3, 1.0, 2.0)]

    alone, shared = Strip(token_strip(tokens)), Strip(token_strip(tokens, limit=32.0))

    levels = [int(shade[1:]) for shade in alone.shades]
    assert levels == sorted(levels)
    assert (levels[0], levels[-1]) == (0, 8)
    assert shared.shades[-1] == "k2", "√(2/32) of 8 levels"


def test_signed_quantities_have_two_colours_and_missing_ones_none() -> None:
    tokens: list[dict[str, Any]] = [
        {"token": "a", "entropy_change": -1.0},
        {"token": "b", "entropy_change": 1.0},
        {"token": "c", "entropy_change": math.nan},
        {"token": "d", "entropy_change": None},
    ]

    assert Strip(token_strip(tokens, "entropy_change")).shades == ["n8", "k8", "k0", "k0"]


def test_every_shade_of_a_strip_has_its_colour() -> None:
    for level in range(1, 9):
        assert f".k{level} {{ background" in strip_css()
        assert f".n{level} {{ background" in strip_css()


def test_a_token_tells_everything_known_about_it() -> None:
    token = {
        "token": " yes", "position": 7, "role": "response", "steered": True, "kl": 0.5,
        "logprob_baseline": -3.0, "logprob_steered": -1.25, "projection_before": -2.0,
        "projection_after": 4.0, "entropy_change": -0.125,
        "promoted": [["<b>", 1.5]], "suppressed": [["no", -2.5]],
    }  # fmt: skip

    title = Strip(token_strip(pd.DataFrame([token]))).titles[0]

    for said in (
        "position 7", "steered here", "0.500 nats", "−3.00 → −1.25 (+1.75)", "−2.00 → 4.00",
        "−0.125", "promoted: '<b>' +1.50", "suppressed: 'no' −2.50",
    ):  # fmt: skip
        assert said in title


def test_marks_show_where_the_intervention_was_and_where_the_text_parts() -> None:
    tokens = [
        {"token": text, "kl": 0.1, "role": role, "steered": role == "prompt"}
        for text, role in (("p", "prompt"), ("q", "prompt"), ("r", "response"), ("s", "response"))
    ]

    markup = token_strip(tokens, parts_at=1, tooltips=False)

    assert Strip(markup).underlined == [True, True, False, False]
    assert markup.index(">r</b>") < markup.index('class="parts"') < markup.index(">s</b>")
    assert 'class="parts"' not in token_strip(tokens, parts_at=2), "the text ended there"


def test_a_strip_takes_the_frame_of_effects_and_an_empty_one() -> None:
    assert Strip(token_strip(pd.DataFrame(TOKENS))).tokens == [
        visible(token["token"]) for token in TOKENS
    ]
    assert "no tokens" in token_strip([])


@pytest.mark.parametrize(
    ("tokens", "options", "sentence"),
    [
        ([{"token": "a"}], {}, "token 0 of the strip has no 'kl'"),
        ([{"kl": 1.0}], {}, "token 0 of the strip has no 'token'"),
        ([{"token": 3, "kl": 1.0}], {}, "is 3, not text"),
        ([{"token": "a", "kl": 1.0}], {"quantity": "klx"}, "unknown quantity 'klx'"),
        ([{"token": "a", "kl": 1.0}], {"limit": 0.0}, "limit must be a number above zero"),
    ],
)
def test_a_strip_refuses_tokens_it_cannot_show(
    tokens: list[dict[str, Any]], options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(SteerlensError, match=sentence):
        token_strip(tokens, **options)


def test_an_unknown_quantity_is_an_unknown_name() -> None:
    with pytest.raises(UnknownNameError):
        token_strip([], "speed")


def test_numbers_are_short_and_a_gap_is_never_a_zero() -> None:
    assert compact([1 / 3, 123456.0, math.inf, None]) == [0.3333, 123500.0, None, None]
    assert (show(-0.001), show(-1), show(math.nan)) == ("0.00", "−1.00", "–")
    assert show_interval(0.5, 0.4, None) == "0.50 [0.40, –]"
