"""Candidates: what a search chooses between, as plain data.

An `InterventionSpec` is one intervention, named by where its vector comes from. A candidate is a
tuple of them, applied together in order. The empty tuple is *no steering*, a candidate like any
other.

>>> spec = InterventionSpec("last_prompt", 24, "set_projection", 1.0, "prompt")
>>> describe((spec,))
'last_prompt: set_projection ×1 at layer 24 on prompt'
>>> describe(NO_STEERING)
'no steering'
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

from steerlens.attribution.log_odds import engine_scope
from steerlens.errors import FileFormatError, SteeringError, unknown_name
from steerlens.steering.operations import GENERAL, Operation, check_scope, check_threshold

__all__ = [
    "NO_STEERING",
    "Candidate",
    "InterventionSpec",
    "candidate_from_json",
    "describe",
    "scaled",
    "to_json",
]


@dataclass(frozen=True, order=True)
class InterventionSpec:
    """One intervention without its vector.

    Attributes:
        estimator: Where the vector comes from; see `steerlens.behaviour.plans.fitting`.
        layer: The block whose output is changed.
        operation: ``add``, ``set_projection``, ``ablate``, or ``general`` for a vector with read
            directions.
        strength: Multiplier of the change; 1 adds the mean difference or meets the target.
        scope: ``all``, ``prompt``, ``response`` or ``first:N``; of choices also ``answer``
            (`steerlens.attribution.log_odds`).
        only_below: Act only on tokens whose projection is below the target (``set_projection``).
        only_above: Act only on tokens whose projection is above it.
        adaptive: Threshold of a strength lowered while decoding; 0 for a fixed one.

    Raises:
        UnknownNameError: An operation or scope that does not exist.
        SteeringError: A layer below 0, a scope ``first:0``, or `adaptive` out of range.
    """

    estimator: str
    layer: int
    operation: str
    strength: float
    scope: str
    only_below: bool = False
    only_above: bool = False
    adaptive: float = 0.0

    def __post_init__(self) -> None:
        operations = (*get_args(Operation), GENERAL)
        if self.operation not in operations:
            raise unknown_name("operation", self.operation, operations)
        check_scope(engine_scope(self.scope))
        check_threshold(self.adaptive)
        if self.layer < 0:
            raise SteeringError(f"a layer counts from 0; got {self.layer}")


Candidate = tuple[InterventionSpec, ...]
"""Interventions that are applied together."""

NO_STEERING: Candidate = ()
"""The candidate without an intervention."""


def scaled(candidate: Candidate, factor: float) -> Candidate:
    """The candidate with each strength multiplied, to three decimals."""
    return tuple(replace(spec, strength=round(spec.strength * factor, 3)) for spec in candidate)


def describe(candidate: Candidate) -> str:
    """The candidate in words."""
    return " + ".join(map(_phrase, candidate)) or "no steering"


def _phrase(spec: InterventionSpec) -> str:
    sides = {"below": spec.only_below, "above": spec.only_above}
    only = [f", only {side} its target" for side, is_set in sides.items() if is_set]
    only += [f", adaptive {spec.adaptive:g}"] if spec.adaptive else []
    return (
        f"{spec.estimator}: {spec.operation} ×{spec.strength:g} at layer {spec.layer} "
        f"on {spec.scope}{''.join(only)}"
    )


def to_json(candidate: Candidate) -> list[dict[str, Any]]:
    """Its parts' fields; `only_below`, `only_above` and `adaptive` where they are set."""
    optional = ("only_below", "only_above", "adaptive")
    return [
        {name: value for name, value in asdict(spec).items() if value or name not in optional}
        for spec in candidate
    ]


def candidate_from_json(parts: Sequence[Mapping[str, Any]]) -> Candidate:
    """The candidate whose parts' fields are given.

    Raises:
        FileFormatError: A part lacks a field, or one is of the wrong kind.
    """
    try:
        return tuple(
            InterventionSpec(
                estimator=str(part["estimator"]),
                layer=int(part["layer"]),
                operation=str(part["operation"]),
                strength=float(part["strength"]),
                scope=str(part["scope"]),
                only_below=bool(part.get("only_below", False)),
                only_above=bool(part.get("only_above", False)),
                adaptive=float(part.get("adaptive", 0.0)),
            )
            for part in parts
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(
            "an intervention of a plan needs estimator, layer, operation, strength and scope; "
            f"got {parts!r}"
        ) from error
