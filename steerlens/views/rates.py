"""Rates by condition, each with its interval.

>>> rows = [
...     {"instruction": "title", "condition": name, "rate": rate, "low": rate - 0.1, "high": 0.9}
...     for name, rate in (("uninstructed", 0.2), ("uninstructed+steering", 0.6))
... ]
>>> [trace.name for trace in condition_rates(rows).data]
['uninstructed', 'uninstructed+steering']
"""

from collections.abc import Mapping
from textwrap import wrap

import pandas as pd
import plotly.graph_objects as go

from steerlens.errors import SteerlensError
from steerlens.views.numbers import compact, show_interval
from steerlens.views.picture import Picture, themed
from steerlens.views.tables import Rows, table_of
from steerlens.views.theme import GREY, SERIES, plain_text

__all__ = ["condition_rates"]

_COLUMNS = ("instruction", "condition", "rate", "low", "high")
# A pair of conditions over the same prompts has one colour; the steered one is filled.
_MARKS: Mapping[str, tuple[str, str]] = {
    "uninstructed": (SERIES[0], "circle-open"),
    "uninstructed+steering": (SERIES[0], "circle"),
    "uninstructed+placebo": (GREY, "x-thin-open"),
    "instructed": (SERIES[1], "diamond-open"),
    "instructed+steering": (SERIES[1], "diamond"),
}
_ROW = 20
_BETWEEN = 16
# Settings of several parts have long names, which would leave no room for the rates.
_MOST_LETTERS, _LINE = 34, 15


def condition_rates(
    rows: Rows,
    *,
    title: str | None = None,
    quantity: str = "rate of passing",
    is_share: bool = True,
) -> go.Figure:
    """One line per task and condition: its rate and the interval around it.

    Args:
        rows: With `instruction`, `condition`, `rate`, `low` and `high` (shares between 0 and 1) and
            perhaps `n`; instructions and conditions are drawn in the order in which they come.
        title: Above the figure.
        quantity: What `rate` is, with its unit if it has one.
        is_share: Whether it is drawn in percent.

    Raises:
        SteerlensError: A column is missing, or the same instruction and condition comes twice.
    """
    table = table_of(rows, _COLUMNS, "condition rates")
    if table.duplicated(["instruction", "condition"]).any():
        raise SteerlensError("condition rates: an instruction has the same condition twice")
    instructions = list(dict.fromkeys(table["instruction"]))
    conditions = list(dict.fromkeys(table["condition"]))
    step = 1 / (len(conditions) + 1)
    figure = Picture()
    for place, condition in enumerate(conditions):
        rows_of_condition = table[table["condition"] == condition]
        shift = (place - (len(conditions) - 1) / 2) * step
        places = [instructions.index(name) + shift for name in rows_of_condition["instruction"]]
        figure.add_trace(_points(rows_of_condition, condition, places))
    for line in range(1, len(instructions)):
        figure.add_hline(line - 0.5, line={"color": GREY, "width": 0.5})
    names = [wrap(name, _MOST_LETTERS, break_long_words=False) for name in instructions]
    height = max(_ROW * len(conditions), _LINE * max(map(len, names), default=0)) + _BETWEEN
    return themed(
        figure,
        height=90 + len(instructions) * height,
        title=title,
        xaxis={
            "title": f"{quantity}, 95 % interval",
            **(_shares(table) if is_share else {}),
        },
        yaxis={
            "tickvals": list(range(len(instructions))),
            "ticktext": ["<br>".join(map(plain_text, lines)) for lines in names],
            "range": [len(instructions) - 0.5, -0.5],
            "showgrid": False,
            "automargin": True,
            "zeroline": False,
        },
        showlegend=True,
    )


def _shares(table: pd.DataFrame) -> dict[str, object]:
    """From 0 to 1 in percent; causal recovery may be below 0."""
    lowest = min(table["low"].min(), 0.0)
    return {"range": [lowest - 0.02, 1.02], "tickformat": ".0%"}


def _points(rows: pd.DataFrame, condition: str, places: list[float]) -> go.Scatter:
    colour, symbol = _MARKS.get(condition, (SERIES[2], "square"))
    ends = zip(rows["rate"], rows["low"], rows["high"], strict=True)
    shown = [show_interval(*values) for values in ends]
    if "n" in rows:
        shown = [f"{text}, n = {n}" for text, n in zip(shown, rows["n"], strict=True)]
    return go.Scatter(
        x=compact(rows["rate"]),
        y=places,
        mode="markers",
        name=plain_text(condition),
        marker={"color": colour, "symbol": symbol, "size": 9},
        marker_line={"width": 1.6, "color": colour},
        error_x={
            "array": compact(rows["high"] - rows["rate"]),
            "arrayminus": compact(rows["rate"] - rows["low"]),
            "color": colour,
            "thickness": 1.4,
            "width": 3,
        },
        customdata=shown,
        hovertemplate="%{customdata}<extra>" + plain_text(condition) + "</extra>",
    )
