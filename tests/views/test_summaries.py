"""Claims about the compact view of results in notebooks."""

import io

import pandas as pd
import pytest
from report_example import HOSTILE

from steerlens.views import summary, token_strip
from steerlens.views.summaries import excerpt


def test_everything_is_escaped_wherever_it_comes_from():
    table = pd.DataFrame({HOSTILE: [HOSTILE, "\u202eevil"]})

    view = summary(HOSTILE, {HOSTILE: HOSTILE}, table) + excerpt(HOSTILE, HOSTILE)

    assert "<img" not in view and "<script" not in view
    assert "[U+202E]evil" in view


def test_notebooks_do_not_set_a_models_dollars_and_backslashes_as_mathematics():
    text = r"$5 or $\href{javascript:alert(1)}{6}$"

    for view in (
        summary(text, {text: text}, pd.DataFrame({text: [text]}), excerpt(text, text)),
        token_strip([{"token": text, "kl": 1.0}]),
    ):
        outermost = view[: view.index(">")]
        assert "mathjax_ignore" in outermost, "MathJax 3: JupyterLab 4, Notebook 7"
        assert "tex2jax_ignore" in outermost, "MathJax 2: nbviewer, older notebooks"
        assert r"$\href" in view, "and the text is there as it was written"


def test_numbers_are_short_and_gaps_are_dashes():
    view = summary("x", {"kl": 0.12345}, pd.DataFrame({"a": [0.123456, float("nan")]}))

    assert "<b>0.123</b>" in view
    assert "<td>0.123</td>" in view and "<td>–</td>" in view


def test_long_tables_and_texts_are_cut_and_say_so():
    assert "… 12 rows more" in summary("x", table=pd.DataFrame({"a": range(20)}))
    cut = excerpt("y" * 3000, "text")
    assert "1,800 characters more" in cut and len(cut) < 1800
    assert "(empty)" in excerpt("", "text")


def shown_layers(view: str) -> list[int]:
    """The layers of a view's table, as pandas reads it."""
    return pd.read_html(io.StringIO(view))[0]["layer"].astype(int).tolist()


LAYERS = pd.DataFrame({"layer": range(30), "auroc": [layer / 30 for layer in range(30)]})


@pytest.mark.parametrize("best", range(30))
def test_the_row_that_matters_is_shown_amid_its_neighbours_and_marked(best: int) -> None:
    view = summary("x", table=LAYERS, around=best)

    table = pd.read_html(io.StringIO(view))[0]
    layers = table["layer"].astype(int).tolist()
    assert layers == list(range(layers[0], layers[0] + 8)), "eight neighbours"
    assert table.loc[table.iloc[:, 0] == "▸", "layer"].astype(int).tolist() == [best]
    if 4 <= best <= 26:
        assert layers[0] == best - 4
    before, after = layers[0], 29 - layers[-1]
    assert f"… 22 rows more: {before} before and {after} after these" in view


def test_without_a_row_that_matters_layers_are_spread_from_first_to_last() -> None:
    assert shown_layers(summary("x", table=LAYERS)) == [0, 4, 8, 12, 17, 21, 25, 29]
    repeated = pd.DataFrame({"layer": [0] * 12, "token": list("abcdefghijkl")})
    assert "<td>h</td>" in summary("x", table=repeated)


def test_the_largest_rows_are_shown_whatever_their_sign() -> None:
    values = [0.1, -9.0, 3.0, 0.0, 7.0, -0.2, 1.0, 2.0, 4.0, -5.0]
    table = pd.DataFrame({"component": list("abcdefghij"), "reaction": values})

    view = summary("x", table=table, largest="reaction")

    assert pd.read_html(io.StringIO(view))[0]["component"].tolist() == list("bejichgf")
    assert "… 2 rows more, with smaller reaction" in view


def test_short_tables_are_shown_whole_with_every_option() -> None:
    few = LAYERS.head(3)
    for options in ({}, {"around": 1}, {"largest": "auroc"}):
        view = summary("x", table=few, **options)
        assert sorted(shown_layers(view)) == [0, 1, 2] and "rows more" not in view
