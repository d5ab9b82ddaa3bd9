"""A report as one HTML page that works offline, from the numbers alone.

`render_report` takes the JSON behind a report (schema `steerlens-report/1`, checked by
`steerlens.reports.schema`) and returns a page with a summary, heat maps over instructions × layers,
the cosines between directions, and a section per instruction: layer curves, causal recovery, and
samples (baseline, steered, placebo) with what steering did to each token.

Everything is inside the page (plotly.js once, about 4.8 MB); nothing is fetched. Texts of models
and users reach the page only escaped, and a content security policy allows none but the page's own
scripts to run: each carries a nonce derived from the data, which the data cannot contain.

The page is the same, byte for byte, for the same data and library versions.

```python
from pathlib import Path
from steerlens.reports import render_report

Path("report.html").write_text(render_report(data), encoding="utf-8")
```
"""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from steerlens.reports.details import pack_details
from steerlens.reports.html import environment, nonce_of, package_text, writable
from steerlens.reports.schema import check
from steerlens.reports.sections import (
    group_names,
    instruction_section,
    run_tables,
    supported_layer,
)
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
    sections = [
        instruction_section(instruction, number, strips)
        for number, instruction in enumerate(data["instructions"], start=1)
    ]
    nonce = nonce_of(data)
    page = (
        environment(nonce)
        .get_template("template.html.j2")
        .render(
            schema=data["schema"],
            model=data["model"],
            provenance=data["provenance"],
            run_tables=run_tables(data),
            sections=sections,
            groups=group_names(sections),
            maps=_maps(data),
            cosines=_cosines(data),
            details=pack_details(strips),
            nonce=nonce,
            plotly_js=Markup(get_plotlyjs()),
            figures_js=Markup(package_text("figures.js")),
            page_css=Markup(strip_css() + package_text("page.css")),
            tables_js=Markup(package_text("tables.js")),
            page_js=Markup(package_text("page.js")),
        )
    )
    return writable(page)


def _maps(data: Mapping[str, Any]) -> dict[str, go.Figure | None]:
    """Instructions × layers, by AUROC and (where any was measured) by recovery."""
    instructions = data["instructions"]
    readable = [_cell(i, row, "auroc") for i in instructions for row in i["layers"]]
    causal = [_cell(i, row, "recovery") for i in instructions for row in i["recovery"]]
    best = {i["id"]: i["best_layer"] for i in instructions if supported_layer(i) is not None}
    steered = {i["id"]: i["steering"]["layer"] for i in instructions}
    auroc = instruction_layer_heatmap(readable, "auroc", marked=best)
    recovery = None
    if causal:
        recovery = instruction_layer_heatmap(
            causal, "recovery", marked=steered, marked_label="layer steered"
        )
    return {"auroc": auroc, "recovery": recovery}


def _cell(instruction: Mapping[str, Any], row: Mapping[str, Any], value: str) -> dict[str, Any]:
    return {"instruction": instruction["id"], "layer": row["layer"], value: row[value]}


def _cosines(data: Mapping[str, Any]) -> go.Figure | None:
    cosines = data["cosines"]
    if len(cosines["ids"]) < 2:
        return None
    return cosine_matrix(cosines["ids"], cosines["matrix"], cosines["layer"], title="")
