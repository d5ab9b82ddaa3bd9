"""Claims about the compact view of results in notebooks."""

import pandas as pd
from report_example import HOSTILE

from steerlens.plots import summary
from steerlens.plots.summaries import excerpt


def test_everything_is_escaped_wherever_it_comes_from():
    table = pd.DataFrame({HOSTILE: [HOSTILE, "\u202eevil"]})

    view = summary(HOSTILE, {HOSTILE: HOSTILE}, table) + excerpt(HOSTILE, HOSTILE)

    assert "<img" not in view and "<script" not in view
    assert "[U+202E]evil" in view


def test_numbers_are_short_and_gaps_are_dashes():
    view = summary("x", {"kl": 0.12345}, pd.DataFrame({"a": [0.123456, float("nan")]}))

    assert "<b>0.123</b>" in view
    assert "<td>0.123</td>" in view and "<td>–</td>" in view


def test_long_tables_and_texts_are_cut_and_say_so():
    assert "… 12 rows more" in summary("x", table=pd.DataFrame({"a": range(20)}))
    cut = excerpt("y" * 3000, "text")
    assert "1,800 characters more" in cut and len(cut) < 1800
    assert "(empty)" in excerpt("", "text")
