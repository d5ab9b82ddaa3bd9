r"""What all exchange formats share: shifts, and the record that makes a round trip exact.

Other tools keep one tensor per layer, the *shift* that they add to the residual stream,

.. math:: s_l = g_l u_l,

which is what ``add`` at strength 1 adds here: the product of gap and direction, without projection
targets. Where a format has room for text, everything else travels beside the shifts as an *exact
record* (`exact_record`): unit directions as base64 of their float32 bytes, the numbers of each
layer, metadata. `vector_of_record` reads it back bit for bit and recomputes the shifts: a file
whose record and tensors disagree was changed by another tool, and is refused.

Without a record (`vector_of_shifts`) the gap is the norm of the shift, so shifts come back to one
unit in the last place. Targets are not known then: baseline 0, target = gap, and metadata with
``"targets_known": False``; use ``add`` or ``ablate``.

>>> import torch
>>> vector = vector_of_shifts({3: torch.tensor([3.0, 4.0])}, "an example", {})
>>> vector.layers, vector.gaps.tolist(), vector.metadata["targets_known"]
((3,), [5.0], False)
"""

import base64
import binascii
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from steerlens.errors import FileFormatError, SteeringError, SteerlensError
from steerlens.vectors import SteeringVector
from steerlens.vectors.consistency import FLOATS, check_tensors

__all__ = [
    "MAX_BYTES",
    "MAX_LAYER",
    "NUMBERS",
    "check_claims",
    "exact_record",
    "parse_json",
    "same_shifts",
    "shifts_of",
    "vector_of_record",
    "vector_of_shifts",
]

NUMBERS = ("gaps", "targets", "baselines")
# Deeper than any model.
MAX_LAYER = 10_000
# Far above any vector, below any model: a thousand layers of width 16,384 in float32 are 64 MiB,
# and their base64 another 85 MiB.
MAX_BYTES = 256 * 2**20
# What torch, base64 and a mapping raise on parts of the wrong kind.
_GARBLED = (KeyError, TypeError, ValueError, RuntimeError, OverflowError, binascii.Error)


def shifts_of(vector: SteeringVector) -> dict[int, Float[Tensor, "d_model"]]:
    """What ``add`` at strength 1 adds at each layer, in float32 on the CPU.

    Raises:
        SteeringError: A vector with read directions, or "… does not fit float32".
    """
    if vector.reads is not None:
        raise SteeringError(
            f"{vector.name} has read directions, which other tools' formats cannot hold; save it "
            "with SteeringVector.save"
        )
    # The product of two float32 is exact in float64, so this rounds once, as `add` itself does.
    product = vector.gaps.detach().cpu().double()[:, None] * vector.directions.detach().cpu()
    shifts = product.float()
    if not bool(torch.isfinite(shifts).all()):
        raise SteeringError("a gap times its direction does not fit float32; scale the vector down")
    return dict(zip(vector.layers, shifts, strict=True))


def vector_of_shifts(
    shifts: Mapping[Any, Any], source: str, metadata: Mapping[str, Any]
) -> SteeringVector:
    """The vector whose ``add`` at strength 1 adds these shifts; layers of zeros are left out.

    Args:
        shifts: One row of numbers (a tensor, an array) by layer, counted from 0.
        source: Where they come from, for messages.
        metadata: Provenance to keep.

    Raises:
        FileFormatError: No layers, layers that no model has, different widths, NaN or infinity, or
            only zeros.
    """
    layers = _checked_layers(shifts, source)
    rows = {layer: _as_shift(shifts[layer], layer, source) for layer in layers}
    widths = sorted({row.shape[0] for row in rows.values()})
    if len(widths) != 1:
        raise FileFormatError(f"{source} holds layers of different widths: {widths}")
    kept: dict[int, tuple[float, Tensor]] = {}
    for layer, row in rows.items():
        if not bool(torch.isfinite(row).all()):
            raise FileFormatError(f"{source} holds NaN or infinity at layer {layer}")
        gap = float(row.double().norm().float())
        if not math.isfinite(gap):
            raise FileFormatError(f"{source} holds numbers at layer {layer} whose norm overflows")
        if gap >= torch.finfo(torch.float32).tiny:
            kept[layer] = gap, (row.double() / gap).float()
    if not kept:
        raise FileFormatError(f"{source} holds nothing but zeros; there is no direction in it")
    gaps = torch.tensor([gap for gap, _ in kept.values()], dtype=torch.float32)
    return SteeringVector(
        directions=torch.stack([direction for _, direction in kept.values()]),
        gaps=gaps,
        targets=gaps.clone(),
        baselines=torch.zeros_like(gaps),
        layers=tuple(kept),
        metadata={"estimator": "imported", **metadata, "targets_known": False},
    )


def exact_record(vector: SteeringVector) -> dict[str, Any]:
    """Everything of a vector as lists, numbers and text.

    Raises:
        SteerlensError: The metadata cannot be written as JSON.
    """
    directions = vector.directions.detach().cpu().float().contiguous().numpy().astype("<f4")
    try:
        metadata = json.loads(json.dumps(dict(vector.metadata)))
    except (TypeError, ValueError, RecursionError) as error:
        raise SteerlensError(
            f"the vector's metadata cannot be written as JSON ({error}); keep text, numbers, lists "
            "and mappings only"
        ) from error
    return {
        "layers": list(vector.layers),
        **{name: getattr(vector, name).detach().cpu().float().tolist() for name in NUMBERS},
        "directions": base64.b64encode(directions.tobytes()).decode("ascii"),
        "metadata": metadata,
    }


def vector_of_record(
    record: Mapping[str, Any], shifts: Mapping[int, Tensor], source: str
) -> SteeringVector:
    """The vector of an exact record, checked against the shifts beside it.

    Args:
        record: As `exact_record` makes it.
        shifts: The shifts of the file. It may lack layers of the record (llama.cpp has no place for
            layer 0), and may not have others.
        source: Where they come from, for messages.

    Raises:
        FileFormatError: "the steerlens record of … lacks or garbles …", or "… does not match its
            tensors …".
    """
    try:
        layers = _checked_layers(record["layers"], source)
        raw = base64.b64decode(record["directions"], validate=True)
        directions = torch.from_numpy(np.frombuffer(raw, dtype="<f4").astype(np.float32))
        if not isinstance(record["metadata"], dict):
            raise TypeError("metadata is not a mapping")
        tensors: dict[str, Any] = {"directions": directions.reshape(len(layers), -1)}
        tensors |= {name: torch.tensor(record[name], dtype=torch.float32) for name in NUMBERS}
        check_tensors(tensors, len(layers))
        vector = SteeringVector(**tensors, layers=layers, metadata=record["metadata"])
    except FileFormatError:
        raise
    except (SteeringError, *_GARBLED) as error:
        raise FileFormatError(
            f"the steerlens record of {source} lacks or garbles a part of the vector: {error}"
        ) from error
    check_claims(vector, source)
    if not same_shifts(shifts_of(vector), shifts):
        raise FileFormatError(
            f"the steerlens record of {source} does not match its tensors; the file was changed by "
            "another tool or damaged, so write it again"
        )
    return vector


def check_claims(vector: SteeringVector, source: str) -> None:
    """Refuse a vector whose layers or metadata contradict its tensors.

    Raises:
        FileFormatError: Layers that no model has or that are there twice; metadata with another
            width, or with fewer layers than the vector names.
    """
    _checked_layers(vector.layers, source)
    width, depth = vector.metadata.get("d_model"), vector.metadata.get("n_layers")
    if width is not None and width != vector.d_model:
        raise FileFormatError(
            f"{source} says d_model {width}, but its directions have {vector.d_model} numbers"
        )
    if depth is not None and (not isinstance(depth, int) or depth <= max(vector.layers)):
        raise FileFormatError(
            f"{source} says its model has {depth} layers, but it holds layer {max(vector.layers)}"
        )


def parse_json(text: str, what: str) -> Any:
    """JSON from a file that may hold anything; `FileFormatError` "… is not JSON: …"."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{what} is not JSON: {error}") from error


def same_shifts(expected: Mapping[int, Tensor], shifts: Mapping[Any, Any]) -> bool:
    """Whether every shift is the expected one, bit for bit."""
    rows = {layer: torch.as_tensor(row).detach().cpu() for layer, row in shifts.items()}
    return set(rows) <= set(expected) and all(
        row.dtype == torch.float32 and torch.equal(expected[layer], row)
        for layer, row in rows.items()
    )


def _as_shift(values: Any, layer: int, source: str) -> Float[Tensor, "d_model"]:
    """One layer's shift as float32, from a tensor or array of one row."""
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


def _checked_layers(layers: Iterable[Any], source: str) -> tuple[int, ...]:
    """Layer numbers that a model can have, each once."""
    numbers = tuple(layers)
    if not numbers:
        raise FileFormatError(f"{source} holds no layers")
    for layer in numbers:
        if not isinstance(layer, int) or isinstance(layer, bool) or not 0 <= layer <= MAX_LAYER:
            raise FileFormatError(f"{source} names layer {layer!r}, which no model has")
    if len(set(numbers)) != len(numbers):
        raise FileFormatError(f"{source} names a layer twice")
    return numbers
