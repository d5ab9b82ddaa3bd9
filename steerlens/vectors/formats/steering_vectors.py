"""Vectors of the library `steering-vectors`, both ways.

``steering_vectors.SteeringVector.layer_activations`` holds one row per layer, counted from 0, which
the library adds, times a multiplier, to the outputs of the blocks: our shift g·u. An object made
here carries the vector it was made from, so the way back is exact as long as its rows have not been
changed. Objects from elsewhere come without targets. (The library adds to padding as well.)

    with to_steering_vectors(vector, layers=[20]).apply(hf_model):
        hf_model.generate(...)
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from steerlens.errors import SteeringError, SteerlensError
from steerlens.vectors import SteeringVector
from steerlens.vectors.formats.record import same_shifts, shifts_of, vector_of_shifts

__all__ = ["from_steering_vectors", "to_steering_vectors"]

_BLOCKS = "decoder_block"


def to_steering_vectors(vector: SteeringVector, layers: Sequence[int] | None = None) -> Any:
    """A ``steering_vectors.SteeringVector`` in float32 that adds what ``add`` at strength 1 adds.

    Args:
        vector: The vector.
        layers: Layers to hand over; all by default. ``apply`` steers at every one of them.

    Raises:
        SteeringError: "layer … is out of range for this vector …".
        SteerlensError: "steering-vectors is not installed …".
    """
    vector = vector if layers is None else vector.restricted_to(layers)
    try:
        library = importlib.import_module("steering_vectors")
    except ImportError as error:
        raise SteerlensError(
            "steering-vectors is not installed; run `pip install --no-deps steering-vectors`"
        ) from error
    peer = library.SteeringVector(layer_activations=shifts_of(vector), layer_type=_BLOCKS)
    peer.steerlens_vector = vector
    return peer


def from_steering_vectors(other: Any) -> SteeringVector:
    """Our vector of a ``steering_vectors.SteeringVector``.

    Raises:
        SteeringError: "… is no steering_vectors.SteeringVector …", or another layer type than
            "decoder_block", which is a place inside a block.
        FileFormatError: Layers or tensors that no vector can have.
    """
    shifts = getattr(other, "layer_activations", None)
    if not isinstance(shifts, Mapping):
        raise SteeringError(
            f"{type(other).__name__} is no steering_vectors.SteeringVector; it has no "
            "layer_activations"
        )
    layer_type = getattr(other, "layer_type", _BLOCKS)
    if layer_type != _BLOCKS:
        raise SteeringError(
            f"this vector steers at {layer_type!r}, inside a block; only {_BLOCKS!r} is the "
            "residual stream"
        )
    vector = getattr(other, "steerlens_vector", None)
    if (
        isinstance(vector, SteeringVector)
        and set(vector.layers) == set(shifts)
        and same_shifts(shifts_of(vector), shifts)
    ):
        return vector
    metadata = {"source_format": "steering-vectors"}
    return vector_of_shifts(shifts, "the steering_vectors.SteeringVector", metadata)
