"""What the page says about the evidence about a task (`Evidence.to_json`), kind beside kind."""

from collections.abc import Mapping
from typing import Any

from steerlens.reports.html import Cell
from steerlens.reports.specific import specific_panel
from steerlens.views import evidence_curves, ranked_tokens
from steerlens.views.numbers import finite, show_interval

__all__ = ["evidence_section"]

# Column, its name, how to read it.
_READINGS = {
    "auroc": (
        "AUROC",
        "how often a held-out instructed prompt projects further along the difference of means "
        "than an uninstructed one; high where the instruction can be read, which need not be where "
        "it can be written",
    ),
    "specific_auroc": (
        "specific AUROC",
        "how often a held-out run with this instruction projects further than a run with another "
        "one on the same queries; high where this instruction can be read, not just any",
    ),
    "own_share": (
        "own share",
        "what is left of the squared difference of means outside the span of the other tasks' "
        "differences, freed of noise",
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
    "other_task_recovery": (
        "first-token recovery by other tasks",
        "the same with the vectors of other tasks, pushed as far, averaged over them; high where "
        "writing any instruction has part of the effect",
    ),
    "specific_recovery": (
        "specific recovery",
        "what the task's own vector recovers beyond those of other tasks",
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
    "patching": (
        "patching",
        "recovery by putting the instructed run's whole residual at the last prompt token; what "
        "one direction there can hardly exceed",
    ),
    "writing": (
        "writing",
        "share of the projection at the chosen layer that the heads and the MLP of a layer write; "
        "the shares of all layers and the embedding sum to 1",
    ),
    "reading": (
        "reading",
        "share of the effect of steering the chosen layer that the heads and the MLP of each later "
        "layer make in response",
    ),
    "next_cosine": (
        "cosine to the next layer",
        "of the difference of means, freed of noise; low where the direction turns",
    ),
    "vocabulary_z": (
        "vocabulary",
        "how far the direction's strongest token stands out through the unembedding, in standard "
        "deviations of random directions",
    ),
}


def evidence_section(data: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The evidence about a task as the page shows it; None where the report has none.

    ``figure`` has a panel per kind, ``readings`` their names and how to read them, ``choice`` the
    layer chosen and how sure, ``agreement`` pairs of kinds with their rank correlation,
    ``writers`` bars of the components that write most (None where they were not measured),
    ``specific`` the panel beside other tasks (None likewise).
    """
    if not data:
        return None
    kinds = [kind for kind in _READINGS if kind in data["kinds"]]
    writers = None
    if data.get("components"):
        rows = [(str(part["component"]), part["contribution"]) for part in data["components"]]
        rows.sort(key=lambda row: -row[1])
        layer = f"contribution at layer {data['best_layer']}"
        writers = ranked_tokens(rows, rows[::-1], quantity=layer)
    best = None if data.get("best_layer_caveat") else data["best_layer"]
    return {
        "figure": evidence_curves(data["layers"], kinds, best),
        "readings": [_READINGS[kind] for kind in kinds],
        "choice": _choice(data),
        "agreement": [
            (
                _READINGS[row["one"]][0],
                _READINGS[row["other"]][0],
                Cell(
                    show_interval(row["spearman"], row["low"], row["high"]),
                    finite(row["spearman"]),
                ),
            )
            for row in data["agreement"]
            if row["one"] in _READINGS and row["other"] in _READINGS
        ],
        "writers": writers,
        "specific": specific_panel(data),
    }


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
