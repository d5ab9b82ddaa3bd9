"""A report as one HTML page that works offline, from the numbers alone.

`render_report` takes the JSON behind a report (`steerlens.reports.schema`) and returns a page with
a summary, heat maps over tasks × layers, the cosines between directions, and a section per task:
layer curves, causal recovery, and samples with what steering did to each token.

Everything is inside the page; nothing is fetched. The same data and library versions give the same
page, byte for byte.

```python
from pathlib import Path
from steerlens.reports import render_report

Path("report.html").write_text(render_report(data), encoding="utf-8")
```
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from steerlens.reports.details import pack_details
from steerlens.reports.html import plain, render
from steerlens.reports.schema import check
from steerlens.reports.sections import supported_layer, task_section
from steerlens.reports.specific import specific_overview
from steerlens.views import cosine_matrix, instruction_layer_heatmap
from steerlens.views.tokens import strip_css

__all__ = ["render_report"]


def render_report(data: Mapping[str, Any]) -> str:
    """`data` (schema `steerlens-report/1`) as one self-contained HTML page.

    Raises:
        SteerlensError: a key is missing or holds the wrong kind of thing; the sentence names it.
    """
    check(data)
    strips: list[Sequence[Mapping[str, Any]]] = []
    numbers = itertools.count(1)
    sections = [task_section(task, next(numbers), strips) for task in data["instructions"]]
    groups: dict[str, list[dict[str, Any]]] = {}
    for section in sections:
        groups.setdefault(section["task"]["group"], []).append(section)
    return render(
        "report.html.j2",
        data,
        strip_css(),
        schema=data["schema"],
        model=data["model"],
        provenance=data["provenance"],
        run_tables=_run_tables(data),
        sections=sections,
        groups=groups,
        maps=_maps(data["instructions"]),
        specific=specific_overview(data["instructions"]),
        cosines=_cosines(data["cosines"]),
        details=pack_details(strips),
    )


def _run_tables(data: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Model and provenance as titled tables of (name, value); nested mappings get their own."""
    tables: dict[str, list[tuple[str, str]]] = {}
    for title, source in (("Model", data["model"]), ("Run", data["provenance"])):
        tables[title] = [
            (str(key).replace("_", " "), plain(value))
            for key, value in source.items()
            if not isinstance(value, Mapping) and key != "command"
        ]
        for key, value in source.items():
            if isinstance(value, Mapping):
                name = str(key).replace("_", " ").capitalize()
                tables[name] = [(str(inner), plain(item)) for inner, item in value.items()]
    return {title: rows for title, rows in tables.items() if rows}


def _maps(tasks: Sequence[Mapping[str, Any]]) -> dict[str, go.Figure | None]:
    """Tasks × layers, by AUROC and (where any was measured) by recovery."""
    rows = {
        name: [{"instruction": task["id"], **row} for task in tasks for row in task[name]]
        for name in ("layers", "recovery")
    }
    best = {task["id"]: supported_layer(task) for task in tasks}
    supported = {name: layer for name, layer in best.items() if layer is not None}
    recovery = None
    if rows["recovery"]:
        steered = {task["id"]: task["steering"]["layer"] for task in tasks}
        recovery = instruction_layer_heatmap(
            rows["recovery"], "recovery", marked=steered, marked_label="layer steered"
        )
    auroc = instruction_layer_heatmap(rows["layers"], "auroc", marked=supported)
    return {"auroc": auroc, "recovery": recovery}


def _cosines(cosines: Mapping[str, Any]) -> go.Figure | None:
    if len(cosines["ids"]) < 2:
        return None
    return cosine_matrix(cosines["ids"], cosines["matrix"], cosines["layer"], title="")
