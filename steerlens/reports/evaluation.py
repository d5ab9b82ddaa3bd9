"""An evaluation as one HTML page that works offline: rates, differences, and responses to read."""

from collections.abc import Mapping, Sequence
from typing import Any

from steerlens.behaviour.unchecked import MEASURES
from steerlens.errors import SteerlensError
from steerlens.models.conversations import shown
from steerlens.reports.html import Cell, render
from steerlens.views import condition_rates
from steerlens.views.numbers import MISSING, finite, show, show_interval

__all__ = ["render_evaluation"]

_SHOWN = 4
_LONGEST = 1200
_ALL = "all prompts"
_STEERED = ("uninstructed+steering", "uninstructed+placebo")
_DIFFERENCES = ("loose", "clean", "degenerate")


def render_evaluation(summary: Mapping[str, Any], responses: Sequence[Mapping[str, Any]]) -> str:
    """``summary.json`` and the rows of ``responses.jsonl`` as a self-contained page.

    Every rate stands beside its 95 % interval; for each instruction a few prompts are shown with
    their responses under every condition, the first ones of the file, not chosen by how they came
    out.

    Raises:
        SteerlensError: Not the summary of an evaluation.
    """
    if not summary.get("conditions"):
        raise SteerlensError("this is not the summary of an evaluation: it has no conditions")
    conditions = summary["conditions"]
    return render(
        "evaluation.html.j2",
        {"summary": summary, "responses": responses},
        summary=summary,
        overall=[_overall(name, record["all"]) for name, record in conditions.items()],
        differences=[_difference(row) for row in summary["differences"]],
        figure=condition_rates(rows) if (rows := _rows(conditions)) else None,
        effects=_effects(conditions),
        effect_figures=_effect_figures(conditions),
        instructions=_instructions(conditions),
        conditions=list(conditions),
        samples=_samples(responses),
        settings=_settings(summary),
    )


def _rows(conditions: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the figure draws: all prompts first, then the instructions."""
    rates = [(_ALL, name, record["all"]) for name, record in conditions.items()]
    for name, record in conditions.items():
        rates += [(id_, name, of_task) for id_, of_task in record["instructions"].items()]
    return [
        {"instruction": id_, "condition": name, "n": record["n"], **record["loose"]}
        for id_, name, record in rates
        if record["loose"] is not None
    ]


def _effects(conditions: Mapping[str, Any]) -> list[tuple[str, list[Cell]]]:
    """One row per task without a check: what was measured, under steering and placebo."""
    rows: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for name, record in conditions.items():
        for id_, of_task in record["instructions"].items():
            for measure, effect in of_task.get("effects", {}).items():
                rows.setdefault((id_, measure), {})[name] = effect
    return [
        (
            id_,
            [
                Cell(MEASURES[measure]),
                _number(next(iter(effects.values()))["n"]),
                *(_effect(effects.get(name)) for name in _STEERED),
            ],
        )
        for (id_, measure), effects in rows.items()
    ]


def _effect(effect: Mapping[str, Any] | None) -> Cell:
    if effect is None:
        return Cell(MISSING)
    text = show_interval(effect["value"], effect["low"], effect["high"])
    return Cell(text, finite(effect["value"]))


def _effect_figures(conditions: Mapping[str, Any]) -> list[Any]:
    """A figure per measure: recovery and log odds have no common axis."""
    figures = []
    for measure in ("recovery", "log_odds_change"):
        rows = [
            {"instruction": id_, "condition": name, "n": effect["n"], "rate": effect["value"]}
            | {end: effect[end] for end in ("low", "high")}
            for name, record in conditions.items()
            for id_, of_task in record["instructions"].items()
            if (effect := of_task.get("effects", {}).get(measure)) is not None
        ]
        if rows:
            is_share = measure == "recovery"
            figures.append(condition_rates(rows, quantity=MEASURES[measure], is_share=is_share))
    return figures


def _share(rate: Mapping[str, float] | None, key: str = "rate") -> Cell:
    """A share (or difference) with its interval in percent; a dash where a summary has none."""
    if rate is None:
        return Cell(MISSING)
    signed = key == "difference"
    centre, low, high = (show(100 * rate[end], 0, signed=signed) for end in (key, "low", "high"))
    return Cell(f"{centre} [{low}, {high}]", finite(rate[key]))


def _number(value: int | float | None, decimals: int = 0) -> Cell:
    return Cell(show(value, decimals), finite(value))


def _overall(name: str, rates: Mapping[str, Any]) -> tuple[str, list[Cell]]:
    return name, [
        _number(rates["n"]),
        _share(rates["loose"]),
        _share(rates.get("clean")),
        _share(rates["strict"]),
        _share(rates["degenerate"]),
        _number(rates["median_perplexity"], 1),
        _number(rates["median_words"]),
    ]


def _difference(row: Mapping[str, Any]) -> tuple[str, list[Cell]]:
    ratio, perplexity = row["perplexity_ratio"], Cell(MISSING)
    if ratio is not None:
        text = show_interval(ratio["ratio"], ratio["low"], ratio["high"])
        perplexity = Cell(text, finite(ratio["ratio"]))
    return f"{row['condition']} − {row['minus']}", [
        _number(row["n"]),
        *(_share(row.get(key), "difference") for key in _DIFFERENCES),
        perplexity,
        *(Cell(_p_value(row[key]), finite(row[key])) for key in ("p", "p_holm")),
    ]


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _instructions(conditions: Mapping[str, Any]) -> list[tuple[str, list[Cell]]]:
    tables = [record["instructions"] for record in conditions.values()]
    rows = []
    for name in dict.fromkeys(name for table in tables for name in table):
        rates = [table.get(name) for table in tables]
        n_most = max(rate["n"] for rate in rates if rate)
        rows.append((name, [_number(n_most), *(_share(rate and rate["loose"]) for rate in rates)]))
    return rows


def _samples(responses: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each instruction the first prompts of the file, with all their responses."""
    by_task: dict[str, dict[Any, list[Mapping[str, Any]]]] = {}
    for response in responses:
        text = response["response"]
        cut = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"
        rows = by_task.setdefault(" + ".join(response["instruction_id_list"]), {})
        asked = {"prompt": shown(response["prompt"]), "text": cut}
        rows.setdefault(response["row"], []).append({**response, **asked})
    return [
        {"name": name, "prompts": list(rows.values())[:_SHOWN]}
        for name, rows in sorted(by_task.items())
    ]


def _settings(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    model, data = summary["model"], summary["data"]
    left_out = ", ".join(f"{name}: {n}" for name, n in data["left_out"].items())
    return [
        ("model", f"{model['reference']} ({model['dtype']})"),
        ("weights", model["weights_hash"]),
        ("prompts", f"{data['n_rows']} of {data['file'] or 'the catalogue'}, hash {data['hash']}"),
        ("left out", left_out or "none"),
        ("plan", summary["plan"] or "none"),
        ("decoding", summary.get("decoding", "greedy")),
        *(
            (name.replace("_", " "), str(value))
            for name, value in summary["settings"].items()
            if name != "decoding"
        ),
    ]
