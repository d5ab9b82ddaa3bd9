"""What the parts of a steering vector may be, whoever made them: a fit, a file, another tool."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steerlens.errors import SteeringError
from steerlens.errors.arguments import UNIT_TOLERANCE

__all__ = ["PER_LAYER", "check_parts", "combined_metadata"]

PER_LAYER = ("gaps", "targets", "baselines")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# Baselines of vectors that differ in one of these are means of different things.
_SAME_ACTIVATIONS = ("weights_hash", "configuration_hash", "position")


def check_parts(parts: Mapping[str, Tensor], n_layers: int) -> None:
    """Refuse parts whose shapes or values no vector can have; files may hold anything."""
    shape = tuple(parts["directions"].shape)
    if n_layers == 0 or len(shape) != 2 or shape[0] != n_layers:
        raise SteeringError(
            f"directions must have shape [layer d_model] with {n_layers} layers; got {shape}"
        )
    for name in PER_LAYER:
        if parts[name].shape != (n_layers,):
            raise SteeringError(
                f"{name} must hold one number for each of {n_layers} layers; got shape "
                f"{tuple(parts[name].shape)}"
            )
    for name in ("directions", *PER_LAYER):
        if parts[name].dtype not in _FLOATS:
            raise SteeringError(
                f"the vector's {name} are {parts[name].dtype}; give floating-point numbers of 16, "
                "32 or 64 bits"
            )
        # As they are applied: a float64 of 1e300 is finite, in float32 it is not.
        if not bool(torch.isfinite(parts[name].float()).all()):
            raise SteeringError(
                f"the vector's {name} hold NaN, infinity or numbers that do not fit float32"
            )
    norms = parts["directions"].float().norm(dim=-1)
    if bool(((norms - 1).abs() > UNIT_TOLERANCE).any()):
        raise SteeringError(
            f"directions must be unit vectors; got norms from {float(norms.min()):.3g} to "
            f"{float(norms.max()):.3g}"
        )


def combined_metadata(
    parts: Sequence[Mapping[str, Any]], no_targets_because: str | None = None
) -> dict[str, Any]:
    """What the metadata of several vectors say of their combination.

    Kept are the entries that all agree on, but no calibration, which holds for one vector only.

    Args:
        parts: Metadata of the vectors.
        no_targets_because: Why the combination has no targets, if that is known already.
    """
    first, *others = parts
    kept = {
        key: value
        for key, value in first.items()
        if key != "calibration" and all(key in one and one[key] == value for one in others)
    }
    reason = no_targets_because
    for key in _SAME_ACTIVATIONS:
        values = {str(one[key]) for one in parts if one.get(key) is not None}
        if len(values) > 1:
            reason = f"its parts differ in {key} ({', '.join(sorted(values))})"
    if reason is None and any(one.get("targets_known") is False for one in parts):
        reason = "one of its parts has none"
    if reason is None:
        return kept
    return {**kept, "targets_known": False, "targets_unknown_because": reason}
