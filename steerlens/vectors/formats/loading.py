"""One entrance for vectors from anywhere: `load_vector` looks at the bytes, not at the file's name.

=====================  =============================================================================
begins with            is
=====================  =============================================================================
``GGUF``               a control vector (`steerlens.vectors.formats.gguf`); a model is refused
a safetensors header   our own file, or a plain one (`steerlens.vectors.formats.plain`)
``PK``, ``\\x80``       a zip archive or a pickle, as ``torch.save`` and numpy write them: refused,
                       because reading them can run code
=====================  =============================================================================

The hash is verified first where there is an index (`steerlens.vectors.formats.index`). Sizes and
shapes are checked against the file before anything is allocated.
"""

import math
import struct
from pathlib import Path

from transformer_lens.model_bridge import TransformerBridge

from steerlens.errors import FileFormatError
from steerlens.files import HEADER_KEY
from steerlens.steering.operations import GENERAL
from steerlens.vectors import SteeringVector
from steerlens.vectors.formats.gguf import read_gguf
from steerlens.vectors.formats.index import verify_file
from steerlens.vectors.formats.plain import PLAIN_KIND, read_header_of_tensors, read_plain
from steerlens.vectors.formats.record import MAX_BYTES, MAX_LAYER, check_claims, parse_json

__all__ = ["load_vector", "usual_operation", "vector_format"]

_KNOWN = "a steerlens vector, a control vector (GGUF), or plain safetensors"
_RUN_CODE = {
    b"PK\x03\x04": "a zip archive, as torch.save and numpy.savez write it",
    b"\x80": "a pickle",
    b"\x93NUMPY": "a numpy file",
}


def load_vector(
    path: str | Path, model: TransformerBridge | None = None, *, layer: int | None = None
) -> SteeringVector:
    """Read a steering vector in any known format.

    Args:
        path: The file.
        model: Refuse the vector unless it fits this model's width and depth.
        layer: The layer of a plain file that holds one tensor and does not say for which.

    Returns:
        The vector. Files of other tools have no projection targets: their metadata say
        ``"targets_known": False``, and ``add`` and ``ablate`` are the operations to use.

    Raises:
        FileFormatError: The file is missing, damaged, a model, a pickle, of an unknown format, or
            not the one that the index beside it lists.
        SteeringError: "this vector has d_model 576, the model 640 …", and so for layers.
    """
    kind = vector_format(path)
    verify_file(path)
    if layer is not None and kind != "plain":
        raise FileFormatError(f"{path} says itself for which layers it is; leave out layer=…")
    if kind == "gguf":
        vector = read_gguf(path)
    elif kind == "plain":
        vector = read_plain(path, layer)
    else:
        vector = _read_own(path)
    check_claims(vector, str(path))
    if model is not None:
        vector.check_model(model)
    return vector


def usual_operation(vector: SteeringVector) -> str:
    """The operation a vector is made for: by its parts, to its targets, or else by adding."""
    if vector.reads is not None:
        return GENERAL
    return "add" if vector.metadata.get("targets_known") is False else "set_projection"


def vector_format(path: str | Path) -> str:
    """ "steerlens", "gguf" or "plain", by the file's content.

    Raises:
        FileFormatError: There is no such file, or it is none of these.
    """
    path = Path(path)
    if path.is_dir():
        raise FileFormatError(f"{path} is a folder; give one of the files in it")
    if not path.is_file():
        raise FileFormatError(f"no file at {path}; expected {_KNOWN}")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise FileFormatError(
            f"{path} cannot be read ({error.strerror}); expected {_KNOWN}"
        ) from error
    if start.startswith(b"GGUF"):
        return "gguf"
    # safetensors: eight bytes with the header's length, which fits the file, and its brace.
    if len(start) >= 10 and 2 <= struct.unpack("<Q", start[:8])[0] <= size - 8 and start[8] == 0x7B:
        header, _ = read_header_of_tensors(path)
        if HEADER_KEY not in header:
            return "plain"
        record = parse_json(header[HEADER_KEY], f"the steerlens record of {path}")
        kind = record.get("kind") if isinstance(record, dict) else None
        return "plain" if kind == PLAIN_KIND else "steerlens"
    for magic, what in _RUN_CODE.items():
        if start.startswith(magic):
            raise FileFormatError(
                f"{path} is {what}, and reading such a file can run code; write its tensors with "
                "safetensors first"
            )
    raise FileFormatError(
        f"{path} begins with {start[:8]!r}, which is no known format; give {_KNOWN}"
    )


def _read_own(path: str | Path) -> SteeringVector:
    """A file of `SteeringVector.save`, after a look at its size."""
    size = Path(path).stat().st_size
    _, shapes = read_header_of_tensors(path)
    # The layer numbers become Python objects one by one, so their count is checked before.
    if size > MAX_BYTES or math.prod(shapes.get("layers", (1,))) > MAX_LAYER:
        raise FileFormatError(
            f"{path} has {size / 2**20:.0f} MiB and layers of shape {shapes.get('layers')}; no "
            "steering vector is that large"
        )
    return SteeringVector.load(path)
