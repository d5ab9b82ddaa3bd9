"""The residual stream in pictures: projections, norms, and what survives of an intervention.

`projection_histogram` shows how far instructed and uninstructed residuals lie apart along a
direction, and where steering puts the latter. `vector_curves` and `norm_curves` show over layers
how large a steering vector is beside the stream it is added to; `survival_curve` what share of an
intervention later layers leave.

>>> figure = projection_histogram([2.0, 2.5], [0.0, 0.5], layer=3)
>>> [trace.name for trace in figure.data]
['uninstructed', 'instructed']
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from steerlens.views.bands import banded, mark_across, not_measured, reference_line
from steerlens.views.numbers import compact, finite
from steerlens.views.tables import Rows, layer_table, table_of
from steerlens.views.theme import (
    BLUE,
    GREEN,
    GREY,
    SERIES,
    VERMILLION,
    Picture,
    log_ticks,
    plain_text,
    themed,
    translucent,
)

__all__ = ["norm_curves", "projection_histogram", "survival_curve", "vector_curves"]

_UNIT = "residual-stream units"
_SIDES = (("uninstructed", BLUE), ("instructed", VERMILLION), ("steered", GREEN))
_MOST_BINS = 40


def projection_histogram(
    instructed: Sequence[Any],
    uninstructed: Sequence[Any],
    steered: Sequence[Any] | None = None,
    *,
    names: tuple[str, str] = ("instructed", "uninstructed"),
    layer: int | None = None,
    target: float | None = None,
    title: str | None = None,
) -> go.Figure:
    """Projections on a direction: without the instruction, with it, and steered.

    Args:
        instructed: projections of instructed residuals (residual-stream units; missing ones are
            left out); fit the direction on other pairs, or they lie further apart than they should.
        uninstructed: those of uninstructed ones.
        steered: those of uninstructed ones after steering.
        names: what the first two are called.
        layer: where, for the title.
        target: the projection steering aims at, marked by a line.
        title: above the histogram; by default says what is shown.

    Raises:
        SteerlensError: a projection is not a number.
    """
    sides = {"uninstructed": uninstructed, "instructed": instructed}
    if steered is not None:
        sides["steered"] = steered
    known = {
        name: np.array([number for value in values if (number := finite(value)) is not None])
        for name, values in sides.items()
    }
    everything = np.concatenate([*known.values()]) if known else np.empty(0)
    called = dict(zip(("instructed", "uninstructed"), names, strict=True))
    figure = Picture()
    if everything.size:
        edges = _bin_edges(everything, max(len(values) for values in known.values()))
        for name, colour in _SIDES:
            if name in known:
                said = plain_text(called.get(name, name))
                figure.add_trace(_steps(known[name], edges, said, colour))
    else:
        not_measured(figure, "no projections")
    if target is not None:
        mark_across(figure, target)
    where = "" if layer is None else f" at layer {layer}"
    figure.update_xaxes(title_text=f"projection on the direction{where}, {_UNIT}")
    figure.update_yaxes(title_text="share of prompts", tickformat=".0%", rangemode="tozero")
    return themed(figure, height=340, title=title)


def _bin_edges(values: np.ndarray, n: int) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if not high > low:
        low, high = low - 0.5, high + 0.5
    edges: np.ndarray = np.linspace(low, high, min(_MOST_BINS, max(8, int(2 * np.sqrt(n)))) + 1)
    return edges


def _steps(values: np.ndarray, edges: np.ndarray, name: str, colour: str) -> go.Scatter:
    """A histogram as a filled outline: three of them stay legible on top of one another."""
    share = np.histogram(values, edges)[0] / max(len(values), 1)
    return go.Scatter(
        x=compact(np.repeat(edges, 2).tolist()),
        y=compact([0.0, *np.repeat(share, 2).tolist(), 0.0]),
        name=name,
        mode="lines",
        line={"color": colour, "width": 2, "shape": "linear"},
        fill="tozeroy",
        fillcolor=translucent(colour, 0.22),
        hovertemplate=f"{name}: %{{y:.1%}} near %{{x:.3g}}<extra></extra>",
    )


def vector_curves(rows: Rows, *, title: str | None = None) -> go.Figure:
    """A steering vector over layers: its gap, and the mean projections of both sides.

    Args:
        rows: one row a layer with `layer`, `gap`, `target` (mean projection of the instructed side)
            and `baseline` (of the uninstructed one), in residual-stream units.
        title: above the curves.

    Raises:
        SteerlensError: a column is missing, or a layer is malformed or comes twice.
    """
    table = layer_table(rows, ["gap", "target", "baseline"], "vector table")
    figure = Picture()
    for column, name, colour, dash, symbol in (
        ("gap", "gap (distance of the means)", GREEN, "solid", "diamond"),
        ("target", "projection, instructed", VERMILLION, "solid", "circle"),
        ("baseline", "projection, uninstructed", BLUE, "dash", "square"),
    ):
        line = banded(table, "layer", column, None, None, name, colour, dash=dash, symbol=symbol)
        figure.add_traces(line)
    reference_line(figure, 0.0)
    figure.update_xaxes(title_text="layer")
    figure.update_yaxes(title_text=_UNIT)
    return themed(figure, height=360, title=title)


def norm_curves(rows: Rows, *, title: str | None = None) -> go.Figure:
    """Length of residuals on both sides over layers, and the distance between their means.

    Args:
        rows: one row a layer with `layer`, `instructed`, `uninstructed` (median norms, each with
            the 10th and 90th percentile as `…_low` and `…_high`) and `gap`, in residual-stream
            units; `ResidualCache.table` has them.
        title: above the curves.

    Raises:
        SteerlensError: a column is missing, or a layer is malformed or comes twice.
    """
    columns = [
        f"{side}{end}" for side in ("instructed", "uninstructed") for end in ("", "_low", "_high")
    ]
    table = layer_table(rows, [*columns, "gap"], "norm table")
    figure = Picture()
    for side, colour, dash, symbol in (
        ("uninstructed", BLUE, "dash", "square"),
        ("instructed", VERMILLION, "solid", "circle"),
    ):
        ends = (f"{side}_low", f"{side}_high")
        options: dict[str, Any] = {
            "dash": dash,
            "symbol": symbol,
            "band_name": "10th to 90th percentile",
        }
        figure.add_traces(banded(table, "layer", side, *ends, f"norm, {side}", colour, **options))
    name = "distance of the means"
    figure.add_traces(banded(table, "layer", "gap", None, None, name, GREEN, symbol="diamond"))
    figure.update_xaxes(title_text="layer")
    known = [float(value) for column in [*columns, "gap"] for value in table[column].dropna()]
    figure.update_yaxes(title_text=_UNIT, **log_ticks(known))
    return themed(figure, height=380, title=title)


def survival_curve(
    rows: Rows, names: Mapping[int, str] | None = None, *, title: str | None = None
) -> go.Figure:
    """What share of each intervention is left at later layers: median, and 10th to 90th percentile.

    Args:
        rows: one row an intervention and layer with `intervention`, `layer`, `survival`,
            `survival_low`, `survival_high`.
        names: of the interventions, for the legend.
        title: above the curves.

    Raises:
        SteerlensError: a column is missing, or a layer comes twice in one intervention.
    """
    columns = ["survival", "survival_low", "survival_high"]
    table = table_of(rows, ["intervention", "layer", *columns], "survival table")
    figure = Picture()
    colours = [colour for colour in SERIES if colour != GREY]
    groups: list[tuple[Any, Any]] = list(table.groupby("intervention", sort=True))
    for place, (number, group) in enumerate(groups):
        name = plain_text((names or {}).get(int(number), f"intervention {number}"))
        clean = layer_table(group, columns, f"survival table, intervention {number}")
        options: dict[str, Any] = {
            "band_name": "10th to 90th percentile",
            "showlegend": len(groups) > 1,
        }
        value, low, high = columns
        colour = colours[place % len(colours)]
        figure.add_traces(banded(clean, "layer", value, low, high, name, colour, **options))
    if not groups:
        not_measured(figure)
    reference_line(figure, 1.0)
    reference_line(figure, 0.0)
    figure.update_xaxes(title_text="layer")
    figure.update_yaxes(title_text="share of the change of projection left")
    return themed(figure, height=360, title=title)
