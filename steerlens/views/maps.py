"""Heat maps: instructions by layers, layers by tokens, and how alike directions are.

`instruction_layer_heatmap` compares tasks at a glance. Its columns are the layers that were
measured, evenly spaced even where layers were skipped; a cell without a value is left out.
`cosine_matrix` compares unit directions at one layer: near 1, two tasks share a direction there,
and steering one is likely to move the other. `layer_token_map` shows one quantity over layers × the
tokens of a text, `setting_map` one over layers × strengths.

>>> rows = [{"instruction": "title", "layer": 3, "auroc": 0.75}]
>>> figure = instruction_layer_heatmap(rows, "auroc")
>>> figure.data[0].z
([0.75],)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from steerlens.errors import SteerlensError, unknown_name
from steerlens.views.numbers import compact, finite
from steerlens.views.picture import Picture, say_instead, themed
from steerlens.views.tables import Rows, layer_table, table_of
from steerlens.views.theme import plain_text
from steerlens.views.tokens import one_line

__all__ = [
    "HEATMAP_VALUES",
    "cosine_matrix",
    "instruction_layer_heatmap",
    "layer_token_map",
    "setting_map",
]

# The quantities a heat map can show: name on the colour bar, and the range it spans. A range with
# zero inside takes the two-sided colours of the theme, any other the one-sided ones.
HEATMAP_VALUES: Mapping[str, tuple[str, float, float]] = {
    "auroc": ("AUROC", 0.5, 1.0),
    "specific_auroc": ("specific AUROC", 0.5, 1.0),
    "recovery": ("recovery", -1.0, 1.0),
    "split_half_cosine": ("split-half cosine", -1.0, 1.0),
    "selection_frequency": ("selection frequency", 0.0, 1.0),
}
_ROW_PIXELS = 22
# With more columns than this, gaps between cells would hide the cells.
_MOST_WITH_GAPS = 120
_MOST_TICKS = 48


def instruction_layer_heatmap(
    table: Rows,
    value: str = "auroc",
    *,
    marked: Mapping[str, int] | None = None,
    marked_label: str = "best layer",
    title: str | None = None,
) -> go.Figure:
    """Instructions (rows, in the order given) by layers (columns), coloured by `value`.

    Values beyond the colour range (AUROC below 0.5, recovery below −1) take its end colour.

    Args:
        table: one row per cell with `instruction`, `layer` and the column `value`.
        value: one of `HEATMAP_VALUES`.
        marked: the layer to mark, by instruction.
        marked_label: what the mark means, for the legend.
        title: above the map.

    Raises:
        SteerlensError: an unknown value, a missing column, or a layer twice in one instruction.
    """
    if value not in HEATMAP_VALUES:
        raise unknown_name("heat map value", value, HEATMAP_VALUES)
    name, lowest, highest = HEATMAP_VALUES[value]
    rows = table_of(table, ["instruction", "layer", value], "heat map table")
    cells: dict[str, dict[int, object]] = {}
    for instruction, group in rows.groupby("instruction", sort=False):
        what = f"heat map table, instruction {str(instruction)!r}"
        by_layer = layer_table(group, [value], what)
        cells[str(instruction)] = dict(zip(by_layer["layer"], by_layer[value], strict=True))
    layers = sorted({layer for row in cells.values() for layer in row})
    figure = _heatmap(
        [str(layer) for layer in layers],
        [plain_text(instruction) for instruction in cells],
        [compact(row.get(layer) for layer in layers) for row in cells.values()],
        (lowest, highest),
        name,
        f"%{{y}}<br>layer %{{x}}: {name} %{{z:.3f}}",
    )
    marks = {i: layer for i, layer in (marked or {}).items() if layer in cells.get(i, {})}
    if marks:
        figure.add_trace(_marks(marks, marked_label))
    # Exact ranges (in cells): the marks would otherwise push the axes away from the map.
    across = [-0.5, len(layers) - 0.5]
    down = [len(cells) - 0.5, -0.5]
    figure.update_xaxes(title_text="layer", range=across)
    figure.update_yaxes(dtick=1, range=down)
    return themed(figure, height=130 + _ROW_PIXELS * max(len(cells), 2), title=title)


def cosine_matrix(
    ids: Sequence[str],
    matrix: Sequence[Sequence[Any]],
    layer: int | None = None,
    *,
    name: str = "cosine",
    title: str | None = None,
) -> go.Figure:
    """Cosines between instructions' directions at `layer`, two-sided around zero.

    Args:
        ids: the instructions, in the order of the matrix's rows and columns.
        matrix: `len(ids)` rows of `len(ids)` cosines in [−1, 1]; `None` or NaN where unknown.
        layer: where the directions were taken, for the title.
        name: what is shown, for the colour bar and on hover.
        title: above the map.

    Raises:
        SteerlensError: the matrix is not square in `ids`, or a value lies outside [−1, 1].
    """
    size = len(ids)
    if len(matrix) != size or any(len(row) != size for row in matrix):
        shape = f"{len(matrix)} rows of {sorted({len(row) for row in matrix})} values"
        raise SteerlensError(f"cosine matrix: {size} ids need {size} × {size} values, not {shape}")
    for row in matrix:
        for cosine in row:
            # A dot product of unit vectors in bfloat16 may pass 1 by a rounding error.
            if abs(finite(cosine) or 0.0) > 1.01:
                raise SteerlensError(f"cosine matrix: {cosine!r} is not a cosine (−1 to 1)")
    labels = [plain_text(name) for name in ids]
    cells = [compact(row, 3) for row in matrix]
    hover = f"%{{y}}<br>%{{x}}<br>{name} %{{z:.2f}}"
    figure = _heatmap(labels, labels, cells, (-1.0, 1.0), name, hover)
    if size <= 12:
        figure.update_traces(texttemplate="%{z:.2f}")
    figure.update_xaxes(tickangle=-60, dtick=1)
    figure.update_yaxes(dtick=1, autorange="reversed")
    if title is None and layer is not None:
        title = f"layer {layer}"
    # The slanted names below the map take height too, about 6 pixels a character.
    names = 6 * max((len(name) for name in ids), default=0)
    return themed(figure, height=80 + names + _ROW_PIXELS * max(size, 4), title=title)


def setting_map(
    table: Rows,
    layers: Sequence[int],
    strengths: Sequence[float],
    name: str,
    *,
    highest: float | None = None,
    mark: str = "",
    title: str | None = None,
) -> go.Figure:
    """One quantity over strengths (rows) and layers (columns); cells not yet known are left out.

    Args:
        table: one row per cell with `layer`, `strength`, `value`, and `marked`, whether `mark` is
            written in it.
        layers: the columns.
        strengths: the rows, from below.
        name: what is shown, for the colour bar.
        highest: the value of the strongest colour; by default the largest in the table.
        mark: what is written in marked cells.
        title: above the map.

    Raises:
        SteerlensError: a column is missing.
    """
    rows = table_of(table, ["layer", "strength", "value", "marked"], "setting map")
    cells = {(r["strength"], r["layer"]): r for r in rows.to_dict("records")}
    known = [finite(cell["value"]) or 0.0 for cell in cells.values()]
    places = [[(strength, layer) for layer in layers] for strength in strengths]
    figure = _heatmap(
        [str(layer) for layer in layers],
        [f"{strength:g}" for strength in strengths],
        [compact(cells[p]["value"] if p in cells else None for p in row) for row in places],
        (0.0, max([*known, 1e-6]) if highest is None else highest),
        name,
        f"layer %{{x}}, strength %{{y}}: {plain_text(name)} %{{z:.3g}}",
    )
    texts = [[mark if p in cells and cells[p]["marked"] else "" for p in row] for row in places]
    figure.update_traces(text=texts, texttemplate="%{text}")
    figure.update_xaxes(title_text="layer")
    figure.update_yaxes(title_text="strength")
    return themed(figure, height=110 + _ROW_PIXELS * max(len(strengths), 3), title=title)


def layer_token_map(
    tokens: Sequence[str],
    layers: Sequence[int],
    values: Any,
    name: str,
    *,
    unit: str = "",
    signed: bool = True,
    limit: float | None = None,
    n_prompt: int | None = None,
    title: str | None = None,
    subtitle: str | None = None,
) -> go.Figure:
    """One quantity over layers (rows, the lowest below) and the tokens of a text (columns).

    Args:
        tokens: the text, token by token; may be empty.
        layers: the layers of the rows of `values`, ascending.
        values: `len(layers)` rows of `len(tokens)` numbers, as an array, a tensor or lists; NaN
            where there is none.
        name: what is shown, for the colour bar.
        unit: its unit.
        signed: centre the colours at zero; otherwise they start there.
        limit: |value| of the strongest colour; by default the 99.5th percentile over all tokens but
            the first, whose residual is in many models far longer than any other's.
        n_prompt: how many tokens are prompt; a line is drawn after them.
        title: above the map.
        subtitle: a smaller line below it.

    Raises:
        SteerlensError: the shape of `values` does not fit, or `limit` is not above zero.
    """
    cells = np.asarray(values, dtype=np.float32)
    if cells.shape != (len(layers), len(tokens)):
        raise SteerlensError(
            f"layer × token map: {len(layers)} layers and {len(tokens)} tokens need values of "
            f"shape {(len(layers), len(tokens))}, not {cells.shape}"
        )
    if limit is None:
        known = np.abs(cells[:, 1:] if len(tokens) > 1 else cells)
        known = known[np.isfinite(known)]
        limit = max(float(np.quantile(known, 0.995)) if known.size else 0.0, 1e-6)
    elif not limit > 0:
        raise SteerlensError(f"limit must be a number above zero, not {limit!r}")
    # Every column needs a name of its own; its number comes first.
    columns = [f"{place} {plain_text(one_line(text))}" for place, text in enumerate(tokens)]
    figure = _heatmap(
        columns,
        [str(layer) for layer in layers],
        cells,
        (-limit if signed else 0.0, limit),
        f"{name}<br>{unit}" if unit else name,
        f"token %{{x}}<br>layer %{{y}}: %{{z:.3g}} {unit}",
    )
    if len(tokens) > _MOST_WITH_GAPS:
        figure.update_traces(xgap=0, ygap=0)
    step = max(1, -(-len(tokens) // _MOST_TICKS))
    shown = list(range(0, len(tokens), step))
    labels = [plain_text(_short(one_line(tokens[place]))) for place in shown]
    figure.update_xaxes(
        title_text="token" if step == 1 else f"token (one in {step} is named)",
        tickmode="array",
        tickvals=shown,
        ticktext=labels,
        tickangle=-90,
        tickfont={"family": "ui-monospace, monospace", "size": 11},
    )
    figure.update_yaxes(title_text="layer")
    if n_prompt and n_prompt < len(tokens):
        for colour, width in (("white", 4), ("black", 1.5)):  # seen on every colour
            figure.add_vline(x=n_prompt - 0.5, line={"color": colour, "width": width})
    if not len(tokens):
        say_instead(figure, "no tokens")
    height = 170 + max(14 * len(layers), 130)
    return themed(figure, height=height, title=title, subtitle=subtitle)


def _short(text: str, most: int = 14) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _heatmap(
    columns: Sequence[str],
    rows: Sequence[str],
    cells: Any,
    limits: tuple[float, float],
    name: str,
    hover: str,
) -> Picture:
    """A heat map in the colours of its theme: two-sided where zero lies between the limits."""
    trace = go.Heatmap(
        x=columns,
        y=rows,
        z=cells,
        zmin=limits[0],
        zmax=limits[1],
        autocolorscale=True,
        hoverongaps=False,
        xgap=1,
        ygap=1,
        colorbar={
            "title": {"text": name, "side": "right"},
            "thickness": 12,
            "outlinewidth": 0,
            "nticks": 5,
        },
        hovertemplate=f"{hover}<extra></extra>",
    )
    figure = Picture(trace)
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(type="category", showgrid=False)
    return figure


def _marks(marks: Mapping[str, int], label: str) -> go.Scatter:
    """White dots with a black rim: visible on every colour of every map."""
    return go.Scatter(
        x=[str(layer) for layer in marks.values()],
        y=[plain_text(instruction) for instruction in marks],
        mode="markers",
        name=plain_text(label),
        showlegend=True,
        marker={"size": 8, "color": "white", "line": {"color": "black", "width": 1.5}},
        hoverinfo="skip",
    )
