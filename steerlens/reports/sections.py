"""What the page of a report says about one task: its figures, numbers and samples.

`report.html.j2` places them.

>>> passes([{"steered": {"passed": True}}, {"steered": {"passed": None}}], "steered")
Cell(text='1 of 1', order=1.0)
"""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from steerlens.behaviour.side_effects import described_cost
from steerlens.reports.choices import choices_section
from steerlens.reports.evidence import evidence_section
from steerlens.reports.html import Cell, interval, percent
from steerlens.reports.searched import measured_by, search_section
from steerlens.views import layer_curves, recovery_curve, token_strip
from steerlens.views.numbers import MISSING, finite
from steerlens.views.tokens import strip_limit

__all__ = ["passes", "supported_layer", "task_section"]


def task_section(
    task: Mapping[str, Any], number: int, strips: list[Sequence[Mapping[str, Any]]]
) -> dict[str, Any]:
    """The section of task `number`; the tokens of its strips are appended to `strips`."""
    steered_layer = task["steering"]["layer"]
    best = _row_at(task["layers"], task["best_layer"])
    causal = _row_at(task["recovery"], steered_layer)
    recovery = None
    if task["recovery"]:
        # The line marks where the samples were steered, which the caption says beside any caveat.
        recovery = recovery_curve(task["recovery"], steered_layer)
    frequency = best.get("selection_frequency")
    # Reports of earlier versions measured none.
    cost = task["steering"].get("cost") or {}
    return {
        "task": task,
        "anchor": f"instruction-{number}",
        "best": best,
        "causal": causal,
        "summary": [
            _layer(task["best_layer"], task.get("best_layer_caveat")),
            Cell(interval(best, "auroc"), finite(best.get("auroc"))),
            Cell(percent(frequency), finite(frequency)),
            _layer(steered_layer, task["steering"].get("caveat")),
            Cell(interval(causal, "recovery", "low", "high"), finite(causal.get("recovery"))),
            Cell(interval(causal, "placebo"), finite(causal.get("placebo"))),
            *(passes(task["samples"], name) for name in ("baseline", "steered", "placebo")),
            Cell(interval(cost, "cost"), finite(cost.get("cost"))),
            Cell(interval(cost, "placebo_cost"), finite(cost.get("placebo_cost"))),
        ],
        "cost": described_cost(cost) if "cost" in cost else None,
        "layers": layer_curves(task["layers"], supported_layer(task)),
        "recovery": recovery,
        "choices": choices_section(task.get("choices")),
        "measured_by": measured_by(task),
        "search": search_section(task.get("search")),
        "evidence": evidence_section(task.get("evidence")),
        "samples": [{**sample, "strips": _strips(sample, strips)} for sample in task["samples"]],
    }


def passes(samples: Sequence[Mapping[str, Any]], condition: str) -> Cell:
    """How many of the checked samples passed under `condition`, e.g. "2 of 3"."""
    verdicts = [sample[condition]["passed"] for sample in samples]
    checked = [bool(verdict) for verdict in verdicts if verdict is not None]
    return (
        Cell(f"{sum(checked)} of {len(checked)}", float(sum(checked))) if checked else Cell(MISSING)
    )


def supported_layer(task: Mapping[str, Any]) -> int | None:
    """The best layer; ``None`` where no layer's interval is above chance."""
    return None if task.get("best_layer_caveat") else task["best_layer"]


def _row_at(rows: Sequence[Mapping[str, Any]], layer: int) -> Mapping[str, Any]:
    return next((row for row in rows if row["layer"] == layer), {})


def _layer(layer: int, caveat: str | None) -> Cell:
    """A layer; in brackets where nothing shows that it is better than another."""
    return Cell(f"({layer})" if caveat else str(layer), float(layer))


def _strips(
    sample: Mapping[str, Any], strips: list[Sequence[Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """Both steered responses, shaded; `number` counts the page's strips from 0."""
    conditions = ("steered", "placebo")
    # One limit for both: a placebo must look as small as it is.
    limit = max(strip_limit(sample[condition]["tokens"]) for condition in conditions)
    shaded = []
    for condition in conditions:
        tokens, parts_at = sample[condition]["tokens"], sample[condition]["parts_at"]
        markup = token_strip(tokens, limit=limit, parts_at=parts_at, tooltips=False, styled=False)
        shaded.append(
            {
                "number": len(strips),
                "condition": condition,
                "markup": Markup(markup),
                "note": _parting(tokens, parts_at),
            }
        )
        strips.append(tokens)
    return shaded


def _parting(tokens: Sequence[Mapping[str, Any]], parts_at: int | None) -> str:
    if not tokens:
        return ""
    if parts_at is None:
        return "same text as the baseline"
    n_response = sum(token.get("role") != "prompt" for token in tokens)
    if parts_at >= n_response:
        return f"ends after {n_response} response tokens, where the baseline goes on"
    return f"parts from the baseline at response token {parts_at + 1}"
