"""Objects of the libraries `repeng` and `steering-vectors`, both ways.

``repeng.ControlVector.directions`` and ``steering_vectors.SteeringVector.layer_activations`` hold
one row per layer, counted from 0, which these libraries add, times a coefficient, to the outputs of
the blocks: our shift g·u at the same layer (repeng 0.4.0 reads, hooks and numbers blocks from 0).
An object made here carries the vector it was made from, so the way back is exact as long as its
rows have not been changed. Objects from elsewhere come without targets.

    with to_steering_vectors(vector, layers=[20]).apply(hf_model):
        hf_model.generate(...)

**Caveats.** steering-vectors adds to padding as well. Its vectors of other layer types than
"decoder_block" belong to places inside a block and are refused. repeng trains unit vectors without
block 0, and fits the last block's behind the final norm although it is applied in front of it;
``set_control`` needs a direction for every layer of its ``ControlModel``. repeng 0.4.0 needs numpy
1; files can be exchanged without it (`steerlens.vectors.formats.gguf`).
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from steerlens.errors import SteeringError, SteerlensError
from steerlens.vectors import SteeringVector
from steerlens.vectors.formats.record import same_shifts, shifts_of, vector_of_shifts

__all__ = ["from_repeng", "from_steering_vectors", "to_repeng", "to_steering_vectors"]

_BLOCKS = "decoder_block"


def to_repeng(
    vector: SteeringVector, layers: Sequence[int] | None = None, model_type: str | None = None
) -> Any:
    """A ``repeng.ControlVector`` that adds, at coefficient 1, what ``add`` at strength 1 adds.

    Args:
        vector: The vector.
        layers: Layers to hand over; all by default.
        model_type: repeng's name of the model's family ("llama"); by default the vector's model.

    Raises:
        SteeringError: "layer … is out of range for this vector …".
        SteerlensError: "repeng cannot be imported …".
    """
    vector = vector if layers is None else vector.restricted_to(layers)
    try:
        library = importlib.import_module("repeng")
    # AttributeError: 0.4.0 names numpy.float_, which numpy 2 does not have.
    except (ImportError, AttributeError) as error:
        raise SteerlensError(
            f"repeng cannot be imported ({error}); run `pip install repeng 'numpy<2'`, or write a "
            "GGUF file, which it reads"
        ) from error
    control = library.ControlVector(
        model_type=model_type or str(vector.metadata.get("model", "unknown")),
        directions={layer: shift.numpy() for layer, shift in shifts_of(vector).items()},
    )
    control.steerlens_vector = vector
    return control


def from_repeng(other: Any) -> SteeringVector:
    """Our vector of a ``repeng.ControlVector``, exact if `to_repeng` made it.

    Raises:
        SteeringError: "… is no repeng.ControlVector …".
        FileFormatError: Layers or arrays that no vector can have.
    """
    metadata = {
        "source_format": "repeng",
        "model_hint": str(getattr(other, "model_type", "unknown")),
    }
    return _vector_of(other, "directions", "repeng.ControlVector", metadata)


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
    """Our vector of a ``steering_vectors.SteeringVector``, exact if `to_steering_vectors` made it.

    Raises:
        SteeringError: "… is no steering_vectors.SteeringVector …", or another layer type than
            "decoder_block".
        FileFormatError: Layers or tensors that no vector can have.
    """
    layer_type = getattr(other, "layer_type", _BLOCKS)
    if layer_type != _BLOCKS:
        raise SteeringError(
            f"this vector steers at {layer_type!r}, inside a block; only {_BLOCKS!r} is the "
            "residual stream"
        )
    metadata = {"source_format": "steering-vectors"}
    return _vector_of(other, "layer_activations", "steering_vectors.SteeringVector", metadata)


def _vector_of(
    other: Any, attribute: str, class_name: str, metadata: Mapping[str, Any]
) -> SteeringVector:
    """The vector an object was made from, or that of its shifts if they were changed."""
    shifts = getattr(other, attribute, None)
    if not isinstance(shifts, Mapping):
        raise SteeringError(f"{type(other).__name__} is no {class_name}; it has no {attribute}")
    vector = getattr(other, "steerlens_vector", None)
    if (
        isinstance(vector, SteeringVector)
        and set(vector.layers) == set(shifts)
        and same_shifts(shifts_of(vector), shifts)
    ):
        return vector
    return vector_of_shifts(shifts, f"the {class_name}", metadata)
