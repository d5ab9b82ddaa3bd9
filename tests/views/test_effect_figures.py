"""Claims about `.plot()` and the notebook view of per-token effects."""

from html.parser import HTMLParser

import pytest
import torch
from plots_examples import made_up_effects, made_up_run
from report_example import HOSTILE

from steerlens.effects import TokenContributions
from steerlens.effects.forced import PICTURES
from steerlens.errors import SteerlensError, UnknownNameError
from steerlens.views import Picture

ALL = PICTURES


class Tags(HTMLParser):
    """Tags and visible text of a piece of HTML."""

    def __init__(self, markup):
        super().__init__()
        self.tags, self.text = set(), ""
        self.feed(markup)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)

    def handle_data(self, data):
        self.text += data


def contributions():
    return TokenContributions(
        position=3,
        target=HOSTILE,
        target_id=9,
        tokens=("a", "b", HOSTILE),
        n_prompt=2,
        spans=((0, 2), (2, 3)),
        contributions=torch.tensor([0.5, -1.0], dtype=torch.float64),
        logprob_baseline=-2.0,
        logprob_steered=-2.5,
    )


@pytest.mark.parametrize("what", ALL)
def test_every_side_of_the_effects_has_a_picture_with_a_title(what):
    figure = made_up_effects(40, 6).plot(what)

    assert isinstance(figure, Picture)
    assert figure.layout.title.text
    assert len(figure.data) >= 1


@pytest.mark.parametrize("what", ALL)
def test_no_tokens_of_response_and_hostile_ones_are_pictures_too(what):
    effects = made_up_effects(3, 4, words=[HOSTILE, "", "\n مرحبا😀"], n_prompt=3)

    assert "<img" not in effects.plot(what).to_json()


def test_maps_show_the_numbers_of_the_travel():
    effects = made_up_effects(12, 5)

    drawn = torch.tensor(effects.plot("propagation").data[0].z)
    torch.testing.assert_close(drawn, effects.propagation.projection_change[0])
    assert effects.plot("shift").data[0].zmin == 0.0
    torch.testing.assert_close(
        torch.tensor(effects.lens.plot().data[0].z), effects.lens.kl, check_stride=False
    )


def test_pictures_that_do_not_exist_are_refused_in_one_sentence():
    effects = made_up_effects(8, 3)

    with pytest.raises(UnknownNameError, match="did you mean 'propagation'"):
        effects.plot("propagatio")
    with pytest.raises(SteerlensError, match="intervention 1 does not exist; there are 1"):
        effects.plot("propagation", intervention=1)
    with pytest.raises(UnknownNameError, match="unknown picture 'kl'"):
        made_up_run(["a"], ["b"]).plot("kl")


def test_both_texts_stand_below_one_another_with_marks_where_they_part_and_meet():
    run = made_up_run(["a", "b", "x", "c", "d"], ["a", "y", "z", "c", "d"])

    figure = run.plot()

    marks = {trace.name: len(trace.x) for trace in figure.data if trace.mode == "markers"}
    assert marks == {"parts from the other text": 2, "meets it again": 2}
    headings = [note.text for note in figure.layout.annotations]
    assert headings[0] == "<b>prompt</b>" and headings[1] == "<b>baseline response</b>"
    assert "the texts part at token 1, meet again at 3 (baseline) and 3 (steered)" in headings[2]


def test_contributions_shade_their_spans():
    figure = contributions().plot()

    assert "−0.50 nats in all" in figure.layout.title.text
    told = next(trace for trace in figure.data if trace.customdata is not None).customdata
    assert ["contribution to log-probability +0.500 nats" in one for one in told] == [
        True, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "result",
    [
        made_up_effects(30, 4, words=[HOSTILE, "b"]),
        made_up_run([HOSTILE, "\n", ""], ["x", HOSTILE]),
        made_up_run([], []),
        made_up_run([HOSTILE], [HOSTILE]).free,
        contributions(),
    ],
    ids=["effects", "run", "empty run", "free", "contributions"],
)
def test_a_notebook_shows_results_as_text_that_cannot_run(result):
    seen = Tags(result._repr_html_())

    assert not seen.tags & {"script", "img", "iframe", "a"}
    if HOSTILE[:5] in repr(result):
        assert HOSTILE in seen.text


def test_the_notebook_view_of_a_long_text_is_short_and_says_what_is_left_out():
    view = made_up_effects(2000, 4)._repr_html_()

    assert len(view) < 400_000
    assert "1,680 tokens more; .plot() shows all" in view
