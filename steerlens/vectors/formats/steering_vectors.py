"""Vectors of the `steering-vectors` library, both ways.

``steering_vectors.SteeringVector`` holds ``layer_activations``, a tensor for each layer counted
from 0, and adds them, times a multiplier, to the outputs of the matching modules; with its
``layer_type`` "decoder_block" these are the blocks, so a tensor is our shift g·u and its ``apply``
at multiplier 1 is ``add`` at strength 1 and scope ``all``. (Its hook adds to padding as well; here
padding is never touched.) Vectors of other layer types belong to places inside a block, where this
package does not steer, and are refused.

The object made here carries the vector it was made from, so the way back is exact as long as its
tensors have not been changed. Objects from elsewhere come without targets
(`steerlens.vectors.formats.record`).

    with to_steering_vectors(vector, layers=[20]).apply(hf_model):
        hf_model.generate(...)
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from steerlens.errors import SteeringError, SteerlensError
from steerlens.vectors import SteeringVector
from steerlens.vectors.formats.record import (
    attach_vector,
    attached_vector,
    restricted,
    shifts_of,
    vector_of_shifts,
)

__all__ = ["from_steering_vectors", "to_steering_vectors"]

BLOCKS = "decoder_block"


def to_steering_vectors(vector: SteeringVector, layers: Sequence[int] | None = None) -> Any:
    """A ``steering_vectors.SteeringVector`` that adds what ``add`` at strength 1 adds.

    Args:
        vector: The vector.
        layers: Layers to hand over; all by default. ``apply`` steers at every one of them.

    Returns:
        The library's object, its tensors in float32.

    Raises:
        SteeringError: "layer … is out of range for this vector …".
        SteerlensError: "steering-vectors is not installed …".
    """
    chosen = restricted(vector, layers)
    try:
        library = importlib.import_module("steering_vectors")
    except ImportError as error:
        raise SteerlensError(
            "steering-vectors is not installed; run `pip install --no-deps steering-vectors`"
        ) from error
    made = library.SteeringVector(layer_activations=shifts_of(chosen), layer_type=BLOCKS)
    return attach_vector(made, chosen)


def from_steering_vectors(other: Any) -> SteeringVector:
    """Our vector of a ``steering_vectors.SteeringVector``.

    Raises:
        SteeringError: "… is no steering_vectors.SteeringVector …", or a layer type that is not
            "decoder_block".
        FileFormatError: layers or tensors that no vector can have.
    """
    activations = getattr(other, "layer_activations", None)
    if not isinstance(activations, Mapping):
        raise SteeringError(
            f"{type(other).__name__} is no steering_vectors.SteeringVector; it has no "
            "layer_activations"
        )
    kind = getattr(other, "layer_type", BLOCKS)
    if kind != BLOCKS:
        raise SteeringError(
            f"this vector steers at {kind!r}, inside a block; only {BLOCKS!r} is the residual "
            "stream"
        )
    exact = attached_vector(other, activations)
    if exact is not None:
        return exact
    source = "the steering_vectors.SteeringVector"
    return vector_of_shifts(activations, source, {"source_format": "steering-vectors"})
