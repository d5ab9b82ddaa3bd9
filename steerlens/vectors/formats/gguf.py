"""Control vectors of llama.cpp: GGUF files with one tensor ``direction.N`` per layer.

``general.architecture`` is "controlvector", ``controlvector.model_hint`` names a model family,
``controlvector.layer_count`` counts the tensors; each ``direction.N`` is a float32 shift of length
d_model. llama.cpp adds it, times the strength given with ``--control-vector-scaled``, to every
token: ``add`` with scope ``all``.

**Layer numbers.** llama.cpp adds ``direction.N`` to the output of block *N* counted from 0
(``build_cvec(cur, il)`` stands after block *il*), as repeng 0.4 does, so *N* is our layer. It
refuses a file with ``direction.0``, another tensor, or another type than float32, so layer 0 stays
in the exact record only. **Caveat:** llama.cpp's ``cvector-generator`` writes what it measured
behind block *k* as ``direction.{k+1}``; its files are read as llama.cpp applies them.

**Which layers.** llama.cpp steers at all layers of a file, unless it is given
``--control-vector-layer-range L L``. ``write_gguf(…, layers=[L])`` writes one layer only.

**Exact round trips.** The exact record (`steerlens.vectors.formats.record`) stands in the metadata
under ``steerlens.*``, which llama.cpp and repeng do not read.

>>> import tempfile, torch
>>> from steerlens.vectors.formats.record import vector_of_shifts
>>> vector = vector_of_shifts({0: torch.ones(4), 2: torch.arange(4.0)}, "an example", {})
>>> with tempfile.TemporaryDirectory() as folder:
...     path = write_gguf(vector, f"{folder}/v.gguf", model_hint="llama")
...     again = read_gguf(path)
>>> again.layers, torch.equal(again.directions, vector.directions)
((0, 2), True)
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from steerlens.errors import FileFormatError, SteeringError, first_line
from steerlens.files import write_atomically
from steerlens.files.gguf import checked_reader
from steerlens.vectors import SteeringVector
from steerlens.vectors.formats.record import (
    MAX_BYTES,
    NUMBERS,
    exact_record,
    parse_json,
    shifts_of,
    vector_of_record,
    vector_of_shifts,
)

__all__ = ["ARCHITECTURE", "read_gguf", "write_gguf"]

ARCHITECTURE = "controlvector"
# llama.cpp reads the number with C's stoi, which takes "5.x" for 5; such names are refused here.
DIRECTION = re.compile(r"direction\.([0-9]{1,6})")
PREFIX = "steerlens."
FLOAT_TYPES = ("F32", "F16", "F64")


def write_gguf(
    vector: SteeringVector,
    path: str | Path,
    *,
    layers: Sequence[int] | None = None,
    model_hint: str | None = None,
) -> Path:
    """Write a control vector for llama.cpp and repeng, atomically.

    Args:
        vector: The vector; its shift g·u at each layer becomes ``direction.N``.
        path: The file.
        layers: Layers to write; all of the vector's by default.
        model_hint: The model's family ("llama", "gemma3"); by default the vector's model.

    Raises:
        SteeringError: "layer … is out of range for this vector …", or the vector has layer 0 only,
            where llama.cpp cannot steer.
        SteerlensError: "cannot write …".
    """
    vector = vector if layers is None else vector.restricted_to(layers)
    shifts = {layer: shift for layer, shift in shifts_of(vector).items() if layer > 0}
    if not shifts:
        raise SteeringError(
            "layer 0 is all there is to write, and llama.cpp cannot steer the output of block 0; "
            "give a vector with a deeper layer"
        )
    record = exact_record(vector)
    hint = model_hint if model_hint is not None else vector.metadata.get("model", "unknown")

    def write(temporary: Path) -> None:
        writer = gguf.GGUFWriter(temporary, ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", str(hint))
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(shifts))
        writer.add_array(f"{PREFIX}layers", record["layers"])
        for name in NUMBERS:
            writer.add_array(f"{PREFIX}{name}", record[name])
        writer.add_string(f"{PREFIX}directions", record["directions"])
        writer.add_string(f"{PREFIX}metadata", json.dumps(record["metadata"], sort_keys=True))
        for layer, shift in shifts.items():
            writer.add_tensor(f"direction.{layer}", shift.numpy())
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()

    return write_atomically(path, write)


def read_gguf(path: str | Path) -> SteeringVector:
    """Read a control vector; one of ours comes back bit for bit.

    Raises:
        FileFormatError: The file is missing, truncated, damaged, too large, a model, or holds
            tensors that are no directions.
    """
    source = str(path)
    reader = checked_reader(path, architecture=ARCHITECTURE, max_bytes=MAX_BYTES)
    try:
        fields = {
            name: field.contents()
            for name, field in reader.fields.items()
            if name.startswith((ARCHITECTURE, PREFIX))
        }
    except (ValueError, IndexError) as error:
        raise FileFormatError(f"{source} is damaged: {first_line(error)}") from error
    shifts = _directions(reader.tensors, source)
    count = fields.get(f"{ARCHITECTURE}.layer_count", len(shifts))
    # Most tools count the directions; some write the model's depth, which is above every number.
    if count != len(shifts) and not (isinstance(count, int) and count > max(shifts)):
        raise FileFormatError(
            f"{source} says it has {count!r} layers, but it holds {len(shifts)} directions up to "
            f"layer {max(shifts)}"
        )
    record = {
        name.removeprefix(PREFIX): value
        for name, value in fields.items()
        if name.startswith(PREFIX)
    }
    if record:
        if isinstance(record.get("metadata"), str):
            what = f"the steerlens metadata of {source}"
            record["metadata"] = parse_json(record["metadata"], what)
        return vector_of_record(record, shifts, source)
    hint = fields.get(f"{ARCHITECTURE}.model_hint")
    return vector_of_shifts(shifts, source, {"source_format": "gguf", "model_hint": hint})


def _directions(tensors: Iterable[Any], source: str) -> dict[int, Tensor]:
    """The direction tensors by layer, ascending."""
    shifts: dict[int, Tensor] = {}
    for tensor in tensors:
        match = DIRECTION.fullmatch(tensor.name)
        if match is None:
            raise FileFormatError(
                f"{source} holds a tensor {tensor.name[:60]!r}; a control vector holds "
                "direction.1, direction.2, … only"
            )
        layer = int(match[1])
        if layer in shifts:
            raise FileFormatError(f"{source} holds two directions for layer {layer}")
        if tensor.tensor_type.name not in FLOAT_TYPES:
            raise FileFormatError(
                f"{source} stores the tensor {tensor.name!r} in a type that is not plain "
                f"floating-point ({tensor.tensor_type.name}); a control vector is float32"
            )
        if tensor.data.ndim != 1:
            raise FileFormatError(
                f"{source} holds {tensor.name} with shape {tensor.data.shape}; a direction is one "
                "row"
            )
        shifts[layer] = torch.from_numpy(np.array(tensor.data))
    if not shifts:
        raise FileFormatError(f"{source} is a control vector without directions")
    return dict(sorted(shifts.items()))
