"""What the page says about a task of choices (`ChoiceEvidence.to_json`)."""

from collections.abc import Mapping
from typing import Any

from steerlens.reports.html import Cell, interval, percent
from steerlens.views.choices import choice_curves, choice_slopes
from steerlens.views.numbers import finite

__all__ = ["choices_section"]

_WHERE = {
    "answer": "where the answer is predicted: at the question's last token and at what both "
    "answers begin with",
    "all": "at every token",
    "prompt": "at every token before the one that tells the answers apart",
}
_HEADS = ["layer", "slope", "placebo", "above placebo", "wrong way", "on select"]


def choices_section(data: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """How far steering moves the choices; None for other tasks.

    ``slopes`` is the mean slope over layers beside its placebo, ``curves`` has panels of the change
    at every strength, the items that move the wrong way and the probability of neither answer;
    ``verdict`` and ``balance`` are sentences, ``heads`` and ``rows`` the table over layers.
    """
    if not data:
        return None
    layer = data["best_layer"]
    best = next(row for row in data["layers"] if row["layer"] == layer)
    return {
        "slopes": choice_slopes(data["layers"]),
        "curves": choice_curves(data["layers"], data["curve"], layer),
        "verdict": _verdict(data, best),
        "balance": _balance(data),
        "heads": _HEADS,
        "rows": [
            (
                row["layer"],
                [
                    *(Cell(interval(row, name), finite(row.get(name)))
                      for name in ("slope", "placebo_slope", "above_placebo")),
                    Cell(percent(row["wrong_way"]), finite(row["wrong_way"])),
                    Cell(interval(row, "select_slope"), finite(row.get("select_slope"))),
                ],
            )
            for row in data["layers"]
        ],
    }  # fmt: skip


def _verdict(data: Mapping[str, Any], best: Mapping[str, Any]) -> str:
    moved = "Steering moves these choices" if data["steerable"] else "Nothing shows that it moves"
    moved += "" if data["steerable"] else " these choices"
    neither = [row["neither"] for row in data["curve"] if row["layer"] == data["best_layer"]]
    unsteered = next(row["neither"] for row in data["curve"] if row["strength"] == 0)
    return (
        f"{moved}: at layer {data['best_layer']} ({data['best_layer_rule']}) the log odds of the "
        f"matching answer change by {interval(best, 'slope')} nats per unit of strength on "
        f"{data['n_items']} other items, the placebo's by {interval(best, 'placebo_slope')}; "
        f"{percent(best['wrong_way'])} of the items move the wrong way. The vector is added "
        f"{_WHERE[data['metadata']['scope']]}. Neither answer has "
        f"{percent(unsteered)} of the probability without steering, and up to "
        f"{percent(max(neither))} with it."
    )


def _balance(data: Mapping[str, Any]) -> str:
    about = data["metadata"]
    if about["lettered"]:
        return (
            f"{about['lettered']} of {data['n_items']} items are lettered choices; the matching "
            f"answer comes first in {about['matching_first']} of them."
        )
    return (
        f"The matching answer is \u201c{about['commonest_answer']}\u201d in "
        f"{percent(about['commonest_share'])} of the items."
    )
