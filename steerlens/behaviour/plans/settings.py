"""Settings and candidates: what a search chooses between, as plain data.

A `Setting` is one intervention, named by where its vector comes from; a candidate is a tuple of
settings that are applied together, in order. The empty tuple is *no steering*, a candidate like
any other.

>>> one = Setting("last_prompt", 24, "set_projection", 1.0, "prompt")
>>> describe((one,))
'last_prompt: set_projection ×1 at layer 24 on prompt'
>>> describe(NO_STEERING)
'no steering'
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

from steerlens.errors import FileFormatError, SteeringError, unknown_name
from steerlens.steering.operations import GENERAL, Operation, Scope

__all__ = ["NO_STEERING", "Candidate", "Setting", "candidate_from_json", "describe"]


@dataclass(frozen=True, order=True)
class Setting:
    """One intervention, without its vector.

    Attributes:
        estimator: Where the vector comes from; see `steerlens.behaviour.plans.fitting`.
        layer: The block whose output is changed.
        operation: ``add``, ``set_projection``, ``ablate``, or ``general`` for a vector with read
            directions.
        strength: Multiplier of the change; 1 adds the mean difference or meets the target.
        scope: ``all``, ``prompt`` or ``response``.
        only_below: Act only on tokens whose projection is below the target (``set_projection``).
        only_above: Act only on tokens whose projection is above it.

    Raises:
        UnknownNameError: An operation or scope that does not exist.
        SteeringError: A layer below 0.
    """

    estimator: str
    layer: int
    operation: str
    strength: float
    scope: str
    only_below: bool = False
    only_above: bool = False

    def __post_init__(self) -> None:
        operations = (*get_args(Operation), GENERAL)
        if self.operation not in operations:
            raise unknown_name("operation", self.operation, operations)
        if self.scope not in get_args(Scope):
            raise unknown_name("scope", self.scope, get_args(Scope))
        if self.layer < 0:
            raise SteeringError(f"a setting's layer counts from 0; got {self.layer}")

    def describe(self) -> str:
        """One phrase."""
        side = ", only below its target" if self.only_below else ""
        side = ", only above its target" if self.only_above else side
        return (
            f"{self.estimator}: {self.operation} ×{self.strength:g} at layer {self.layer} "
            f"on {self.scope}{side}"
        )

    def to_json(self) -> dict[str, Any]:
        """Its fields, `only_below` and `only_above` only where they are set."""
        fields = asdict(self)
        for name in ("only_below", "only_above"):
            if not fields[name]:
                del fields[name]
        return fields


Candidate = tuple[Setting, ...]
NO_STEERING: Candidate = ()


def describe(candidate: Candidate) -> str:
    """A phrase for people."""
    return " + ".join(setting.describe() for setting in candidate) or "no steering"


def candidate_from_json(parts: Sequence[Mapping[str, Any]]) -> Candidate:
    """The candidate whose settings' fields are given.

    Raises:
        FileFormatError: A part lacks a field, or one is of the wrong kind.
    """
    try:
        return tuple(
            Setting(
                estimator=str(part["estimator"]),
                layer=int(part["layer"]),
                operation=str(part["operation"]),
                strength=float(part["strength"]),
                scope=str(part["scope"]),
                only_below=bool(part.get("only_below", False)),
                only_above=bool(part.get("only_above", False)),
            )
            for part in parts
        )
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(
            f"a setting needs estimator, layer, operation, strength and scope; got {parts!r}"
        ) from error
