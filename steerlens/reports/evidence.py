"""What the page says about an instruction's evidence, side by side: panels, agreement, writers.

The data is `steerlens.attribution.evidence.Evidence.to_json`, an instruction's ``evidence`` in the
report's data. Every panel has a sentence that says how to read it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from steerlens.views import evidence_curves, ranked_tokens
from steerlens.views.numbers import finite, show_interval

__all__ = ["EvidenceSection", "evidence_section"]

# Column, its name, how to read it.
_READINGS = {
    "auroc": (
        "AUROC",
        "how often a held-out instructed prompt projects further along the difference of means "
        "than an uninstructed one; high where the instruction can be read, which need not be where "
        "it can be written",
    ),
    "logistic_auroc": (
        "AUROC of a logistic probe",
        "the same for a direction fitted to separate; far above the difference of means, the means "
        "miss something",
    ),
    "lda_auroc": ("AUROC of LDA", "the same with directions weighed by how little they vary"),
    "unseen_phrasing": (
        "AUROC on unseen phrasings",
        "the same where the instruction is worded in a way that was not fitted on; well below "
        "AUROC, the direction is partly the wording's",
    ),
    "unseen_kind": (
        "AUROC on unseen kinds of query",
        "the same for kinds of query that were not fitted on",
    ),
    "first_token_recovery": (
        "first-token recovery",
        "share of the instruction's effect on the first response token that steering this layer "
        "reproduces; 1 is all, 0 none",
    ),
    "response_recovery_prompt": (
        "recovery over 32 tokens, prompt steered",
        "the same over the response's beginning, steering the prompt only; below 0 steering leads "
        "elsewhere",
    ),
    "response_recovery_all": (
        "recovery over 32 tokens, all steered",
        "the same with every token steered; below the panel before it, steering the response hurts",
    ),
    "writing": (
        "writing",
        "share of the projection at the chosen layer that the heads and the MLP of a layer write; "
        "the shares of all layers and the embedding sum to 1",
    ),
}


@dataclass(frozen=True)
class EvidenceSection:
    """An instruction's evidence on the page.

    Attributes:
        figure: A panel a kind.
        readings: Each kind's name and how to read it.
        choice: The layer chosen, by which rule, how sure.
        agreement: Rows of two kinds and their rank correlation with its interval, and
            the number it sorts by.
        writers: Bars of the components that write most; None where they were not measured.
    """

    figure: go.Figure
    readings: tuple[tuple[str, str], ...]
    choice: str
    agreement: tuple[tuple[str, str, str, float | None], ...]
    writers: go.Figure | None


def evidence_section(data: Mapping[str, Any] | None) -> EvidenceSection | None:
    """The section of an instruction's evidence; None where the report has none."""
    if not data:
        return None
    kinds = [kind for kind in data["kinds"] if kind in _READINGS]
    shown = [kind for kind in _READINGS if kind in kinds]
    agreement = tuple(
        (
            _READINGS[row["one"]][0],
            _READINGS[row["other"]][0],
            show_interval(row["spearman"], row["low"], row["high"]),
            finite(row["spearman"]),
        )
        for row in data["agreement"]
        if row["one"] in _READINGS and row["other"] in _READINGS
    )
    writers = None
    if data.get("components"):
        rows = [(str(one["component"]), one["contribution"]) for one in data["components"]]
        rows.sort(key=lambda row: -row[1])
        writers = ranked_tokens(
            rows, rows[::-1], quantity=f"contribution at layer {data['best_layer']}"
        )
    return EvidenceSection(
        figure=evidence_curves(
            data["layers"],
            shown,
            None if data.get("best_layer_caveat") else data["best_layer"],
        ),
        readings=tuple(_READINGS[kind] for kind in shown),
        choice=_choice(data),
        agreement=agreement,
        writers=writers,
    )


def _choice(data: Mapping[str, Any]) -> str:
    rows = {row["layer"]: row for row in data["layers"]}
    frequency = finite(rows[data["best_layer"]].get("selection_frequency"))
    sure = "" if frequency is None else f", chosen in {frequency:.0%} of resamples of the pairs"
    p_value = finite(data.get("p_value"))
    tested = "" if p_value is None else f"; p = {p_value:.2g} that no layer separates"
    layer = f"layer {data['best_layer']} ({data['best_layer_rule']}{sure}){tested}."
    caveat = data.get("best_layer_caveat")
    chosen = f"{caveat}; the highest is {layer}" if caveat else layer
    return f"{chosen[:1].upper()}{chosen[1:]}"
