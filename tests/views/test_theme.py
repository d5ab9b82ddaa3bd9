"""Claims about colours: told apart by every eye, and the same figure on light and dark pages."""

import itertools

import numpy as np
import plotly.graph_objects as go
import pytest

from steerlens.errors import UnknownNameError
from steerlens.views import DARK, LIGHT, TEMPLATE, instruction_layer_heatmap, strength_sweep
from steerlens.views.picture import Picture, log_ticks, themed
from steerlens.views.theme import BLUE, GREEN, GREY, PURPLE, SERIES, VERMILLION, plain_text

# Complete deficiencies: Machado, Oliveira and Fernandes 2009, table for severity 1.0 (linear RGB).
EYES = {
    "normal": np.eye(3),
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritan": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def linear(colour: str) -> np.ndarray:
    values = rgb(colour)
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(colour: str, eye: str = "normal") -> np.ndarray:
    """CIE L*a*b* (D65) of a colour as an eye sees it."""
    seen = np.clip(np.array(EYES[eye]) @ linear(colour), 0, 1)
    xyz = (
        np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
        @ seen
        / [0.9505, 1.0, 1.089]
    )
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(one: str, other: str) -> float:
    """WCAG 2 contrast of two colours."""
    light, dark = sorted(
        (float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (one, other)), reverse=True
    )
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("eye", EYES)
def test_the_first_colours_of_lines_are_told_apart_by_every_eye(eye):
    # A difference of 10 is seen at a glance; 2.3 is just noticeable.
    for one, other in itertools.combinations((BLUE, VERMILLION, GREEN), 2):
        assert np.linalg.norm(lab(one, eye) - lab(other, eye)) > 15
    ends = np.linalg.norm(lab(BLUE, eye) - lab(VERMILLION, eye))
    assert ends > 40, "both ends of a two-sided scale"


@pytest.mark.parametrize("eye", EYES)
def test_the_one_sided_scale_gets_lighter_all_the_way_for_every_eye(eye):
    scale = TEMPLATE.layout.colorscale.sequential

    lightness = [lab(colour, eye)[0] for _, colour in scale]
    assert (np.diff(lightness) > 3).all()


@pytest.mark.parametrize(("template", "nearest"), [(LIGHT, "#ffffff"), (DARK, "#15181c")])
def test_zero_is_the_colour_nearest_to_the_page(template, nearest):
    scale = template.layout.colorscale.diverging
    distance = [np.linalg.norm(lab(colour) - lab(nearest)) for _, colour in scale]

    assert [place for place, _ in scale] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert int(np.argmin(distance)) == 2
    assert distance[0] > distance[1] and distance[4] > distance[3]


def test_text_and_lines_are_legible_on_every_background():
    for template in (LIGHT, DARK):
        background = template.layout.paper_bgcolor
        assert contrast(template.layout.font.color, background) > 10
        for colour in SERIES[:4]:
            assert contrast(colour, background) > 2.9, colour
    for page in ("#ffffff", "#15181c"):
        assert contrast(GREY, page) > 3.5
    assert PURPLE in TEMPLATE.layout.colorway


def test_a_figure_changes_its_theme_and_keeps_its_data():
    figure = instruction_layer_heatmap(
        [{"instruction": "a", "layer": 0, "recovery": 0.5}], "recovery"
    )

    dark = figure.dressed("dark")

    assert dark.layout.paper_bgcolor is None, "the background is the template's"
    assert dark.layout.template.layout.paper_bgcolor == "#15181c"
    assert figure.layout.template.layout.paper_bgcolor == "rgba(0,0,0,0)", "a copy was changed"
    assert dark.data[0].z == figure.data[0].z
    assert dark.data[0].colorscale is None, "colours come with the template"
    with pytest.raises(UnknownNameError, match="did you mean 'dark'"):
        figure.dressed("drak")


def test_a_title_leaves_room_for_itself_and_for_a_legend():
    rows = [{"strength": 1.0, "rate": 0.5}]
    bare, titled = (strength_sweep({"a": rows, "b": rows}, title=title) for title in (None, "T"))
    alone = themed(Picture(go.Bar(y=[1])), height=200, title="T")

    assert titled.layout.height - bare.layout.height == titled.layout.margin.t - 40
    assert titled.layout.margin.t > alone.layout.margin.t > 40
    assert alone.layout.title.text == "T"


def test_dollars_and_markup_of_a_text_stay_text():
    assert plain_text("$x$ <b>") == "&#36;x&#36; &lt;b&gt;"


def test_logarithmic_ticks_cover_the_values_and_are_few():
    assert log_ticks([3.0, None, 40.0])["ticktext"] == ["2", "5", "10", "20", "50"]
    assert log_ticks([0.0001, 1e6])["ticktext"][:2] == ["0.0001", "0.001"]
    assert log_ticks([None, 0.0]) == {"type": "log"}
