"""What the page says about the settings that a search tried for one task."""

from collections.abc import Mapping, Sequence
from typing import Any

from steerlens.behaviour.unchecked import MEASURES
from steerlens.reports.html import Cell, interval
from steerlens.stats.rates import wilson
from steerlens.views import condition_rates
from steerlens.views.numbers import MISSING, finite, show, show_interval

__all__ = ["measured_by", "search_section"]

# Stages that a choice is made in, and the prompts they are about.
_LAST = {"final": "uninstructed", "instructed": "instructed"}
_NO_STEERING = "no steering"


def measured_by(task: Mapping[str, Any]) -> str | None:
    """What was measured, for a task that no rate of passing can be had of; else ``None``."""
    measure = task.get("measure", "rate")
    return None if measure == "rate" else MEASURES[measure]


def search_section(data: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The settings searched as the page shows them; ``None`` where there was no search.

    ``choices`` has sentences by the prompts they are for, ``figure`` the last stages, ``heads`` and
    ``rows`` every setting of every stage, ``problems`` the estimators that could not be had.
    """
    if not data:
        return None
    measure, tried = data["measure"], data["tried"]
    is_rate = measure == "rate"
    drawn = _drawn(measure, tried)
    names = ["prompts", "pass", "no loop", "degenerate", "judge perplexity"]
    heads = [*(names if is_rate else ["pairs", MEASURES[measure]]), "cost"]
    return {
        "measure": MEASURES[measure],
        "choices": data["choices"],
        "figure": _figure(measure, drawn) if drawn else None,
        "heads": ["setting", "stage", *heads],
        "rows": [(row["setting"], _cells(measure, row)) for row in tried],
        "problems": data["problems"],
    }


def _drawn(measure: str, tried: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Settings of the last stages, with intervals; the same setting on one line."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for row in tried:
        if row["stage"] not in _LAST:
            continue
        asked, setting = _LAST[row["stage"]], row["setting"]
        condition = asked if setting == _NO_STEERING else f"{asked}+steering"
        if measure == "rate":
            interval = wilson(row["passed"], row["n"])
            ends = {"rate": interval.value, "low": interval.low, "high": interval.high}
        else:
            ends = {"rate": row[measure], "low": row["low"], "high": row["high"]}
        if finite(ends["rate"]) is not None:
            about = {"instruction": setting, "condition": condition, "n": row["n"]}
            rows[setting, condition] = {**about, **ends}
    return sorted(rows.values(), key=lambda row: (row["condition"], -row["rate"]))


def _figure(measure: str, rows: Sequence[Mapping[str, Any]]) -> Any:
    is_share = measure != "log_odds_change"
    return condition_rates(rows, quantity=MEASURES[measure], is_share=is_share)


def _cells(measure: str, row: Mapping[str, Any]) -> list[Cell]:
    n = row["n"]
    first = [Cell(row["stage"]), Cell(str(n), float(n))]
    # Measured for what was chosen.
    cost = Cell(interval(row, "cost"), finite(row.get("cost")))
    if measure != "rate":
        shown = show_interval(row[measure], row["low"], row["high"])
        return [*first, Cell(shown, finite(row[measure])), cost]
    perplexity = finite(row.get("perplexity"))
    return [
        *first,
        *(Cell(str(row[name]), row[name] / n) for name in ("passed", "successes", "degenerate")),
        Cell(MISSING if perplexity is None else show(perplexity, 1), perplexity),
        cost,
    ]
