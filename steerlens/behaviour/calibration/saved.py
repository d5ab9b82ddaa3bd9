"""Calibrations kept with a vector, and the steering they stand for.

A calibration answers a question: for one layer, operation and scope, which strength meets a
divergence budget (``target_kl``, ``quantile``) or makes responses follow an instruction
(``instruction``, ``target_rate``). A new answer to the same question replaces the old one.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
import torch

from steerlens.errors import SteeringError
from steerlens.steering.interventions import Steering
from steerlens.steering.operations import Intervention
from steerlens.vectors import SteeringVector

__all__ = ["SavedCalibration", "calibrated"]

_INTERVENTION = ("layer", "operation", "scope", "only_below", "only_above", "adaptive")
_AT = (*_INTERVENTION, "strength")
_QUESTION = (*_INTERVENTION, "target_kl", "quantile", "instruction", "target_rate")


class SavedCalibration:
    """What both calibrations have in common: a strength, and being kept with a vector."""

    strength: float
    reached: bool
    reason: str
    steering: Steering
    table: pd.DataFrame
    metadata: Mapping[str, Any]

    @property
    def record(self) -> dict[str, Any]:
        """Plain data: everything but the steering."""
        return {
            **self._numbers(),
            "steering": [part.describe() for part in self.steering.interventions],
            "curve": self.table.to_dict("list"),
            **self.metadata,
        }

    def saved_with(self, vector: SteeringVector) -> SteeringVector:
        """The vector with this calibration in its metadata; `calibrated` reads it.

        Raises:
            SteeringError: No strength was found, or what was calibrated is not this vector at one
                layer.
        """
        if not self.reached:
            raise SteeringError(f"there is no calibrated strength to save: {self.reason}")
        parts = self.steering.interventions
        if len(parts) != 1 or not _is_of(vector, parts[0]):
            raise SteeringError(f"{self.steering!r} is not {vector!r} at one layer")
        new = {**self.record, **{name: getattr(parts[0], name) for name in _AT}}
        for name in ("only_above", "adaptive"):  # earlier versions' calibrations lack them
            if not new[name]:
                del new[name]
        kept = [
            old
            for old in _records(vector)
            if any(old.get(key) != new.get(key) for key in _QUESTION)
        ]
        return replace(vector, metadata={**vector.metadata, "calibration": [*kept, new]})

    def _numbers(self) -> dict[str, Any]:
        """What was asked and found."""
        raise NotImplementedError

    def _card(self) -> Mapping[str, Any]:
        return {"around": int((self.table["strength"] - self.strength).abs().argmin())}


def calibrated(vector: SteeringVector, **chosen: Any) -> Steering:
    """The steering that a calibration saved with a vector stands for.

    Args:
        vector: A vector from `SavedCalibration.saved_with`, perhaps saved and loaded.
        chosen: What the calibration must say, when there are several: ``layer``, ``operation``,
            ``scope``, ``target_kl``, ``quantile``, ``instruction``, ``target_rate``.

    Raises:
        SteeringError: None or several of its calibrations fit.
    """
    records = _records(vector)
    fit = [record for record in records if all(record.get(key) == chosen[key] for key in chosen)]
    if len(fit) != 1:
        held = "; ".join(f"{record['steering'][0]} for {_goal(record)}" for record in records)
        raise SteeringError(
            f"{len(fit)} calibrations of this vector fit {chosen or 'the question'}; it has: "
            f"{held or 'none'}"
        )
    return vector.at(**{name: fit[0][name] for name in _AT if name in fit[0]})


def _is_of(vector: SteeringVector, part: Intervention) -> bool:
    if part.layer not in vector.layers:
        return False
    direction = vector.restricted_to([part.layer]).directions[0]
    # The unit of a general operation is its write direction over its norm, rounded.
    return torch.allclose(part.unit.float(), direction.float(), atol=1e-4)


def _goal(record: Mapping[str, Any]) -> str:
    if record.get("target_kl") is not None:
        return f"{record['target_kl']:g} nats"
    target = record.get("target_rate")
    return "the most passes" if target is None else f"{target:.0%} passes"


def _records(vector: SteeringVector) -> list[dict[str, Any]]:
    records = vector.metadata.get("calibration", [])
    return records if isinstance(records, list) else []
