"""Control vectors of `repeng`, both ways.

``repeng.ControlVector`` holds ``directions``, an array for each layer counted from 0, and
``ControlModel.set_control`` adds them, times a coefficient, to the outputs of those blocks: read in
repeng 0.4.0, where the number of a layer is its index in the model's list of blocks, for training
(``hidden_states[layer + 1]``), for control, and in the names ``direction.N`` of its GGUF files. So
a direction is our shift g·u at the same layer. Vectors that repeng has trained are unit vectors
whose strength is the coefficient; here their gap is 1.

**Caveats.** repeng's own training leaves out block 0, and its direction for the last block is
fitted behind the final norm (the last of Hugging Face's ``hidden_states``) although it is applied
in front of it. ``set_control`` needs a direction for every layer of its ``ControlModel``. repeng
0.4.0 needs numpy 1; files can be exchanged without it (`steerlens.vectors.formats.gguf`).
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

__all__ = ["from_repeng", "to_repeng"]


def to_repeng(
    vector: SteeringVector, layers: Sequence[int] | None = None, model_type: str | None = None
) -> Any:
    """A ``repeng.ControlVector`` that adds, at coefficient 1, what ``add`` at strength 1 adds.

    Args:
        vector: The vector.
        layers: Layers to hand over; all by default.
        model_type: repeng's name of the model's family ("llama"); by default the model the vector
            was made for. repeng compares it when it adds two vectors.

    Raises:
        SteeringError: "layer … is out of range for this vector …".
        SteerlensError: "repeng cannot be imported …".
    """
    chosen = restricted(vector, layers)
    try:
        library = importlib.import_module("repeng")
    # AttributeError: 0.4.0 names numpy.float_, which numpy 2 has no more.
    except (ImportError, AttributeError) as error:
        raise SteerlensError(
            f"repeng cannot be imported ({error}); run `pip install repeng 'numpy<2'`, or write a "
            "GGUF file, which it reads"
        ) from error
    made = library.ControlVector(
        model_type=model_type or str(vector.metadata.get("model", "unknown")),
        directions={layer: shift.numpy() for layer, shift in shifts_of(chosen).items()},
    )
    return attach_vector(made, chosen)


def from_repeng(other: Any) -> SteeringVector:
    """Our vector of a ``repeng.ControlVector``, exact if `to_repeng` made it.

    Raises:
        SteeringError: "… is no repeng.ControlVector …".
        FileFormatError: layers or arrays that no vector can have.
    """
    directions = getattr(other, "directions", None)
    if not isinstance(directions, Mapping):
        raise SteeringError(
            f"{type(other).__name__} is no repeng.ControlVector; it has no directions by layer"
        )
    exact = attached_vector(other, directions)
    if exact is not None:
        return exact
    hint = str(getattr(other, "model_type", "unknown"))
    metadata = {"source_format": "repeng", "model_hint": hint}
    return vector_of_shifts(directions, "the repeng.ControlVector", metadata)
