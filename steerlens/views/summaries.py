"""Compact HTML for notebooks: what a result is, in a heading, a few facts and a small table.

Everything is escaped; nothing runs, and nothing is set as mathematics. The style is inline and
follows the notebook's own colours.

>>> "&lt;b&gt;" in summary("<b>", {"layer": 3})
True
"""

import html
from collections.abc import Mapping

import pandas as pd

from steerlens.views.numbers import show
from steerlens.views.tokens import AS_WRITTEN, visible

__all__ = ["excerpt", "summary"]

_MOST_ROWS = 8
_MOST_CHARACTERS = 1200


def summary(
    heading: str,
    facts: Mapping[str, object] | None = None,
    table: pd.DataFrame | None = None,
    body: str = "",
    *,
    around: int | None = None,
    largest: str | None = None,
) -> str:
    """A card for a result.

    A table is cut to eight rows: those chosen by `around` or `largest`, otherwise layers spread
    evenly from the first to the last, or the first rows of a table without layers.

    Args:
        heading: What it is; escaped.
        facts: Names and values in one line; escaped.
        table: Shown with numbers in three decimals; escaped.
        body: HTML to place below, already safe (a token strip).
        around: Place of the row that matters; it is marked and shown amid its neighbours.
        largest: A column; the rows with its largest values, whatever their sign, come first.
    """
    parts = [f'<div style="font-weight:600">{html.escape(heading)}</div>']
    if facts:
        shown = {name: show(v, 3) if isinstance(v, float) else str(v) for name, v in facts.items()}
        pairs = (f"{html.escape(name)} <b>{html.escape(text)}</b>" for name, text in shown.items())
        parts.append(f'<div style="opacity:.85;font-size:.92em">{" · ".join(pairs)}</div>')
    if table is not None:
        parts.append(_table(table, around, largest))
    return f'<div class="steerlens-summary {AS_WRITTEN}">{"".join(parts)}{body}</div>'


def excerpt(text: str, label: str) -> str:
    """A model's text as escaped HTML under a label, cut where it is very long."""
    cut = len(text) > _MOST_CHARACTERS
    shown = visible(text[:_MOST_CHARACTERS]).replace("⏎\n", "\n") if text else "(empty)"
    more = f" … ({len(text) - _MOST_CHARACTERS:,} characters more)" if cut else ""
    return (
        f'<div style="margin-top:.5em"><div style="font-size:.8em;opacity:.7">{html.escape(label)}'
        '</div><div dir="auto" style="white-space:pre-wrap;overflow-wrap:anywhere;'
        'unicode-bidi:plaintext">'
        f"{html.escape(shown + more)}</div></div>"
    )


def _table(table: pd.DataFrame, around: int | None, largest: str | None) -> str:
    shown, which = _rows(table, around, largest)
    cells = shown.map(lambda value: visible(value) if isinstance(value, str) else value)
    if around is not None:
        marks = ["▸" if place == around else "" for place in _places(len(table), around)]
        cells.insert(0, "", marks, allow_duplicates=True)
    drawn: str = cells.to_html(
        index=False, border=0, float_format=lambda value: show(value, 3), na_rep="–"
    )
    rest = len(table) - len(shown)
    more = f"… {rest} rows more{which}"
    return drawn + (f'<div style="opacity:.7;font-size:.85em">{more}</div>' if rest else "")


def _rows(table: pd.DataFrame, around: int | None, largest: str | None) -> tuple[pd.DataFrame, str]:
    """The rows to show, and words on those left out."""
    if around is not None:
        places = _places(len(table), around)
        before, after = places.start, len(table) - places.stop
        return table.iloc[places.start : places.stop], f": {before} before and {after} after these"
    if largest is not None:
        order = table[largest].abs().sort_values(ascending=False, kind="stable").index
        shown = table.loc[order[:_MOST_ROWS]]
        return shown, f", with smaller {html.escape(largest.replace('_', ' '))}"
    if len(table) > _MOST_ROWS and "layer" in table and table["layer"].is_unique:
        spread = [round(i * (len(table) - 1) / (_MOST_ROWS - 1)) for i in range(_MOST_ROWS)]
        return table.iloc[spread], ", between these"
    return table.head(_MOST_ROWS), ""


def _places(n_rows: int, around: int) -> range:
    """Rows amid which one stands, as many before as after it where there are as many."""
    start = max(0, min(around - _MOST_ROWS // 2, n_rows - _MOST_ROWS))
    return range(start, min(start + _MOST_ROWS, n_rows))
