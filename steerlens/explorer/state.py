"""What the explorer is set to, as plain data without widgets."""

from dataclasses import dataclass
from typing import Any

from steerlens.effects.run import SteeredRun
from steerlens.steering.interventions import Steering
from steerlens.vectors import SteeringVector

__all__ = ["Pin", "Setting"]


@dataclass(frozen=True)
class Setting:
    """One thing to try.

    Attributes:
        source: An instruction id, or the path of a vector file.
        prompt: The user's message.
        layer: Block whose output is steered.
        operation: ``"add"``, ``"set_projection"`` or ``"ablate"``.
        strength: Multiplies the change; see `SteeringVector.at`.
        scope: ``"all"``, ``"prompt"`` or ``"response"``.
        max_new_tokens: Longest response, in tokens.
    """

    source: str
    prompt: str
    layer: int
    operation: str = "set_projection"
    strength: float = 1.0
    scope: str = "all"
    max_new_tokens: int = 48

    def steering(self, vector: SteeringVector) -> Steering:
        """This setting of a vector.

        Raises:
            SteeringError: As `SteeringVector.at`.
        """
        return vector.at(self.layer, self.operation, self.strength, self.scope)

    def describe(self) -> str:
        """In words, for a reader."""
        return (
            f"{self.source}: {self.operation} ×{self.strength:g} at layer {self.layer} on "
            f"{self.scope}, {self.prompt!r}"
        )


@dataclass(frozen=True)
class Pin:
    """A setting kept with what it gave.

    Attributes:
        setting: What was run.
        baseline: The unsteered response.
        steered: The steered response.
        tokens: Rows of `TokenEffects.table`, those of the steered response.
        parts_at: The first of them that the baseline does not have; ``None`` where there is none.
        mean_kl: `TokenEffects.mean_kl`; ``None`` where it is not known.
    """

    setting: Setting
    baseline: str
    steered: str
    tokens: tuple[dict[str, Any], ...] = ()
    parts_at: int | None = None
    mean_kl: float | None = None

    @classmethod
    def of(cls, setting: Setting, run: SteeredRun) -> "Pin":
        """What a setting's run gave."""
        frame = run.effects.table
        rows = frame[frame["role"] == "response"].to_dict("records")
        kept = tuple({str(name): value for name, value in row.items()} for row in rows)
        return cls(
            setting, run.baseline, run.steered, kept, run.parts_at, mean_kl=run.effects.mean_kl
        )
