"""Claims about the compact view of results in notebooks."""

import pandas as pd
from report_example import HOSTILE

from steerlens.plots import summary, token_strip
from steerlens.plots.summaries import excerpt


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
