"""Lines over layers, strengths or positions, each with the band of its uncertainty.

>>> points = {"layer": [0, 1], "auroc": [0.5, 0.9], "auroc_low": [0.4, 0.8], "auroc_high": [0.6, 1]}
>>> [trace.name for trace in banded(pd.DataFrame(points), "layer", "auroc", "AUROC", "#0072B2")]
['AUROC, 95 % interval', 'AUROC']
"""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from steerlens.views.numbers import compact, show, show_interval
from steerlens.views.theme import GREY, VERMILLION, translucent

__all__ = ["INTERVAL", "banded", "mark_across", "reference_line"]

INTERVAL = "95 % interval"


def banded(
    table: pd.DataFrame,
    across: str,
    value: str,
    name: str,
    colour: str,
    ends: tuple[str, str] | None = None,
    *,
    dash: str = "solid",
    symbol: str = "circle",
    also: Sequence[str] = (),
    decimals: int = 2,
    showlegend: bool = True,
    band_name: str = INTERVAL,
) -> list[go.Scatter]:
    """The line of the column `value` over the column `across`, on its band where it has one.

    Args:
        table: one row per point, in order.
        across: the column on the x-axis.
        value: the column of the line.
        name: of the line, for the legend and on hover.
        colour: of line and band.
        ends: columns with the lower and upper end of the band; by default those named like `value`
            with ``_low`` and ``_high``. There is no band where the table lacks them.
        dash: of the line.
        symbol: of its points.
        also: further columns shown on hover.
        decimals: shown on hover.
        showlegend: whether the line is named in the legend.
        band_name: what the band is.
    """
    low, high = ends or (f"{value}_low", f"{value}_high")
    table = table.assign(**{end: float("nan") for end in (low, high) if end not in table})
    labels = ["", *(f"<br>{column.replace('_', ' ')} " for column in also)]
    shown = "".join(f"{label}%{{customdata[{index}]}}" for index, label in enumerate(labels))
    line = go.Scatter(
        x=table[across].tolist(),
        y=compact(table[value]),
        customdata=[
            [
                show_interval(row[value], row[low], row[high], decimals),
                *(show(row[column]) for column in also),
            ]
            for row in table.to_dict("records")
        ],
        name=name,
        legendgroup=name,
        showlegend=showlegend,
        mode="lines+markers",
        line={"color": colour, "width": 2, "dash": dash},
        marker={"size": 5, "color": colour, "symbol": symbol},
        hovertemplate=f"{across} %{{x}}: {name} {shown}<extra></extra>",
    )
    known = table[table[low].notna() & table[high].notna()]
    if len(known) == 1:
        # A band over one point has no area, and its uncertainty would vanish from the picture.
        above, below = table[high] - table[value], table[value] - table[low]
        line.error_y = {"array": compact(above), "arrayminus": compact(below)}
    if len(known) < 2:
        return [line]
    places = known[across].tolist()
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


def reference_line(figure: go.Figure, at: float, **panel: int) -> None:
    """The level that means "nothing there" (chance, zero), in every panel or one (`row`, `col`)."""
    figure.add_hline(y=at, line={"color": GREY, "width": 1, "dash": "dash"}, **panel)


def mark_across(figure: go.Figure, at: float | int | None) -> None:
    """A vertical line in every panel; none for `None`."""
    if at is not None:
        line = {"color": VERMILLION, "width": 1.5, "dash": "dot"}
        figure.add_vline(x=float(at), line=line, layer="below")
