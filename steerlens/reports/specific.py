"""What the page says about specificity: one panel per task, and an overview of all tasks."""

from collections.abc import Mapping, Sequence
from typing import Any

from steerlens.reports.html import Cell
from steerlens.views import instruction_layer_heatmap
from steerlens.views.numbers import MISSING, finite, show_interval
from steerlens.views.specific import HOW_TO_READ, specific_curves

__all__ = ["specific_overview", "specific_panel"]

_READ_AT = 0.9


def specific_panel(evidence: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The panel of one task; None where specificity was not measured."""
    if not _has(evidence):
        return None
    assert evidence is not None
    best = None if evidence.get("best_layer_caveat") else evidence["best_layer"]
    return {
        "figure": specific_curves(evidence["layers"], best),
        "how_to_read": HOW_TO_READ,
        "notices": list(evidence.get("notices") or ()),
    }


def specific_overview(tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """A map of tasks by layers and a row per task; None where no task was measured."""
    measured = [task for task in tasks if _has(task.get("evidence"))]
    if not measured:
        return None
    rows, marked, cells = [], {}, []
    for task in measured:
        layers = [row for row in task["evidence"]["layers"] if _value(row) is not None]
        rows += [{"instruction": task["id"], **row} for row in layers]
        best = max(layers, key=lambda row: _value(row) or 0.0)
        marked[task["id"]] = best["layer"]
        cells.append((task["id"], _cells(best, layers)))
    label = "most specific layer"
    figure = instruction_layer_heatmap(rows, "specific_auroc", marked=marked, marked_label=label)
    return {"map": figure, "rows": cells}


def _cells(best: Mapping[str, Any], layers: Sequence[Mapping[str, Any]]) -> list[Cell]:
    first = next((row["layer"] for row in layers if (_value(row) or 0.0) >= _READ_AT), None)
    p_value = finite(best.get("specific_p"))
    return [
        Cell(MISSING if first is None else str(first), None if first is None else float(first)),
        Cell(str(best["layer"]), float(best["layer"])),
        *(_interval(best, name) for name in ("specific_auroc", "own_share", "off_mean_share")),
        Cell(MISSING if p_value is None else f"{p_value:.2g}", p_value),
    ]


def _interval(row: Mapping[str, Any], name: str) -> Cell:
    text = show_interval(row.get(name), row.get(f"{name}_low"), row.get(f"{name}_high"))
    return Cell(text, finite(row.get(name)))


def _value(row: Mapping[str, Any]) -> float | None:
    return finite(row.get("specific_auroc"))


def _has(evidence: Mapping[str, Any] | None) -> bool:
    return bool(evidence) and any(_value(row) is not None for row in (evidence or {})["layers"])
