"""What the page says about one instruction: its figures, sentences and samples, ready to place.

These are the page's facts as text and figures; `template.html.j2` only arranges them.

>>> passes([{"steered": {"passed": True}}, {"steered": {"passed": None}}], "steered")
'1 of 1'
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup

from steerlens.reports.evidence import EvidenceSection, evidence_section
from steerlens.reports.html import Cell
from steerlens.views import layer_curves, recovery_curve, token_strip
from steerlens.views.numbers import MISSING, finite, show_interval
from steerlens.views.tokens import strip_limit

__all__ = [
    "Cell",
    "InstructionSection",
    "Response",
    "Sample",
    "group_names",
    "instruction_section",
    "passes",
    "run_tables",
    "supported_layer",
]

CONDITIONS = ("baseline", "steered", "placebo")


@dataclass(frozen=True)
class Response:
    """One response: its condition, text, verdict ("passed", "failed" or "not checked")."""

    condition: str
    text: str
    verdict: str


@dataclass(frozen=True)
class Strip:
    """A shaded response; `number` counts the page's strips from 0 (the key to their details)."""

    number: int
    condition: str
    markup: Markup
    note: str


@dataclass(frozen=True)
class Sample:
    """One prompt, answered under every condition."""

    prompt: str
    arguments: str
    responses: tuple[Response, ...]
    strips: tuple[Strip, ...]


@dataclass(frozen=True)
class InstructionSection:
    """One instruction on the page; `anchor` is its element id, `summary` its row in the table."""

    anchor: str
    id: str
    group: str
    description: str
    n_pairs: int
    summary: tuple[Cell, ...]
    reading: str
    steering: str
    layers: go.Figure
    recovery: go.Figure | None
    evidence: EvidenceSection | None
    samples: tuple[Sample, ...]


def instruction_section(
    data: Mapping[str, Any], number: int, strips: list[Sequence[Mapping[str, Any]]]
) -> InstructionSection:
    """The section of instruction `number`; the tokens of its strips are appended to `strips`."""
    steering = data["steering"]
    recovery = None
    if data["recovery"]:
        # The line marks where the samples were steered, which the caption says beside any caveat.
        recovery = recovery_curve(data["recovery"], steering["layer"])
    return InstructionSection(
        anchor=f"instruction-{number}",
        id=data["id"],
        group=data["group"],
        description=data["description"],
        n_pairs=data["n_pairs"],
        summary=_summary(data),
        reading=_reading(data),
        steering=_steering(data),
        layers=layer_curves(data["layers"], supported_layer(data)),
        recovery=recovery,
        evidence=evidence_section(data.get("evidence")),
        samples=tuple(_sample(sample, strips) for sample in data["samples"]),
    )


def group_names(sections: Sequence[InstructionSection]) -> dict[str, list[InstructionSection]]:
    """Sections by group, groups in the order they first appear."""
    groups: dict[str, list[InstructionSection]] = {}
    for section in sections:
        groups.setdefault(section.group, []).append(section)
    return groups


def passes(samples: Sequence[Mapping[str, Any]], condition: str) -> str:
    """How many of the checked samples passed under `condition`, e.g. "2 of 3"."""
    verdicts = [sample[condition]["passed"] for sample in samples]
    checked = [verdict for verdict in verdicts if verdict is not None]
    return f"{sum(map(bool, checked))} of {len(checked)}" if checked else MISSING


def run_tables(data: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Model and provenance as titled tables of (name, value); nested mappings get their own."""
    tables: dict[str, list[tuple[str, str]]] = {"Model": [], "Run": []}
    for title, source in (("Model", data["model"]), ("Run", data["provenance"])):
        for key, value in source.items():
            if isinstance(value, Mapping):
                name = str(key).replace("_", " ").capitalize()
                tables[name] = [(str(inner), _plain(item)) for inner, item in value.items()]
            elif key != "command":
                tables[title].append((str(key).replace("_", " "), _plain(value)))
    return {title: rows for title, rows in tables.items() if rows}


def _plain(value: object) -> str:
    """A value in words: numbers short, everything nested as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.4g}"
    return json.dumps(value, ensure_ascii=False, default=str)


def supported_layer(data: Mapping[str, Any]) -> int | None:
    """The best layer; ``None`` where no layer's interval is above chance."""
    return None if data.get("best_layer_caveat") else data["best_layer"]


def _sentence(caveat: str) -> str:
    return f"{caveat[:1].upper()}{caveat[1:]}"


def _row_at(rows: Sequence[Mapping[str, Any]], layer: int) -> Mapping[str, Any]:
    return next((row for row in rows if row["layer"] == layer), {})


def _interval(row: Mapping[str, Any], value: str, low: str, high: str) -> str:
    """`value [low, high]` that may break only before its bracket."""
    return show_interval(row.get(value), row.get(low), row.get(high)).replace(", ", ",\u00a0")


def _percent(value: object) -> str:
    number = finite(value)
    return MISSING if number is None else f"{number:.0%}"


def _summary(data: Mapping[str, Any]) -> tuple[Cell, ...]:
    best = _row_at(data["layers"], data["best_layer"])
    causal = _row_at(data["recovery"], data["steering"]["layer"])
    frequency = best.get("selection_frequency")
    auroc = _interval(best, "auroc", "auroc_low", "auroc_high")
    recovery = _interval(causal, "recovery", "low", "high")
    placebo = _interval(causal, "placebo", "placebo_low", "placebo_high")
    counts = (passes(data["samples"], condition) for condition in CONDITIONS)
    return (
        _layer_cell(data["best_layer"], data.get("best_layer_caveat")),
        Cell(auroc, finite(best.get("auroc"))),
        Cell(_percent(frequency), finite(frequency)),
        _layer_cell(data["steering"]["layer"], data["steering"].get("caveat")),
        Cell(recovery, finite(causal.get("recovery"))),
        Cell(placebo, finite(causal.get("placebo"))),
        *(Cell(count, None if count == MISSING else float(count.split()[0])) for count in counts),
    )


def _layer_cell(layer: int, caveat: str | None) -> Cell:
    """A layer; in brackets where nothing shows that it is better than another."""
    return Cell(f"({layer})" if caveat else str(layer), float(layer))


def _reading(data: Mapping[str, Any]) -> str:
    """How to read the layer curves, with this instruction's numbers."""
    best = _row_at(data["layers"], data["best_layer"])
    auroc = _interval(best, "auroc", "auroc_low", "auroc_high")
    frequency = _percent(best.get("selection_frequency"))
    which = "Best layer by separability:"
    if data.get("best_layer_caveat"):
        which = f"{_sentence(data['best_layer_caveat'])}; the highest is layer"
    return (
        f"{which} {data['best_layer']} ({data['best_layer_rule']}), "
        f"AUROC {auroc} on held-out pairs; resampling the base queries chose this layer "
        f"{frequency} of the time (a low share means that neighbouring layers do as well). Bands: "
        "95 % intervals, of the split-half cosine the middle 95 % of the splits; dashed: no signal."
    )


def _steering(data: Mapping[str, Any]) -> str:
    """Where and how the samples were steered, and what that layer's recovery was."""
    steering = data["steering"]
    row = _row_at(data["recovery"], steering["layer"])
    recovery = _interval(row, "recovery", "low", "high")
    placebo = _interval(row, "placebo", "placebo_low", "placebo_high")
    causal = ""
    if row:
        causal = f" Recovery there is {recovery}, the placebo's {placebo}."
    if steering.get("caveat"):
        causal += (
            f" {_sentence(steering['caveat'])}: nothing shows that steering works better at this "
            "layer than at another."
        )
    return (
        f"Samples steered at layer {steering['layer']} ({steering['rule']}): operation "
        f"{steering['operation']}, strength {_plain(steering['strength'])}, scope "
        f"{steering['scope']}.{causal}"
    )


def _sample(sample: Mapping[str, Any], strips: list[Sequence[Mapping[str, Any]]]) -> Sample:
    # One limit for both strips: a placebo must look as small as it is.
    limit = max(strip_limit(sample[condition]["tokens"]) for condition in ("steered", "placebo"))
    shaded = []
    for condition in ("steered", "placebo"):
        answer = sample[condition]
        markup = token_strip(
            answer["tokens"], limit=limit, parts_at=answer["parts_at"], tooltips=False, styled=False
        )
        shaded.append(Strip(len(strips), condition, Markup(markup), _parting(answer)))
        strips.append(answer["tokens"])
    arguments = ", ".join(f"{name} = {_plain(value)}" for name, value in sample["kwargs"].items())
    responses = tuple(_response(sample[condition], condition) for condition in CONDITIONS)
    return Sample(sample["prompt"], arguments, responses, tuple(shaded))


def _response(answer: Mapping[str, Any], condition: str) -> Response:
    passed = answer["passed"]
    verdict = "not checked" if passed is None else "passed" if passed else "failed"
    return Response(condition, answer["text"], verdict)


def _parting(answer: Mapping[str, Any]) -> str:
    if not answer["tokens"]:
        return ""
    if answer["parts_at"] is None:
        return "same text as the baseline"
    n_response = sum(token.get("role") != "prompt" for token in answer["tokens"])
    if answer["parts_at"] >= n_response:
        return f"ends after {n_response} response tokens, where the baseline goes on"
    return f"parts from the baseline at response token {answer['parts_at'] + 1}"
