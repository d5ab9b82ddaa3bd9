"""Cards: what a reader must know of a vector before using it, as Markdown.

A card says what the vector was fitted on, how well it worked beside its controls, and what it
cannot be expected to do. Every rate has Wilson's 95 % interval; rates are given by whoever measured
them, and a card without rates says that there are none. `library_page` is the page of a whole
folder (`steerlens.vectors.library`).

>>> str(Rate("uninstructed+steering", 8, 10))
'80% (49% to 94%)'
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steerlens.errors import SteerlensError
from steerlens.stats.rates import wilson
from steerlens.steering.interventions import Steering
from steerlens.steering.operations import Intervention
from steerlens.vectors import SteeringVector

__all__ = [
    "SETTINGS",
    "LibraryItem",
    "Rate",
    "file_stem",
    "library_page",
    "only_intervention",
    "vector_card",
]

SETTINGS = ("layer", "operation", "strength", "scope")


@dataclass(frozen=True)
class Rate:
    """A share of prompts, counted.

    Attributes:
        condition: What was done, for example ``uninstructed+steering`` or
            ``uninstructed+placebo``.
        passed: Prompts whose response passed the instruction's check.
        n: Prompts.
    """

    condition: str
    passed: int
    n: int

    def __post_init__(self) -> None:
        if not 0 <= self.passed <= self.n or not self.n:
            raise SteerlensError(
                f"a rate needs at least one prompt and no more passes than prompts; got "
                f"{self.passed} of {self.n} for {self.condition!r}"
            )

    def __str__(self) -> str:
        interval = wilson(self.passed, self.n)
        return f"{interval.value:.0%} ({interval.low:.0%} to {interval.high:.0%})"


@dataclass(frozen=True, eq=False)
class LibraryItem:
    """A vector and what is known of it.

    Attributes:
        vector: The vector.
        steering: How it is best applied, as found on the ``select`` split: one intervention.
        rates: How well it worked, with its controls.
        limits: Further sentences for the card's list of limits.
    """

    vector: SteeringVector
    steering: Steering | None = None
    rates: Sequence[Rate] = ()
    limits: Sequence[str] = ()


def vector_card(item: LibraryItem, file: str) -> str:
    """The card of a vector, in Markdown.

    Args:
        item: The vector and what is known of it.
        file: Name of the vector's file.
    """
    vector, metadata = item.vector, item.vector.metadata
    span = f"{len(vector.layers)} layers, {vector.layers[0]} to {vector.layers[-1]}"
    rows = {
        "carries": metadata.get("instruction"),
        "estimator": metadata.get("estimator"),
        "read at": metadata.get("position"),
        "model": metadata.get("model"),
        "model's weights": metadata.get("weights_hash"),
        "shape": f"{span}; d_model {vector.d_model}",
        "data": _data(metadata),
        "data hash": metadata.get("data_hash"),
        "seed": metadata.get("seed"),
        "made with": _versions(metadata.get("versions")),
    }
    table = [f"| {key} | {_cell(value)} |" for key, value in rows.items() if value is not None]
    return "\n".join(
        [
            f"# {_cell(vector.name)}",
            "",
            "A steering vector: a direction of the residual stream for each layer.",
            "",
            "| | |",
            "|---|---|",
            *table,
            "",
            "## Use",
            "",
            "```python",
            "import steerlens as sl",
            "from steerlens.vectors.formats import load_vector",
            "",
            f"model = sl.load_model({str(metadata.get('model', '…'))!r})",
            f"vector = load_vector({file!r}, model)",
            f"steering = vector.at({_settings_text(item)})",
            "```",
            "",
            "## Rates",
            "",
            *_rates(item.rates),
            "",
            "## Limits",
            "",
            *(f"- {_cell(sentence)}" for sentence in (*_limits(item), *item.limits)),
            "",
        ]
    )


def only_intervention(item: LibraryItem) -> Intervention:
    """The one intervention of an item's steering.

    Raises:
        SteerlensError: "the settings of … must be one intervention …", or a layer the vector has
            not.
    """
    steering = item.steering
    if steering is None or len(steering.interventions) != 1:
        raise SteerlensError(
            f"the settings of {item.vector.name!r} must be one intervention with its vector"
        )
    [one] = steering.interventions
    item.vector.layer_index(one.layer)
    return one


def file_stem(name: str) -> str:
    """A file name for a vector: safe on every system, never hidden, never empty."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:100] or "vector"


def library_page(items: Sequence[LibraryItem], index: Mapping[str, Any]) -> str:
    """The page of a library, in Markdown: a table of its vectors, each with a link to its card.

    Args:
        items: The vectors and what is known of them.
        index: The library's index, for what they have in common.
    """
    conditions = list(dict.fromkeys(rate.condition for item in items for rate in item.rates))
    head = ["vector", "best applied", *(_cell(one) for one in conditions)]
    lines = [
        f"# Steering vectors for {_cell(index['model'] or 'a model')}",
        "",
        f"{len(items)} vectors; d_model {index['d_model']}, {index['n_layers'] or 'unknown'} "
        f"layers, weights {_cell(index['weights_hash'] or 'unknown')}.",
        "",
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
    ]
    for item in items:
        rates = {rate.condition: str(rate) for rate in item.rates}
        best = "–" if item.steering is None else _cell(only_intervention(item).describe())
        name = item.vector.name
        cells = [f"[{_cell(name)}]({file_stem(name)}.md)", best]
        cells += [rates.get(condition, "–") for condition in conditions]
        lines.append(f"| {' | '.join(cells)} |")
    note = "Rates are shares of prompts that pass the instruction's check, with 95 % intervals."
    return "\n".join([*lines, "", *([note, ""] if conditions else [])])


def _rates(rates: Sequence[Rate]) -> list[str]:
    if not rates:
        return ["None were measured for this vector."]
    lines = ["| condition | passed | rate (95 % interval) |", "|---|---|---|"]
    lines += [f"| {_cell(one.condition)} | {one.passed} of {one.n} | {one} |" for one in rates]
    if not any("placebo" in one.condition for one in rates):
        lines += [
            "",
            "No placebo was measured: how much of an effect is the push, and how much the "
            "direction, is not known.",
        ]
    return lines


def _limits(item: LibraryItem) -> list[str]:
    metadata = item.vector.metadata
    limits = [
        "It fits models of this width and depth, and means something only where the residual "
        f"stream means the same as in {metadata.get('model', 'the model it was made for')}.",
        "A direction that separates two kinds of prompts need not change behaviour; at most "
        "layers it does not.",
        "Strong steering makes text worse before it makes it obey: look at the responses.",
    ]
    if metadata.get("targets_known") is False:
        limits.append("Its projection targets are not known: use add or ablate.")
    if "split" in metadata:
        limits.append(f"It was fitted on the {metadata['split']} split; other prompts may differ.")
    return limits


def _settings_text(item: LibraryItem) -> str:
    if item.steering is None:
        return "layer=…"
    one = only_intervention(item)
    return ", ".join(f"{key}={getattr(one, key)!r}" for key in SETTINGS)


def _data(metadata: Mapping[str, Any]) -> str | None:
    if "n_pairs" not in metadata:
        return None
    return f"{metadata['n_pairs']} contrast pairs, split {metadata.get('split', 'unknown')}"


def _versions(versions: Any) -> str | None:
    if not isinstance(versions, Mapping):
        return None
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def _cell(value: Any) -> str:
    """Text for a Markdown table or heading; names come from data and may hold anything."""
    text = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*\[\]|])", r"\\\1", text)
