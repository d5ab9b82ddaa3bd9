"""Cards: what a reader must know of a vector before using it, as Markdown.

A card says what the vector was fitted on, how well it worked beside its controls, and what it
cannot be expected to do. Every rate has Wilson's 95 % interval. `library_page` is the page of a
whole folder (`steerlens.vectors.library`).

>>> str(Rate("uninstructed+steering", 8, 10))
'80% (49% to 94%)'
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from steerlens.errors import SteerlensError
from steerlens.stats.rates import wilson
from steerlens.steering.interventions import Steering
from steerlens.steering.operations import Intervention
from steerlens.vectors import SteeringVector

__all__ = ["LibraryItem", "Rate", "file_stem", "library_page", "vector_card"]

SETTINGS = ("layer", "operation", "strength", "scope")
OPTIONAL = ("only_below", "only_above", "adaptive")
_TEMPLATE = Path(__file__).with_name("vector_card.md.jinja")


@dataclass(frozen=True)
class Rate:
    """Share of prompts whose response passed the instruction's check, under one condition.

    Attributes:
        condition: For example ``uninstructed+steering`` or ``uninstructed+placebo``.
        passed: Prompts that passed.
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

    @property
    def intervention(self) -> Intervention | None:
        """The one intervention of `steering`; `SteerlensError` if it is not one of the vector."""
        if self.steering is None:
            return None
        if len(self.steering.interventions) != 1:
            raise SteerlensError(
                f"the settings of {self.vector.name!r} must be one intervention with its vector"
            )
        [intervention] = self.steering.interventions
        self.vector.layer_index(intervention.layer)
        return intervention


def settings_of(intervention: Intervention) -> dict[str, Any]:
    """Arguments of `SteeringVector.at` that give this intervention."""
    kept = [*SETTINGS, *(name for name in OPTIONAL if getattr(intervention, name))]
    return {name: getattr(intervention, name) for name in kept}


def vector_card(item: LibraryItem, file: str) -> str:
    """The card of a vector in a file of this name, in Markdown."""
    vector, metadata, best = item.vector, item.vector.metadata, item.intervention
    data = versions = None
    if "n_pairs" in metadata:
        split = metadata.get("split", "unknown")
        data = f"{metadata['n_pairs']} contrast pairs, split {split}"
    if isinstance(metadata.get("versions"), Mapping):
        versions = ", ".join(f"{name} {number}" for name, number in metadata["versions"].items())
    limits = list(item.limits)
    if metadata.get("targets_known") is False:
        limits.append("Its projection targets are not known: use add or ablate.")
    if "split" in metadata:
        limits.append(f"It was fitted on the {metadata['split']} split; other prompts may differ.")
    settings = "layer=…"
    if best is not None:
        settings = ", ".join(f"{name}={value!r}" for name, value in settings_of(best).items())
    span = f"{len(vector.layers)} layers, {vector.layers[0]} to {vector.layers[-1]}"
    card = ModelCard.from_template(
        ModelCardData(library_name="steerlens", tags=["steering-vector"]),
        template_path=str(_TEMPLATE),
        cell=cell,
        name=vector.name,
        facts={
            "carries": metadata.get("instruction"),
            "estimator": metadata.get("estimator"),
            "read at": metadata.get("position"),
            "model": metadata.get("model"),
            "model's weights": metadata.get("weights_hash"),
            "shape": f"{span}; d_model {vector.d_model}",
            "data": data,
            "data hash": metadata.get("data_hash"),
            "seed": metadata.get("seed"),
            "made with": versions,
        },
        model=repr(str(metadata.get("model", "…"))),
        model_name=metadata.get("model", "the model it was made for"),
        file=repr(file),
        settings=settings,
        rates=item.rates,
        has_placebo=any("placebo" in rate.condition for rate in item.rates),
        limits=limits,
    )
    return str(card)


def library_page(items: Sequence[LibraryItem], index: Mapping[str, Any]) -> str:
    """The page of a library, in Markdown: a table of its vectors, each with a link to its card."""
    conditions = list(dict.fromkeys(rate.condition for item in items for rate in item.rates))
    head = ["vector", "best applied", *map(cell, conditions)]
    lines = [
        f"# Steering vectors for {cell(index['model'] or 'a model')}",
        "",
        f"{len(items)} vectors; d_model {index['d_model']}, {index['n_layers'] or 'unknown'} "
        f"layers, weights {cell(index['weights_hash'] or 'unknown')}.",
        "",
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
    ]
    for item in items:
        rates = {rate.condition: str(rate) for rate in item.rates}
        best = "–" if item.intervention is None else cell(item.intervention.describe())
        name = item.vector.name
        cells = [f"[{cell(name)}]({file_stem(name)}.md)", best]
        cells += [rates.get(condition, "–") for condition in conditions]
        lines.append(f"| {' | '.join(cells)} |")
    note = "Rates are shares of prompts that pass the instruction's check, with 95 % intervals."
    return "\n".join([*lines, "", *([note, ""] if conditions else [])])


def file_stem(name: str) -> str:
    """A file name for a vector: safe on every system, never hidden, never empty."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:100] or "vector"


def cell(value: Any) -> str:
    """Text for a Markdown table or heading; names come from data and may hold anything."""
    text = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*\[\]|])", r"\\\1", text)
