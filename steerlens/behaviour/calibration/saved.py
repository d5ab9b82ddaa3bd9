"""Calibrations kept with a vector, and the steering they stand for.

A calibration answers a question: for one layer, operation and scope, which strength meets a
divergence budget (``target_kl``, ``quantile``) or an instruction (``instruction``,
``target_rate``). A new answer to the same question takes the place of the old one.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from steerlens.errors import SteeringError
from steerlens.steering.interventions import Steering
from steerlens.vectors import SteeringVector

__all__ = ["calibrated", "saved"]

_QUESTION = (
    "layer",
    "operation",
    "scope",
    "only_below",
    "only_above",
    "target_kl",
    "quantile",
    "instruction",
    "target_rate",
)


def saved(vector: SteeringVector, steering: Steering, record: Mapping[str, Any]) -> SteeringVector:
    """The vector with a calibration of it in its metadata.

    Args:
        vector: What was calibrated.
        steering: It at one layer, at the strength found.
        record: What was asked and found, as plain data.

    Raises:
        SteeringError: The steering is not this vector at one layer.
    """
    ones = steering.interventions
    if len(ones) != 1 or not _is_of(vector, steering):
        raise SteeringError(f"{steering!r} is not {vector!r} at one layer")
    [one] = ones
    own = {
        **record,
        "layer": one.layer,
        "operation": one.operation,
        "scope": one.scope,
        "only_below": one.only_below,
        **({"only_above": True} if one.only_above else {}),
        "strength": one.strength,
    }
    kept = [other for other in _records(vector) if not _same_question(other, own)]
    return replace(vector, metadata={**vector.metadata, "calibration": [*kept, own]})


def calibrated(vector: SteeringVector, **chosen: Any) -> Steering:
    """The steering that a calibration saved with a vector stands for.

    Args:
        vector: A vector from `Calibration.saved_with` or `RateCalibration.saved_with`, perhaps
            saved and loaded.
        chosen: What the calibration must say, when there are several: ``layer``, ``operation``,
            ``scope``, ``target_kl``, ``quantile``, ``instruction``, ``target_rate``.

    Raises:
        SteeringError: None or several of its calibrations fit.
    """
    records = _records(vector)
    fit = [one for one in records if all(one.get(key) == chosen[key] for key in chosen)]
    if len(fit) != 1:
        held = "; ".join(f"{one['steering'][0]} for {_goal(one)}" for one in records)
        raise SteeringError(
            f"{len(fit)} calibrations of this vector fit {chosen or 'the question'}; it has: "
            f"{held or 'none'}"
        )
    [record] = fit
    names = ("layer", "operation", "strength", "scope", "only_below", "only_above")
    return vector.at(**{name: record[name] for name in names if name in record})


def _goal(record: Mapping[str, Any]) -> str:
    if record.get("target_kl") is not None:
        return f"{record['target_kl']:g} nats"
    target = record.get("target_rate")
    return "the most passes" if target is None else f"{target:.0%} passes"


def _is_of(vector: SteeringVector, steering: Steering) -> bool:
    return all(
        one.layer in vector.layers
        # The unit of a general operation is its write direction over its norm, rounded.
        and torch.allclose(
            one.unit.float(), vector.restricted_to([one.layer]).directions[0].float(), atol=1e-4
        )
        for one in steering.interventions
    )


def _records(vector: SteeringVector) -> list[dict[str, Any]]:
    records = vector.metadata.get("calibration", [])
    return records if isinstance(records, list) else []


def _same_question(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one.get(key) == other.get(key) for key in _QUESTION)
