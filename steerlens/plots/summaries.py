"""Compact HTML for notebooks: what a result is, in a heading, a few facts and a small table.

Everything is escaped; nothing runs, and nothing is set as mathematics. The style is inline and
follows the notebook's own colours.

>>> "&lt;b&gt;" in summary("<b>", {"layer": 3})
True
"""

import html
from collections.abc import Mapping

import pandas as pd

from steerlens.plots.numbers import show
from steerlens.plots.tokens import AS_WRITTEN, visible

__all__ = ["excerpt", "summary"]

_MOST_ROWS = 8
_MOST_CHARACTERS = 1200


def summary(
    heading: str,
    facts: Mapping[str, object] | None = None,
    table: pd.DataFrame | None = None,
    body: str = "",
) -> str:
    """A card for a result.

    Args:
        heading: What it is; escaped.
        facts: Names and values in one line; escaped.
        table: Shown in at most eight rows, numbers in three decimals; escaped.
        body: HTML to place below, already safe (a token strip).
    """
    told = " · ".join(
        f"{html.escape(str(name))} <b>{html.escape(_said(value))}</b>"
        for name, value in (facts or {}).items()
    )
    parts = [f'<div style="font-weight:600">{html.escape(heading)}</div>']
    if told:
        parts.append(f'<div style="opacity:.85;font-size:.92em">{told}</div>')
    if table is not None:
        parts.append(_table(table))
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


def _said(value: object) -> str:
    return show(value, 3) if isinstance(value, float) else str(value)


def _table(table: pd.DataFrame) -> str:
    shown = table.head(_MOST_ROWS)
    cells = shown.map(lambda value: visible(value) if isinstance(value, str) else value)
    drawn: str = cells.to_html(
        index=False, border=0, float_format=lambda value: show(value, 3), na_rep="–"
    )
    rest = len(table) - len(shown)
    more = f'<div style="opacity:.7;font-size:.85em">… {rest} rows more</div>' if rest else ""
    return drawn + more
