"""One panel: where an instruction is read and written, and where this one is.

>>> rows = [{"layer": layer, "auroc": 1.0, "specific_auroc": 0.6 + 0.1 * layer} for layer in (0, 1)]
>>> [trace.name for trace in specific_curves(rows).data]
['read: any instruction (AUROC)', 'read: this one (specific AUROC)']
"""

import plotly.graph_objects as go

from steerlens.errors import SteerlensError
from steerlens.views.bands import banded, mark_across, reference_line
from steerlens.views.picture import Picture, themed
from steerlens.views.tables import Rows, layer_table, table_of
from steerlens.views.theme import BLUE, VERMILLION

__all__ = ["HOW_TO_READ", "specific_curves"]

HOW_TO_READ = (
    "Dotted lines say where any instruction can be read (blue) or written (vermillion), solid "
    "lines where this one can: a layer speaks for this instruction where a solid line is high and, "
    "for writing, clear of its dotted one."
)
# Column, its name, colour and dash.
_LINES = (
    ("auroc", "read: any instruction (AUROC)", BLUE, "dot"),
    ("specific_auroc", "read: this one (specific AUROC)", BLUE, "solid"),
    ("other_task_recovery", "written: any (recovery by other tasks)", VERMILLION, "dot"),
    ("first_token_recovery", "written: this one (recovery)", VERMILLION, "solid"),
)


def specific_curves(
    table: Rows, best_layer: int | None = None, *, title: str | None = None
) -> go.Figure:
    """AUROC against none and against other tasks, recovery by the task's vector and by others'.

    Args:
        table: one row per layer with `layer` and any of `auroc`, `specific_auroc`,
            `first_token_recovery`, `other_task_recovery`; bands come from the columns `…_low` and
            `…_high`, where there are any.
        best_layer: marked by a vertical line.
        title: above the panel.

    Raises:
        SteerlensError: none of the columns, or a layer is malformed or comes twice.
    """
    known = table_of(table, ["layer"], "table of specific evidence")
    lines = [line for line in _LINES if line[0] in known]
    if not lines:
        raise SteerlensError(
            f"the table needs one of {', '.join(line[0] for line in _LINES)} beside 'layer'"
        )
    columns = [f"{line[0]}{end}" for line in lines for end in ("", "_low", "_high")]
    rows = layer_table(known, [c for c in columns if c in known], "table of specific evidence")
    figure = Picture()
    for column, name, colour, dash in lines:
        symbol = "circle" if dash == "solid" else "circle-open"
        figure.add_traces(banded(rows, "layer", column, name, colour, dash=dash, symbol=symbol))
    # Chance for what is read, nothing for what is written.
    for level in (0.5, 0.0) if len(lines) > 2 else (0.5,):
        reference_line(figure, level)
    mark_across(figure, best_layer)
    figure.update_xaxes(title_text="layer")
    figure.update_yaxes(title_text="AUROC, or share of KL removed")
    return themed(figure, height=440, title=title)
