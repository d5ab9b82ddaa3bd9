"""Control vectors of llama.cpp: GGUF files with one tensor ``direction.N`` a layer.

**What the file says.** ``general.architecture`` is "controlvector", ``controlvector.model_hint``
names a model family for people, ``controlvector.layer_count`` counts the tensors; each
``direction.N`` is a float32 shift of length d_model. llama.cpp adds it, times the strength given
with ``--control-vector-scaled``, to every token, which is ``add`` with scope ``all`` here. No other
operation and no other scope can be expressed.

**Layer numbers.** llama.cpp adds ``direction.N`` to the output of block *N* counted from 0 (its
``build_cvec(cur, il)`` stands after block *il*), so *N* is our layer. Its loader refuses the whole
file when it finds ``direction.0``, a name of another form, or a type other than float32; layer 0
therefore has no tensor here and stays in the exact record only. repeng 0.4 hooks, reads and
numbers blocks from 0 as well: its ``direction.N`` is the same layer. **Caveat:** llama.cpp's own
``cvector-generator`` writes what it measured behind block *k* as ``direction.{k+1}``, so its files
steer one block behind where they were measured. They are read as llama.cpp applies them.

**Which layers.** llama.cpp adds every direction it finds, at all layers at once, unless it is given
``--control-vector-layer-range L L``. ``write_gguf(…, layers=[L])`` writes one layer only.

**Exact round trips.** Unit directions, gaps, targets, baselines and metadata stand in the header
under ``steerlens.*`` (see `steerlens.vectors.formats.record`), where other readers do not look:
llama.cpp reads no metadata of a control vector, and repeng only the first two above. Extra
*tensors* would not do: llama.cpp refuses a file with one.

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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from steerlens.errors import FileFormatError, SteeringError
from steerlens.files import write_atomically
from steerlens.vectors import SteeringVector
from steerlens.vectors.formats.gguf_header import GgufHeader, GgufTensor, read_header, read_tensor
from steerlens.vectors.formats.record import (
    NUMBERS,
    exact_record,
    parse_json,
    restricted,
    shifts_of,
    vector_of_record,
    vector_of_shifts,
)

__all__ = ["ARCHITECTURE", "read_gguf", "write_gguf"]

ARCHITECTURE = "controlvector"
# llama.cpp reads the number with C's stoi, which takes "5.x" for 5; such names are refused here.
DIRECTION = re.compile(r"direction\.([0-9]{1,6})")
PREFIX = "steerlens."


def write_gguf(
    vector: SteeringVector,
    path: str | Path,
    *,
    layers: Sequence[int] | None = None,
    model_hint: str | None = None,
) -> Path:
    """Write a control vector for llama.cpp, repeng and whatever reads their files.

    Args:
        vector: What to write; its shift g·u at each layer becomes ``direction.N``.
        path: The file, by custom ending in ``.gguf``; written whole or not at all.
        layers: Layers to write; all of the vector's by default. llama.cpp steers at all of them.
        model_hint: Name of the model's family ("llama", "gemma3"); by default the model the
            vector was made for.

    Returns:
        The path.

    Raises:
        SteeringError: "layer … is out of range for this vector …", or the vector has layer 0 only,
            where llama.cpp cannot steer.
        SteerlensError: "cannot write …".
    """
    chosen = restricted(vector, layers)
    shifts = {layer: shift for layer, shift in shifts_of(chosen).items() if layer > 0}
    if not shifts:
        raise SteeringError(
            "layer 0 is all there is to write, and llama.cpp cannot steer the output of block 0; "
            "give a vector with a deeper layer"
        )
    record = exact_record(chosen)
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
    """Read a control vector that this package, repeng, llama.cpp or another tool wrote.

    A file of ours gives back the vector it was written from, bit for bit. From any other file the
    gap of a layer is the norm of its direction, and targets are not known
    (`steerlens.vectors.formats.record`).

    Raises:
        FileFormatError: the file is missing, truncated, damaged, too large, a model, or holds
            tensors that are no directions; one sentence says which.
    """
    source = str(path)
    try:
        with Path(path).open("rb") as file:
            header = read_header(file, source, ARCHITECTURE)
            entries = _directions(header, source)
            # Copied out of the reader's buffer, in float32 only after the checks of the record.
            arrays = {layer: read_tensor(file, one, source) for layer, one in entries.items()}
    except OSError as error:
        raise FileFormatError(f"{source} cannot be read: {error.strerror or error}") from error
    shifts: dict[int, Tensor] = {layer: torch.from_numpy(row) for layer, row in arrays.items()}
    if any(key.startswith(PREFIX) for key in header.fields):
        return vector_of_record(_record(header, source), shifts, source)
    metadata = {
        "source_format": "gguf",
        "model_hint": header.fields.get(f"{ARCHITECTURE}.model_hint"),
    }
    return vector_of_shifts(shifts, source, metadata)


def _directions(header: GgufHeader, source: str) -> dict[int, GgufTensor]:
    """The direction tensors by layer, ascending."""
    found: dict[int, GgufTensor] = {}
    for name, tensor in header.tensors.items():
        match = DIRECTION.fullmatch(name)
        if match is None:
            raise FileFormatError(
                f"{source} holds a tensor {name[:60]!r}; a control vector holds direction.1, "
                "direction.2, … only"
            )
        if int(match[1]) in found:
            raise FileFormatError(f"{source} holds two directions for layer {int(match[1])}")
        if len(tensor.shape) != 1:
            raise FileFormatError(
                f"{source} holds {name} with shape {tensor.shape}; a direction is one row"
            )
        found[int(match[1])] = tensor
    if not found:
        raise FileFormatError(f"{source} is a control vector without directions")
    count = header.fields.get(f"{ARCHITECTURE}.layer_count", len(found))
    # Most tools count the directions; some write the model's depth, which is above every number.
    if count != len(found) and not (isinstance(count, int) and count > max(found)):
        raise FileFormatError(
            f"{source} says it has {count!r} layers, but it holds {len(found)} directions up to "
            f"layer {max(found)}"
        )
    return dict(sorted(found.items()))


def _record(header: GgufHeader, source: str) -> dict[str, Any]:
    """The exact record out of the header's fields, arrays as lists."""
    record = {
        key.removeprefix(PREFIX): value.tolist() if isinstance(value, np.ndarray) else value
        for key, value in header.fields.items()
        if key.startswith(PREFIX)
    }
    if isinstance(record.get("metadata"), str):
        record["metadata"] = parse_json(record["metadata"], f"the steerlens metadata of {source}")
    return record
