"""What the tensors of a steering vector may be, and which vectors combine."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steerlens.errors import SteeringError
from steerlens.errors.arguments import UNIT_TOLERANCE

__all__ = ["FLOATS", "check_comparable", "check_tensors", "combined_metadata"]

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# Baselines of vectors that differ in one of these are means of different things.
_SAME_ACTIVATIONS = ("weights_hash", "configuration_hash", "position")


def check_tensors(tensors: Mapping[str, Tensor], n_layers: int) -> None:
    """Refuse tensors whose shapes or values no vector can have; files may hold anything."""
    shape = tuple(tensors["directions"].shape)
    if n_layers == 0 or len(shape) != 2 or shape[0] != n_layers:
        raise SteeringError(
            f"directions must have shape [layer d_model] with {n_layers} layers; got {shape}"
        )
    for name, tensor in tensors.items():
        if name == "reads" and tensor.shape != shape:
            raise SteeringError(f"reads must have the shape of directions; got {tensor.shape}")
        if name not in ("directions", "reads") and tensor.shape != (n_layers,):
            raise SteeringError(
                f"{name} must hold one number for each of {n_layers} layers; got shape "
                f"{tuple(tensor.shape)}"
            )
        if tensor.dtype not in FLOATS:
            raise SteeringError(
                f"the vector's {name} are {tensor.dtype}; give floating-point numbers of 16, 32 or "
                "64 bits"
            )
        # As they are applied: a float64 of 1e300 is finite, in float32 it is not.
        if not bool(torch.isfinite(tensor.float()).all()):
            raise SteeringError(
                f"the vector's {name} hold NaN, infinity or numbers that do not fit float32"
            )
    norms = tensors["directions"].float().norm(dim=-1)
    if bool(((norms - 1).abs() > UNIT_TOLERANCE).any()):
        raise SteeringError(
            f"directions must be unit vectors; got norms from {float(norms.min()):.3g} to "
            f"{float(norms.max()):.3g}"
        )


def check_comparable(vector: Any, *others: Any) -> None:
    """Refuse to combine vectors of other layers or another model, or with read directions."""
    for other in (vector, *others):
        if type(other) is not type(vector):
            raise SteeringError(
                f"a steering vector combines with another one; got {type(other).__name__}"
            )
        if other.reads is not None:
            raise SteeringError(
                f"{other.name} has read directions; only vectors without them combine"
            )
        depths = [each.metadata.get("n_layers") for each in (vector, other)]
        if None not in depths and depths[0] != depths[1]:
            raise SteeringError(
                f"{vector.name} and {other.name} were made for models with {depths[0]} and "
                f"{depths[1]} layers; only vectors of one model combine"
            )
        if vector.layers != other.layers or vector.d_model != other.d_model:
            raise SteeringError(
                f"vectors combine layer by layer: {vector!r} and {other!r} have different layers "
                "or widths; estimate both on the same layers of one model"
            )


def combined_metadata(
    parts: Sequence[Mapping[str, Any]], no_targets_because: str | None = None
) -> dict[str, Any]:
    """The entries that all parts agree on, without calibrations, which hold for one vector only.

    Args:
        parts: Metadata of the vectors.
        no_targets_because: Why the combination has no targets, if that is known already.
    """
    first, *others = parts
    kept = {
        key: value
        for key, value in first.items()
        if key != "calibration" and all(key in part and part[key] == value for part in others)
    }
    reason = no_targets_because
    for key in _SAME_ACTIVATIONS:
        values = {str(part[key]) for part in parts if part.get(key) is not None}
        if len(values) > 1:
            reason = f"its parts differ in {key} ({', '.join(sorted(values))})"
    if reason is None and any(part.get("targets_known") is False for part in parts):
        reason = "one of its parts has none"
    if reason is None:
        return kept
    return {**kept, "targets_known": False, "targets_unknown_because": reason}
