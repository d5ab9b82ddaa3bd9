r"""What all exchange formats share: shifts, and the record that makes a round trip exact.

Other tools keep one tensor a layer, the *shift* that they add to the residual stream,

.. math:: s_l = g_l u_l,

which is what ``add`` at strength 1 adds here. A shift says less than a `SteeringVector` does: the
projection targets are gone, and of gap and direction only the product is left. So where a format
has room for text, everything else travels as an *exact record* beside the shifts (`exact_record`):
unit directions as the base64 of their float32 bytes, the numbers of each layer, metadata. Reading
it back (`vector_of_record`) gives the same vector bit for bit, and recomputes the shifts: a file
whose record and tensors disagree was changed by something that knew only one of them, and is
refused.

Without a record (`vector_of_shifts`) the gap is the shift's norm and the direction the shift over
that gap. Both are rounded to float32, so their product is the shift to one unit in the last place.
Targets are not known then: they are set as if the uninstructed side projected to zero
(baseline 0, target = gap), and the metadata say ``"targets_known": False``. ``add`` and ``ablate``
need no target.

>>> import torch
>>> vector = vector_of_shifts({3: torch.tensor([3.0, 4.0])}, "an example", {})
>>> vector.layers, vector.gaps.tolist(), vector.metadata["targets_known"]
((3,), [5.0], False)
"""

import base64
import binascii
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steerlens.errors import FileFormatError, SteeringError, SteerlensError
from steerlens.vectors import SteeringVector

__all__ = [
    "as_shift",
    "attach_vector",
    "attached_vector",
    "check_claims",
    "exact_record",
    "parse_json",
    "restricted",
    "shifts_of",
    "vector_of_record",
    "vector_of_shifts",
]

NUMBERS = ("gaps", "targets", "baselines")
# Deeper than any model; a file that names layer 10^9 lies.
MAX_LAYER = 10_000
# What torch, base64 and a mapping raise on parts of the wrong kind.
_GARBLED = (KeyError, TypeError, ValueError, RuntimeError, OverflowError, binascii.Error)
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def restricted(vector: SteeringVector, layers: Sequence[int] | None) -> SteeringVector:
    """The vector with some of its layers only; all of them for None.

    Raises:
        SteeringError: "layer 40 is out of range for this vector …", or no layers.
    """
    if layers is None:
        return vector
    if not layers:
        raise SteeringError("layers is empty; give at least one layer of the vector, or None")
    rows = [vector.layer_index(layer) for layer in layers]
    return SteeringVector(
        directions=vector.directions[rows],
        gaps=vector.gaps[rows],
        targets=vector.targets[rows],
        baselines=vector.baselines[rows],
        layers=tuple(layers),
        metadata=vector.metadata,
    )


def shifts_of(vector: SteeringVector) -> dict[int, Float[Tensor, "d_model"]]:
    """What ``add`` at strength 1 adds at each layer, in float32 on the CPU.

    Raises:
        SteeringError: "… does not fit float32" when a gap times its direction overflows.
    """
    # The product of two float32 is exact in float64, so this rounds once, as `add` itself does.
    product = vector.gaps.detach().cpu().double()[:, None] * vector.directions.detach().cpu()
    shifts = product.float()
    if not bool(torch.isfinite(shifts).all()):
        raise SteeringError("a gap times its direction does not fit float32; scale the vector down")
    return dict(zip(vector.layers, shifts, strict=True))


def as_shift(values: Any, layer: int, source: str) -> Float[Tensor, "d_model"]:
    """One layer's shift as float32, from a tensor or array of one row.

    Raises:
        FileFormatError: "… holds … for layer 3; expected d_model floating-point numbers".
    """
    try:
        tensor = torch.as_tensor(values).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise FileFormatError(
            f"{source} holds a {type(values).__name__} for layer {layer}; expected d_model numbers"
        ) from error
    if tensor.ndim == 2 and tensor.shape[0] == 1:
        tensor = tensor[0]
    if tensor.ndim != 1 or not tensor.numel() or tensor.dtype not in FLOATS:
        raise FileFormatError(
            f"{source} holds {tensor.dtype} of shape {tuple(tensor.shape)} for layer {layer}; "
            "expected d_model floating-point numbers"
        )
    return tensor.float().clone()


def vector_of_shifts(
    shifts: Mapping[Any, Any], source: str, metadata: Mapping[str, Any]
) -> SteeringVector:
    """The vector whose ``add`` at strength 1 adds these shifts.

    A layer whose shift is zero has no direction and is left out.

    Args:
        shifts: One row of numbers (a tensor, an array) by layer, counted from 0.
        source: What they came from, for messages.
        metadata: Provenance to keep; ``estimator`` defaults to "imported".

    Raises:
        FileFormatError: no layers, layers that no model has, different widths, NaN or infinity, or
            nothing but zeros.
    """
    rows = {layer: as_shift(shifts[layer], layer, source) for layer in _checked(shifts, source)}
    widths = sorted({row.shape[0] for row in rows.values()})
    if len(widths) != 1:
        raise FileFormatError(f"{source} holds layers of different widths: {widths}")
    kept, gaps, directions = [], [], []
    for layer, row in rows.items():
        if not bool(torch.isfinite(row).all()):
            raise FileFormatError(f"{source} holds NaN or infinity at layer {layer}")
        gap = float(row.double().norm().float())
        if not math.isfinite(gap):
            raise FileFormatError(f"{source} holds numbers at layer {layer} whose norm overflows")
        if gap >= torch.finfo(torch.float32).tiny:
            kept.append(layer)
            gaps.append(gap)
            directions.append((row.double() / gap).float())
    if not kept:
        raise FileFormatError(f"{source} holds nothing but zeros; there is no direction in it")
    norms = torch.tensor(gaps, dtype=torch.float32)
    return SteeringVector(
        directions=torch.stack(directions),
        gaps=norms,
        targets=norms.clone(),
        baselines=torch.zeros(len(kept), dtype=torch.float32),
        layers=tuple(kept),
        metadata={"estimator": "imported", **metadata, "targets_known": False},
    )


def exact_record(vector: SteeringVector) -> dict[str, Any]:
    """Everything of a vector as plain data: lists, numbers and text.

    Raises:
        SteerlensError: the metadata cannot be written as JSON.
    """
    directions = vector.directions.detach().cpu().float().contiguous().numpy().astype("<f4")
    try:
        metadata = json.loads(json.dumps(dict(vector.metadata)))
    except (TypeError, ValueError, RecursionError) as error:
        raise SteerlensError(
            f"the vector's metadata cannot be written as JSON ({error}); keep text, numbers, lists "
            "and mappings only"
        ) from error
    numbers = {name: getattr(vector, name).detach().cpu().float().tolist() for name in NUMBERS}
    return {
        "layers": list(vector.layers),
        **numbers,
        "directions": base64.b64encode(directions.tobytes()).decode("ascii"),
        "metadata": metadata,
    }


def vector_of_record(
    record: Mapping[str, Any], shifts: Mapping[int, Tensor], source: str
) -> SteeringVector:
    """The vector of an exact record, checked against the shifts that stand beside it.

    Args:
        record: As `exact_record` makes it.
        shifts: The shifts of the file. Layers of the record may be missing from them (llama.cpp
            has no place for layer 0), others may not be there.
        source: What they came from, for messages.

    Raises:
        FileFormatError: "the steerlens record of … lacks or garbles …", or "… does not match its
            tensors …".
    """
    try:
        layers = _checked(dict.fromkeys(record["layers"]), source)
        if len(layers) != len(record["layers"]):
            raise ValueError("a layer stands there twice")
        raw = base64.b64decode(record["directions"], validate=True)
        directions = torch.from_numpy(np.frombuffer(raw, dtype="<f4").astype(np.float32))
        metadata = record["metadata"]
        if not isinstance(metadata, dict):
            raise TypeError("metadata is no mapping")
        numbers: dict[str, Any] = {
            name: torch.tensor(record[name], dtype=torch.float32) for name in NUMBERS
        }
        for name, values in numbers.items():
            if values.shape != (len(layers),):
                raise ValueError(f"{name} must hold one number for each of {len(layers)} layers")
        vector = SteeringVector(
            directions=directions.reshape(len(layers), -1),
            **numbers,
            layers=layers,
            metadata=metadata,
        )
    except FileFormatError:
        raise
    except (SteeringError, *_GARBLED) as error:
        raise FileFormatError(
            f"the steerlens record of {source} lacks or garbles a part of the vector: {error}"
        ) from error
    check_claims(vector, source)
    expected = shifts_of(vector)
    if not _same(expected, shifts):
        raise FileFormatError(
            f"the steerlens record of {source} does not match its tensors; the file was changed by "
            "another tool or damaged, so write it again"
        )
    return vector


def check_claims(vector: SteeringVector, source: str) -> None:
    """Refuse a vector whose layers or metadata contradict its tensors.

    Raises:
        FileFormatError: layers that no model has or that stand there twice; metadata with another
            width, or with fewer layers than the vector names.
    """
    if len(_checked(dict.fromkeys(vector.layers), source)) != len(vector.layers):
        raise FileFormatError(f"{source} names a layer twice")
    width, depth = vector.metadata.get("d_model"), vector.metadata.get("n_layers")
    if width is not None and width != vector.d_model:
        raise FileFormatError(
            f"{source} says d_model {width}, but its directions have {vector.d_model} numbers"
        )
    if depth is not None and (not isinstance(depth, int) or depth <= max(vector.layers)):
        raise FileFormatError(
            f"{source} says its model has {depth} layers, but it holds layer {max(vector.layers)}"
        )


def attach_vector(holder: Any, vector: SteeringVector) -> Any:
    """Leave the vector on another library's object that was made from it; returns the object."""
    holder.steerlens_vector = vector
    return holder


def attached_vector(holder: Any, shifts: Mapping[Any, Any]) -> SteeringVector | None:
    """The vector `attach_vector` left on an object, unless its shifts have been changed since."""
    vector = getattr(holder, "steerlens_vector", None)
    if not isinstance(vector, SteeringVector) or set(vector.layers) != set(shifts):
        return None
    return vector if _same(shifts_of(vector), shifts) else None


def parse_json(text: str, what: str) -> Any:
    """JSON from a file that may hold anything.

    Raises:
        FileFormatError: "… is not JSON: …"; nesting deeper than Python's stack counts as well.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{what} is not JSON: {error}") from error


def _same(expected: Mapping[int, Tensor], found: Mapping[Any, Any]) -> bool:
    """Whether every shift found is the expected one, bit for bit."""
    rows = {layer: torch.as_tensor(row).detach().cpu() for layer, row in found.items()}
    return set(rows) <= set(expected) and all(
        row.dtype == torch.float32 and torch.equal(expected[layer], row)
        for layer, row in rows.items()
    )


def _checked(layers: Mapping[Any, Any], source: str) -> tuple[int, ...]:
    """Layer numbers in their order, after the door check."""
    if not layers:
        raise FileFormatError(f"{source} holds no layers")
    for layer in layers:
        if not isinstance(layer, int) or isinstance(layer, bool) or not 0 <= layer <= MAX_LAYER:
            raise FileFormatError(f"{source} names layer {layer!r}, which no model has")
    return tuple(layers)
