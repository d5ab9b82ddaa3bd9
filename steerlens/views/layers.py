"""Curves over layers: where a task can be read, where steering works, and how large vectors are.

`layer_curves` shows separability on held-out pairs, `recovery_curve` the share of
KL(instructed‖uninstructed) at the first response token that steering removes, beside a placebo. The
two often disagree, which is why both are drawn. `evidence_curves` has a panel for each kind of
evidence in a table. `vector_curves`, `norm_curves` and `survival_curve` show a steering vector, the
residuals it is added to, and what later layers leave of it.

Caveat: a high, flat AUROC says that the task is easy to read at many layers, not that steering
works at any of them.

>>> rows = [{"layer": 0, "recovery": 0.1, "low": 0.0, "high": 0.2,
...          "placebo": 0.0, "placebo_low": -0.1, "placebo_high": 0.1}]
>>> [trace.name for trace in recovery_curve(rows).data]
['steering', 'placebo']
"""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from steerlens.errors import SteerlensError
from steerlens.views.bands import INTERVAL, banded, mark_across, reference_line
from steerlens.views.numbers import compact
from steerlens.views.picture import Picture, log_ticks, say_instead, themed
from steerlens.views.tables import Rows, layer_table, table_of
from steerlens.views.theme import BLUE, GREEN, GREY, SERIES, VERMILLION, plain_text

__all__ = [
    "LAYER_COLUMNS",
    "RECOVERY_COLUMNS",
    "auroc_curves",
    "evidence_curves",
    "layer_curves",
    "norm_curves",
    "recovery_curve",
    "survival_curve",
    "vector_curves",
]

# Panels of `layer_curves`, with the value that means "nothing there".
_PANELS = {"auroc": 0.5, "d_prime": 0.0, "split_half_cosine": 0.0}
LAYER_COLUMNS = (
    *(f"{column}{end}" for column in _PANELS for end in ("", "_low", "_high")),
    "selection_frequency",
)
RECOVERY_COLUMNS = ("recovery", "low", "high", "placebo", "placebo_low", "placebo_high")

# Shown on hover in the panel of AUROC, where the table has them.
_WITH_AUROC = ("accuracy", "relative_gap")
_NAMES = {
    "auroc": "AUROC",
    "d_prime": "d′",
    "d_prime_held_out": "d′ of held-out directions",
    "split_half_cosine": "split-half cosine",
}
# What a band is, where it is not a 95 % interval.
_BANDS = {"split_half_cosine": "middle 95 % of splits"}
_UNIT = "residual-stream units"
_PERCENTILES = "10th to 90th percentile"


def _panels(names: Sequence[str], vertical_spacing: float) -> go.Figure:
    """A figure with a panel per name, two per row."""
    n_columns = min(len(names), 2)
    figure = make_subplots(
        figure=Picture(),
        rows=-(-len(names) // n_columns),
        cols=n_columns,
        shared_xaxes=True,
        vertical_spacing=vertical_spacing,
        horizontal_spacing=0.1,
        subplot_titles=[plain_text(name) for name in names],
    )
    return figure.update_annotations(font_size=12)


def _name(column: str) -> str:
    return _NAMES.get(column, column.replace("_", " "))


def layer_curves(
    table: Rows, best_layer: int | None = None, *, title: str | None = None
) -> go.Figure:
    """Four panels over layers: AUROC, d′, split-half cosine, selection frequency.

    Args:
        table: one row per layer with `layer` and `LAYER_COLUMNS`; missing values leave gaps.
            `accuracy` and `relative_gap`, if there, show on hover.
        best_layer: marked by a vertical line in every panel.
        title: above the panels.

    Raises:
        SteerlensError: a column is missing, or a layer is malformed or comes twice.
    """
    known = table_of(table, ["layer", *LAYER_COLUMNS], "layer table")
    also = [column for column in _WITH_AUROC if column in known]
    rows = layer_table(known, [*LAYER_COLUMNS, *also], "layer table")
    figure = _panels([*(_name(column) for column in _PANELS), "selection frequency"], 0.16)
    for place, (column, nothing) in enumerate(_PANELS.items()):
        cell = {"row": place // 2 + 1, "col": place % 2 + 1}
        shown = also if column == "auroc" else ()
        band = _BANDS.get(column, INTERVAL)
        lines = banded(rows, "layer", column, _name(column), BLUE, also=shown, band_name=band)
        figure.add_traces(lines, rows=cell["row"], cols=cell["col"])
        reference_line(figure, nothing, **cell)
    frequency = go.Bar(
        x=rows["layer"].tolist(),
        y=compact(rows["selection_frequency"]),
        marker_color=GREEN,
        hovertemplate="layer %{x}: %{y:.0%}<extra></extra>",
    )
    figure.add_trace(frequency, row=2, col=2)
    figure.update_yaxes(tickformat=".0%", rangemode="tozero", row=2, col=2)
    figure.update_xaxes(title_text="layer", row=2)
    mark_across(figure, best_layer)
    return themed(figure, height=440, title=title, showlegend=False, bargap=0.15)


def evidence_curves(
    table: Rows, kinds: Sequence[str], best_layer: int | None = None, *, title: str | None = None
) -> go.Figure:
    """A panel over layers for each kind of evidence, with its band where there is one.

    Args:
        table: one row per layer with `layer` and a column for each kind; bands come from the
            columns `…_low` and `…_high`, where there are any.
        kinds: the columns to draw, in order.
        best_layer: marked by a vertical line in every panel.
        title: above the panels.

    Raises:
        SteerlensError: no kind, a column is missing, or a layer is malformed or comes twice.
    """
    if not kinds:
        raise SteerlensError("evidence curves: name at least one column to draw")
    known = table_of(table, ["layer", *kinds], "evidence table")
    ends = [f"{kind}{end}" for kind in kinds for end in ("_low", "_high")]
    rows = layer_table(known, [*kinds, *(end for end in ends if end in known)], "evidence table")
    n_columns = min(len(kinds), 2)
    n_rows = -(-len(kinds) // n_columns)
    figure = _panels([_name(kind) for kind in kinds], 0.32 / max(n_rows, 2))
    for place, kind in enumerate(kinds):
        row, col = place // n_columns + 1, place % n_columns + 1
        band = _BANDS.get(kind, INTERVAL)
        lines = banded(rows, "layer", kind, plain_text(_name(kind)), BLUE, band_name=band)
        figure.add_traces(lines, rows=row, cols=col)
        if place + n_columns >= len(kinds):  # the lowest panel of its column
            figure.update_xaxes(title_text="layer", showticklabels=True, row=row, col=col)
    mark_across(figure, best_layer)
    return themed(figure, height=110 + 180 * n_rows, title=title, showlegend=False)


def recovery_curve(
    rows: Rows, steered_layer: int | None = None, *, title: str | None = None
) -> go.Figure:
    """First-token causal recovery over layers, beside its placebo, both with 95 % bands.

    1 means that steering moved the next-token distribution all the way to the instructed one,
    0 that it did nothing, below 0 that it moved away.

    Args:
        rows: one row per layer with `layer` and `RECOVERY_COLUMNS`; the placebo's may be left out
            together; may be empty.
        steered_layer: marked by a vertical line.
        title: above the curve.

    Raises:
        SteerlensError: a column is missing, or a layer is malformed or comes twice.
    """
    has_placebo = "placebo" in table_of(rows, ["layer", "recovery"], "recovery table")
    columns = RECOVERY_COLUMNS if has_placebo or not len(rows) else RECOVERY_COLUMNS[:3]
    table = layer_table(rows, columns, "recovery table")
    figure = Picture(banded(table, "layer", "recovery", "steering", VERMILLION, ("low", "high")))
    if "placebo" in table:
        placebo = banded(table, "layer", "placebo", "placebo", GREY, dash="dot", symbol="diamond")
        figure.add_traces(placebo)
    if table.empty:
        say_instead(figure)
    else:
        reference_line(figure, 0.0)
        mark_across(figure, steered_layer)
    return _over_layers(figure, "share of KL removed", 440, title)


def auroc_curves(rows: Rows, lines: Mapping[str, str], *, title: str | None = None) -> go.Figure:
    """Several AUROCs over layers, each with its interval.

    Args:
        rows: One row per layer with `layer` and the columns of `lines`, each with ``_low`` and
            ``_high`` where it has an interval.
        lines: Column -> name in the legend; the first is drawn solid.
        title: Above the curves.

    Raises:
        SteerlensError: A column is missing, or a layer is malformed or comes twice.
    """
    known = table_of(rows, ["layer", *lines], "AUROC table")
    ends = [f"{column}{end}" for column in lines for end in ("_low", "_high")]
    table = layer_table(known, [*lines, *(end for end in ends if end in known)], "AUROC table")
    figure = Picture()
    colours = (VERMILLION, BLUE, GREY)
    for number, (column, name) in enumerate(lines.items()):
        colour, dash = colours[number % len(colours)], "dot" if number else "solid"
        figure.add_traces(banded(table, "layer", column, name, colour, dash=dash))
    reference_line(figure, 0.5)
    return _over_layers(figure, "AUROC", 400, title)


def vector_curves(rows: Rows, *, title: str | None = None) -> go.Figure:
    """A steering vector over layers: its gap, and the mean projections of both sides.

    Args:
        rows: one row per layer with `layer`, `gap`, `target` (mean projection of the instructed
            side) and `baseline` (of the uninstructed one), in residual-stream units.
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
        figure.add_traces(banded(table, "layer", column, name, colour, dash=dash, symbol=symbol))
    reference_line(figure, 0.0)
    return _over_layers(figure, _UNIT, 360, title)


def norm_curves(rows: Rows, *, title: str | None = None) -> go.Figure:
    """Norms of residuals on both sides over layers, and the distance between their means.

    Args:
        rows: one row per layer with `layer`, `instructed`, `uninstructed` (median norms, each with
            the 10th and 90th percentile as `…_low` and `…_high`) and `gap`, in residual-stream
            units; `ResidualCache.table` has them.
        title: above the curves.

    Raises:
        SteerlensError: a column is missing, or a layer is malformed or comes twice.
    """
    sides = ("uninstructed", "instructed")
    columns = [*(f"{side}{end}" for side in sides for end in ("", "_low", "_high")), "gap"]
    table = layer_table(rows, columns, "norm table")
    figure = Picture()
    for column, name, colour, dash, symbol in (
        ("uninstructed", "norm, uninstructed", BLUE, "dash", "square"),
        ("instructed", "norm, instructed", VERMILLION, "solid", "circle"),
        ("gap", "distance of the means", GREEN, "solid", "diamond"),
    ):
        lines = banded(
            *(table, "layer", column, name, colour),
            dash=dash,
            symbol=symbol,
            band_name=_PERCENTILES,
        )
        figure.add_traces(lines)
    figure.update_yaxes(log_ticks(table[columns].to_numpy().ravel().tolist()))
    return _over_layers(figure, _UNIT, 380, title)


def survival_curve(
    rows: Rows, names: Mapping[int, str] | None = None, *, title: str | None = None
) -> go.Figure:
    """What share of each intervention is left at later layers: median, and 10th to 90th percentile.

    Args:
        rows: one row per intervention and layer with `intervention`, `layer`, `survival`,
            `survival_low`, `survival_high`.
        names: of the interventions, for the legend.
        title: above the curves.

    Raises:
        SteerlensError: a column is missing, or a layer comes twice in one intervention.
    """
    columns = ["survival", "survival_low", "survival_high"]
    table = table_of(rows, ["intervention", "layer", *columns], "survival table")
    figure = Picture()
    numbers = sorted(table["intervention"].unique())
    for place, number in enumerate(numbers):
        group = table[table["intervention"] == number]
        name = plain_text((names or {}).get(number, f"intervention {number}"))
        clean = layer_table(group, columns, f"survival table, intervention {number}")
        colour = SERIES[place % (len(SERIES) - 1)]
        figure.add_traces(
            banded(
                *(clean, "layer", "survival", name, colour),
                showlegend=len(numbers) > 1,
                band_name=_PERCENTILES,
            )
        )
    if not numbers:
        say_instead(figure)
    reference_line(figure, 1.0)
    reference_line(figure, 0.0)
    return _over_layers(figure, "share of the change of projection left", 360, title)


def _over_layers(figure: go.Figure, value: str, height: int, title: str | None) -> go.Figure:
    figure.update_xaxes(title_text="layer")
    figure.update_yaxes(title_text=value)
    return themed(figure, height=height, title=title)
