"""An evaluation as one HTML page that works offline: rates, differences, and responses to read."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from steerlens.errors import SteerlensError
from steerlens.reports.html import Cell, environment, nonce_of, package_text, writable
from steerlens.views import condition_rates
from steerlens.views.numbers import MISSING, finite, show

__all__ = ["render_evaluation"]

_SHOWN = 4
_LONGEST = 1200
_ALL = "all prompts"
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
    nonce = nonce_of({"summary": summary, "responses": responses})
    conditions = summary["conditions"]
    page = (
        environment(nonce)
        .get_template("evaluation.html.j2")
        .render(
            summary=summary,
            overall=[_overall(name, record["all"]) for name, record in conditions.items()],
            differences=[_difference(one) for one in summary["differences"]],
            figure=condition_rates(_rows(conditions)),
            instructions=_instructions(conditions),
            conditions=list(conditions),
            samples=_samples(responses),
            settings=_settings(summary),
            nonce=nonce,
            plotly_js=Markup(get_plotlyjs()),
            figures_js=Markup(package_text("figures.js")),
            tables_js=Markup(package_text("tables.js")),
            page_css=Markup(package_text("page.css") + package_text("evaluation.css")),
        )
    )
    return writable(page)


def _rows(conditions: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the figure draws: all prompts first, then the instructions."""
    rows = [_row(_ALL, name, record["all"]) for name, record in conditions.items()]
    for name, record in conditions.items():
        rows += [_row(id_, name, own) for id_, own in record["instructions"].items()]
    return rows


def _row(instruction: str, condition: str, rates: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "instruction": instruction,
        "condition": condition,
        "n": rates["n"],
        **{key: rates["loose"][key] for key in ("rate", "low", "high")},
    }


def _percent(one: Mapping[str, float], key: str = "rate", signed: bool = False) -> str:
    """A share and its interval in percent: ``23 [14, 35]``."""
    low, high = (show(100 * one[end], 0, signed=signed) for end in ("low", "high"))
    return f"{show(100 * one[key], 0, signed=signed)} [{low}, {high}]"


def _share(one: Mapping[str, float] | None, key: str = "rate", signed: bool = False) -> Cell:
    """A share as a cell; one that an older summary has not is a dash."""
    return Cell(MISSING) if one is None else Cell(_percent(one, key, signed), finite(one[key]))


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


def _difference(one: Mapping[str, Any]) -> tuple[str, list[Cell]]:
    ratio = one["perplexity_ratio"]
    perplexity = Cell(MISSING)
    if ratio is not None:
        told = f"{show(ratio['ratio'])} [{show(ratio['low'])}, {show(ratio['high'])}]"
        perplexity = Cell(told, finite(ratio["ratio"]))
    return f"{one['condition']} − {one['minus']}", [
        _number(one["n"]),
        *(_share(one.get(key), "difference", signed=True) for key in _DIFFERENCES),
        perplexity,
        *(Cell(_p_value(one[key]), finite(one[key])) for key in ("p", "p_holm")),
    ]


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _instructions(conditions: Mapping[str, Any]) -> list[tuple[str, list[Cell]]]:
    names = dict.fromkeys(name for one in conditions.values() for name in one["instructions"])
    rows = []
    for name in names:
        own = [one["instructions"].get(name) for one in conditions.values()]
        n_most = max(rates["n"] for rates in own if rates)
        rows.append((name, [_number(n_most), *(_share(r and r["loose"]) for r in own)]))
    return rows


def _samples(responses: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each instruction the first prompts of the file, with all their responses."""
    rows: dict[str, dict[Any, list[Mapping[str, Any]]]] = {}
    for one in responses:
        instruction = " + ".join(one["instruction_id_list"])
        rows.setdefault(instruction, {}).setdefault(one["row"], []).append(one)
    return [
        {
            "name": instruction,
            "prompts": [[_response(one) for one in given] for given in list(own.values())[:_SHOWN]],
        }
        for instruction, own in sorted(rows.items())
    ]


def _response(one: Mapping[str, Any]) -> dict[str, Any]:
    text = one["response"]
    return {
        "condition": one["condition"],
        "prompt": one["prompt"],
        "text": text if len(text) <= _LONGEST else text[:_LONGEST] + " …",
        "passed": bool(one["loose"]),
        "degenerate": one["degenerate_why"] if one["degenerate"] else None,
        "steering": one["steering"],
    }


def _settings(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    model, data = summary["model"], summary["data"]
    left_out = ", ".join(f"{name}: {n}" for name, n in data["left_out"].items())
    return [
        ("model", f"{model['reference']} ({model['dtype']})"),
        ("weights", model["weights_hash"]),
        ("prompts", f"{data['n_rows']} of {data['file'] or 'the catalogue'}, hash {data['hash']}"),
        ("left out", left_out or "none"),
        ("plan", summary["plan"] or "none"),
        *((name.replace("_", " "), str(value)) for name, value in summary["settings"].items()),
    ]
