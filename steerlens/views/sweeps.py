"""What happens as the strength grows: how often the task is done, and at what price.

`strength_sweep` puts three panels over one strength axis: the rate of passing the task's check, the
divergence from the unsteered model, and the perplexity of the text under a judge. A good strength
is one where the first has risen and the other two have not yet. `length_over_strength` shows how
long responses get; steering that only makes texts short or endless shows here first.
`kl_over_response` shows where in a response steering changes the predictions.

>>> rows = [{"strength": s, "rate": s / 4, "kl": s * s} for s in (0.0, 1.0, 2.0)]
>>> figure = strength_sweep({"title": rows})
>>> [axis.title.text for axis in (figure.layout.yaxis, figure.layout.yaxis2)]
['rate of passing', 'KL(steered‖baseline)<br>nats per token']
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from steerlens.errors import SteerlensError, unknown_name
from steerlens.views.bands import INTERVAL, banded
from steerlens.views.picture import Picture, log_ticks, say_instead, themed
from steerlens.views.tables import Rows, strength_table, table_of
from steerlens.views.theme import BLUE, GREY, SERIES, plain_text

__all__ = ["kl_over_response", "length_over_strength", "strength_sweep"]

# What a sweep can show, top to bottom: the title of its axis, and how it is scaled.
SWEEP_VALUES: Mapping[str, tuple[str, str]] = {
    "rate": ("rate of passing", "share"),
    "kl": ("KL(steered‖baseline)<br>nats per token", "zero"),
    "perplexity": ("perplexity<br>under the judge", "log"),
}
LENGTH_UNITS = ("words", "sentences", "tokens")
_DASHES = ("solid", "dash", "dot", "dashdot")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x")


def strength_sweep(
    sweeps: Mapping[str, Rows] | Rows,
    *,
    values: Sequence[str] | None = None,
    chosen: float | None = None,
    interval: str = INTERVAL,
    title: str | None = None,
) -> go.Figure:
    """Rate, KL and perplexity over strength, each with its band.

    Args:
        sweeps: rows by the name of their line, or the rows of a single line; a row has `strength`
            and some of `SWEEP_VALUES`, each with `…_low` and `…_high` where known. A line named
            `"placebo"` is drawn in grey.
        values: which panels; by default all that any row has values for.
        chosen: a strength to mark.
        interval: what the bands are, for the legend.
        title: above the panels.

    Raises:
        SteerlensError: no value to show, a strength missing or twice in one line, or a value that
            is not a number.
        UnknownNameError: a panel that does not exist.
    """
    tables = _tables(sweeps, "strength sweep")
    present = {column for table in tables.values() for column in table.columns}
    panels = [name for name in SWEEP_VALUES if name in present] if values is None else list(values)
    for name in panels:
        if name not in SWEEP_VALUES:
            raise unknown_name("panel", name, SWEEP_VALUES)
        if name not in present:
            raise SteerlensError(f"strength sweep: no row has {name!r}")
    if not panels:
        raise SteerlensError(
            f"strength sweep: no row has any of {', '.join(map(repr, SWEEP_VALUES))}"
        )
    figure = make_subplots(
        figure=Picture(), rows=len(panels), cols=1, shared_xaxes=True, vertical_spacing=0.06
    )
    for row, panel in enumerate(panels, start=1):
        _lines(figure, tables, panel, row, interval)
        label, scale = SWEEP_VALUES[panel]
        scales: Mapping[str, dict[str, Any]] = {
            "share": {"tickformat": ".0%", "range": [-0.03, 1.03]},
            "zero": {"rangemode": "tozero"},
            "log": log_ticks(_all_values(tables, panel)),
        }
        figure.update_yaxes(title_text=label, row=row, col=1, **scales[scale])
    figure.update_xaxes(title_text="strength", row=len(panels), col=1)
    if chosen is not None:
        figure.add_vline(x=chosen, line={"color": GREY, "width": 1.5, "dash": "dot"})
    _legend_of_bands(figure, tables, interval)
    return themed(figure, height=90 + 190 * len(panels), title=title)


def length_over_strength(
    sweeps: Mapping[str, Rows] | Rows,
    unit: str = "words",
    *,
    interval: str = "middle half of responses",
    title: str | None = None,
) -> go.Figure:
    """Length of responses over strength, with a band.

    Args:
        sweeps: as for `strength_sweep`; a row has `strength` and `unit`, with `…_low`, `…_high`.
        unit: one of `LENGTH_UNITS`; the name of the column.
        interval: what the bands are, for the legend.
        title: above the curve.

    Raises:
        SteerlensError: as `strength_sweep`.
        UnknownNameError: another unit.
    """
    if unit not in LENGTH_UNITS:
        raise unknown_name("unit of length", unit, LENGTH_UNITS)
    tables = _tables(sweeps, "length over strength")
    figure = make_subplots(figure=Picture())
    for name, table in tables.items():
        if unit not in table and not table.empty:
            raise SteerlensError(f"length over strength: {name!r} has no column {unit!r}")
    _lines(figure, tables, unit, 1, interval)
    figure.update_xaxes(title_text="strength")
    figure.update_yaxes(title_text=f"{unit} per response", rangemode="tozero")
    _legend_of_bands(figure, tables, interval)
    return themed(figure, height=360, title=title)


def _tables(sweeps: Mapping[str, Rows] | Rows, what: str) -> dict[str, pd.DataFrame]:
    """For each line a clean table of strengths, with every known column that it has."""
    lines = sweeps if isinstance(sweeps, Mapping) else {"steering": sweeps}
    tables = {}
    for name, rows in lines.items():
        known = table_of(rows, ["strength"], f"{what}, {name!r}")
        columns = [
            f"{value}{end}"
            for value in (*SWEEP_VALUES, *LENGTH_UNITS)
            for end in ("", "_low", "_high")
            if f"{value}{end}" in known
        ]
        tables[name] = strength_table(known, columns, f"{what}, {name!r}")
    return tables


def _lines(
    figure: go.Figure, tables: Mapping[str, pd.DataFrame], panel: str, row: int, interval: str
) -> None:
    """A banded line for each table that has the panel's column."""
    for number, (name, table) in enumerate(tables.items()):
        if panel not in table or table.empty:
            continue
        placebo = name == "placebo"
        lines = banded(
            table,
            "strength",
            panel,
            plain_text(name),
            GREY if placebo else SERIES[number % (len(SERIES) - 1)],
            dash="dot" if placebo else _DASHES[number % len(_DASHES)],
            symbol=_SYMBOLS[number % len(_SYMBOLS)],
            showlegend=row == 1 and len(tables) > 1,
            band_name=plain_text(interval),
        )
        figure.add_traces(lines, rows=row, cols=1)
    if not any(panel in table and len(table) for table in tables.values()):
        say_instead(figure)


def _all_values(tables: Mapping[str, pd.DataFrame], panel: str) -> list[float]:
    """Every value of a panel, ends of bands included."""
    ends = [panel, f"{panel}_low", f"{panel}_high"]
    columns = (table[end] for table in tables.values() for end in ends if end in table)
    return [float(value) for column in columns for value in column.dropna()]


def _legend_of_bands(figure: go.Figure, tables: Mapping[str, pd.DataFrame], interval: str) -> None:
    """Says what the bands are, above the panels, where there is any band."""
    if any(str(column).endswith("_low") for table in tables.values() for column in table):
        figure.add_annotation(
            text=f"bands: {plain_text(interval)}",
            showarrow=False,
            **{"x": 1, "xref": "paper", "xanchor": "right"},
            **{"y": 1, "yref": "paper", "yanchor": "bottom"},
            font={"size": 11},
        )


def kl_over_response(rows: Rows, *, title: str | None = None) -> go.Figure:
    """KL of steered from unsteered predictions over positions of the response.

    The line is the median over prompts whose response reaches the position, the band their middle
    half.

    Args:
        rows: one row per response token with `position` (from 0) and `kl` (nats).
        title: above the curve.

    Raises:
        SteerlensError: a column is missing.
    """
    table = table_of(rows, ["position", "kl"], "KL over responses")
    figure = Picture()
    if table.empty:
        say_instead(figure, "no tokens")
    else:
        groups = table.astype({"kl": float}).groupby("position")["kl"]
        curve = groups.agg(
            kl="median",
            kl_low=lambda values: values.quantile(0.25),
            kl_high=lambda values: values.quantile(0.75),
            n="size",
        ).reset_index()
        band = "middle half of prompts"
        figure.add_traces(
            banded(
                *(curve, "position", "kl", "median KL", BLUE),
                also=["n"],
                decimals=3,
                band_name=band,
            )
        )
    figure.update_xaxes(title_text="position in the response, tokens")
    figure.update_yaxes(title_text="KL(steered‖baseline), nats", rangemode="tozero")
    return themed(figure, height=320, title=title, showlegend=False)
