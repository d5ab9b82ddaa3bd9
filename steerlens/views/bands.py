"""A line over a quantity that was varied (layer, strength), with the band of its uncertainty.

>>> points = {"layer": [0, 1], "auroc": [0.5, 0.9], "low": [0.4, 0.8], "high": [0.6, 1.0]}
>>> table = pd.DataFrame(points)
>>> [trace.name for trace in banded(table, "layer", "auroc", "low", "high", "AUROC", "#0072B2")]
['AUROC, 95 % interval', 'AUROC']
"""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from steerlens.views.numbers import compact, show, show_interval
from steerlens.views.theme import GREY, VERMILLION, translucent

__all__ = ["banded", "mark_across", "not_measured", "reference_line"]


def banded(
    table: pd.DataFrame,
    across: str,
    value: str,
    low: str | None,
    high: str | None,
    name: str,
    colour: str,
    *,
    dash: str = "solid",
    symbol: str = "circle",
    also: Sequence[str] = (),
    decimals: int = 2,
    showlegend: bool = True,
    band_name: str = "95 % interval",
) -> list[go.Scatter]:
    """The band between `low` and `high` (where both are known) and the line of `value` over it.

    Args:
        table: one row a point, in order, with the columns named.
        across: the column on the x-axis.
        value: the column of the line.
        low: lower end of the band; `None`, or missing from the table, draws no band.
        high: its upper end.
        name: of the line, for the legend and on hover.
        colour: of line and band.
        dash: of the line.
        symbol: of its points.
        also: columns told on hover as well.
        decimals: shown on hover.
        showlegend: whether the line is named in the legend; both go with it on a click.
        band_name: what the band is.
    """
    if low is None or high is None or low not in table or high not in table:
        low, high = "no lower end", "no upper end"
        table = table.assign(**{low: float("nan"), high: float("nan")})
    known = table[table[low].notna() & table[high].notna()]
    places = known[across].tolist()
    labels = ["", *(f"<br>{column.replace('_', ' ')} " for column in also)]
    said = "".join(f"{label}%{{customdata[{index}]}}" for index, label in enumerate(labels))
    line = go.Scatter(
        x=table[across].tolist(),
        y=compact(table[value]),
        customdata=_hover(table, value, low, high, also, decimals),
        name=name,
        legendgroup=name,
        showlegend=showlegend,
        mode="lines+markers",
        line={"color": colour, "width": 2, "dash": dash},
        marker={"size": 5, "color": colour, "symbol": symbol},
        hovertemplate=f"{across} %{{x}}: {name} {said}<extra></extra>",
    )
    if len(known) == 1:
        # A band over one point has no area, and its uncertainty would vanish from the picture.
        above = compact(table[high] - table[value])
        below = compact(table[value] - table[low])
        line.error_y = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
    if len(known) < 2:
        return [line]
    band = go.Scatter(
        x=places + places[::-1],
        y=compact([*known[high], *known[low].iloc[::-1]]),
        name=f"{name}, {band_name}",
        legendgroup=name,
        mode="lines",
        line={"width": 0, "color": colour},
        fill="toself",
        fillcolor=translucent(colour, 0.2),
        hoverinfo="skip",
        showlegend=False,
    )
    return [band, line]


def _hover(
    table: pd.DataFrame, value: str, low: str, high: str, also: Sequence[str], decimals: int
) -> list[list[str]]:
    """What a point says: its value with the interval, and what else is known there."""
    return [
        [
            show_interval(row[value], row[low], row[high], decimals),
            *(show(row[name]) for name in also),
        ]
        for row in table.to_dict("records")
    ]


def reference_line(
    figure: go.Figure, at: float, row: int | str = "all", col: int | str = "all"
) -> None:
    """The level that means "nothing there": chance, zero."""
    line = {"color": GREY, "width": 1, "dash": "dash"}
    figure.add_hline(y=at, line=line, row=row, col=col)


def mark_across(figure: go.Figure, at: float) -> None:
    """A vertical line in every panel."""
    line = {"color": VERMILLION, "width": 1.5, "dash": "dot"}
    figure.add_vline(x=at, line=line, layer="below")


def not_measured(figure: go.Figure, said: str = "not measured") -> None:
    """Words in the place of a curve that has no points."""
    figure.add_annotation(text=said, showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper")
