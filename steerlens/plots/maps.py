"""Heat maps: instructions by layers, and how alike the instructions' directions are.

`instruction_layer_heatmap` compares instructions at a glance; AUROC runs from chance (0.5) to 1 in
cividis, recovery and the other signed quantities are two-sided around zero. The columns are the
layers that were measured, evenly spaced even where layers were skipped; a cell without a value is
left out. `cosine_matrix` compares unit directions u_a · u_b at one layer: near 1, two instructions
share a direction there, and steering one is likely to move the other.

>>> rows = [{"instruction": "title", "layer": 3, "auroc": 0.75}]
>>> figure = instruction_layer_heatmap(rows, "auroc")
>>> figure.data[0].z
([0.75],)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from steerlens.errors import SteerlensError, unknown_name
from steerlens.plots.numbers import compact, finite
from steerlens.plots.tables import Rows, layer_table, table_of
from steerlens.plots.theme import SEQUENTIAL, TWO_SIDED, plain_text, themed

__all__ = ["HEATMAP_VALUES", "cosine_matrix", "instruction_layer_heatmap"]

# The quantities a heat map can show: name on the colour bar, colours, and the range they span.
HEATMAP_VALUES: Mapping[str, tuple[str, Any, float, float]] = {
    "auroc": ("AUROC", SEQUENTIAL, 0.5, 1.0),
    "recovery": ("recovery", TWO_SIDED, -1.0, 1.0),
    "split_half_cosine": ("split-half cosine", TWO_SIDED, -1.0, 1.0),
    "selection_frequency": ("selection frequency", SEQUENTIAL, 0.0, 1.0),
}
_ROW_PIXELS = 22


def instruction_layer_heatmap(
    table: Rows,
    value: str = "auroc",
    *,
    marked: Mapping[str, int] | None = None,
    marked_label: str = "best layer",
    title: str | None = None,
) -> go.Figure:
    """Instructions (rows, in the order given) by layers (columns), coloured by `value`.

    Values beyond the colour range (AUROC below 0.5, recovery below −1) take its end colour; the
    hover shows the number itself.

    Args:
        table: one row a cell with `instruction`, `layer` and the column `value`.
        value: one of `HEATMAP_VALUES`.
        marked: a layer to mark per instruction; instructions without one are not marked.
        marked_label: what the mark means, for the legend.
        title: above the map, if given.

    Raises:
        SteerlensError: an unknown value, a missing column, or a layer twice in one instruction.
    """
    if value not in HEATMAP_VALUES:
        raise unknown_name("heat map value", value, HEATMAP_VALUES)
    name, colours, lowest, highest = HEATMAP_VALUES[value]
    rows = table_of(table, ["instruction", "layer", value], "heat map table")
    cells: dict[str, dict[int, object]] = {}
    for instruction, group in rows.groupby("instruction", sort=False):
        what = f"heat map table, instruction {str(instruction)!r}"
        by_layer = layer_table(group, [value], what)
        cells[str(instruction)] = dict(zip(by_layer["layer"], by_layer[value], strict=True))
    layers = sorted({layer for row in cells.values() for layer in row})
    figure = go.Figure(
        go.Heatmap(
            x=[str(layer) for layer in layers],
            y=[plain_text(instruction) for instruction in cells],
            z=[compact(row.get(layer) for layer in layers) for row in cells.values()],
            zmin=lowest,
            zmax=highest,
            colorscale=colours,
            hoverongaps=False,
            xgap=1,
            ygap=1,
            colorbar=_colorbar(name),
            hovertemplate=f"%{{y}}<br>layer %{{x}}: {name} %{{z:.3f}}<extra></extra>",
        )
    )
    marks = {i: layer for i, layer in (marked or {}).items() if layer in cells.get(i, {})}
    if marks:
        figure.add_trace(_marks(marks, marked_label))
    # Exact ranges (in cells): the marks would otherwise push the axes away from the map.
    across = [-0.5, len(layers) - 0.5]
    down = [len(cells) - 0.5, -0.5]
    figure.update_xaxes(title_text="layer", type="category", showgrid=False, range=across)
    figure.update_yaxes(type="category", showgrid=False, dtick=1, range=down)
    return themed(figure, height=130 + _ROW_PIXELS * max(len(cells), 2), title=title)


def cosine_matrix(
    ids: Sequence[str],
    matrix: Sequence[Sequence[Any]],
    layer: int | None = None,
    *,
    title: str | None = None,
) -> go.Figure:
    """Cosines between instructions' directions at `layer`, two-sided around zero.

    Args:
        ids: the instructions, in the order of the matrix's rows and columns.
        matrix: `len(ids)` rows of `len(ids)` cosines in [−1, 1]; `None` or NaN where unknown.
        layer: where the directions were taken, for the colour bar.
        title: above the map, if given.

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
    figure = go.Figure(
        go.Heatmap(
            x=labels,
            y=labels,
            z=[compact(row, 3) for row in matrix],
            zmin=-1,
            zmax=1,
            colorscale=TWO_SIDED,
            hoverongaps=False,
            xgap=1,
            ygap=1,
            texttemplate="%{z:.2f}" if size <= 12 else None,
            colorbar=_colorbar("cosine"),
            hovertemplate="%{y}<br>%{x}<br>cosine %{z:.2f}<extra></extra>",
        )
    )
    figure.update_xaxes(type="category", showgrid=False, tickangle=-60, dtick=1)
    figure.update_yaxes(type="category", showgrid=False, dtick=1, autorange="reversed")
    if title is None and layer is not None:
        title = f"layer {layer}"
    # The slanted names below the map take height too, about 6 pixels a character.
    names = 6 * max((len(name) for name in ids), default=0)
    return themed(figure, height=80 + names + _ROW_PIXELS * max(size, 4), title=title)


def _colorbar(name: str) -> dict[str, Any]:
    return {
        "title": {"text": name, "side": "right"},
        "thickness": 12,
        "outlinewidth": 0,
        "nticks": 5,
    }


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
