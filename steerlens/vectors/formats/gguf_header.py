"""The header of a GGUF file, read so that nothing it says is believed before it is checked.

A GGUF file begins with counts and lengths, and a reader that follows them can be led anywhere: the
``gguf`` package's `GGUFReader` loops as often as an array claims to be long, also past the end of
the file, where numpy slices are empty and nothing stops it (gguf 0.19, given a file of 128 bytes
that claims 2^40 numbers, was still at it when it was stopped after 15 s). So the header is read
here, against the size of the file:

- a length is compared with the bytes that are left before anything is read or allocated;
- counts are bounded by what could fit into those bytes;
- arrays of arrays, which no tool writes, are refused;
- a tensor's place must lie within the file, and the tensors together within the file's size.

Layout (little-endian): magic ``GGUF``, version (uint32), number of tensors and of key-value pairs
(uint64); the pairs (key, type, value); the tensors (name, number of dimensions, dimensions
innermost first, type, offset); padding to ``general.alignment``; the tensors' bytes. Source:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 3; version 2 has the same
layout).
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float

from steerlens.errors import FileFormatError

__all__ = ["GgufHeader", "GgufTensor", "read_header", "read_tensor"]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
# Value types of the format, by number, that have a fixed size.
SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
STRING, ARRAY = 8, 9
# Tensor types, by number, that hold plain floating-point numbers.
FLOATS = {0: "<f4", 1: "<f2", 28: "<f8"}
# Far above any control vector: a thousand layers of width 16,384 in float32 are 64 MiB, and their
# base64 another 85 MiB.
MAX_BYTES = 256 * 2**20
MAX_ITEMS = 2**20
MAX_DIMENSIONS = 4


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor stands.

    Attributes:
        name: As in the file.
        shape: Outermost first, as numpy counts.
        kind: The format's number for its type; 0 is float32.
        offset: Bytes from the beginning of the file.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says of itself.

    Attributes:
        fields: Metadata by key: numbers, booleans, text, arrays (numpy), lists of text.
        tensors: By name, in the file's order.
    """

    fields: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def read_header(file: BinaryIO, source: str, architecture: str) -> GgufHeader:
    """The header of a GGUF file of one architecture.

    Args:
        file: Opened for reading bytes, at any place.
        source: What the file is called in messages.
        architecture: What ``general.architecture`` must be; another one is refused as soon as it
            is seen, before the word list of a model's tokenizer is read.

    Raises:
        FileFormatError: "… is truncated …", "… is a GGUF file of version …", "… holds a model …".
    """
    try:
        return _Header(file, source).read(architecture)
    except OSError as error:
        raise FileFormatError(f"{source} cannot be read: {error.strerror or error}") from error


def read_tensor(file: BinaryIO, tensor: GgufTensor, source: str) -> Float[np.ndarray, "..."]:
    """The numbers of a tensor that `read_header` found, as float32, float16 or float64.

    Raises:
        FileFormatError: "… is stored in a type …" for quantised and integer tensors.
    """
    dtype = np.dtype(_float_type(tensor, source))
    file.seek(tensor.offset)
    raw = file.read(math.prod(tensor.shape) * dtype.itemsize)
    if len(raw) != math.prod(tensor.shape) * dtype.itemsize:
        raise FileFormatError(f"{source} is truncated within the tensor {tensor.name!r}")
    # In the byte order of this machine, and writable.
    return np.frombuffer(raw, dtype=dtype).reshape(tensor.shape).astype(dtype.newbyteorder("="))


class _Header:
    """One reading of one header; counts what is left of the file."""

    def __init__(self, file: BinaryIO, source: str) -> None:
        self.file, self.source = file, source
        self.size = file.seek(0, 2)
        self.left = self.size
        file.seek(0)

    def read(self, architecture: str) -> GgufHeader:
        if self.take(4, "magic") != MAGIC:
            raise FileFormatError(f"{self.source} is not a GGUF file; it begins otherwise")
        version = self.number("<I", "version")
        if version not in VERSIONS:
            raise FileFormatError(
                f"{self.source} is a GGUF file of version {version}; versions 2 and 3, "
                "little-endian, can be read"
            )
        n_tensors = self.count(24, "number of tensors")
        n_fields = self.count(13, "number of metadata")
        fields: dict[str, Any] = {}
        for _ in range(n_fields):
            key = self.text("metadata key")
            value = self.value(self.number("<I", key), key)
            if key in fields:
                raise FileFormatError(f"{self.source} holds the metadata {key!r} twice")
            fields[key] = value
            if key == "general.architecture":
                self.check_architecture(value, architecture)
        if "general.architecture" not in fields:
            raise FileFormatError(f"{self.source} does not say what it holds (no architecture)")
        entries = [self.tensor() for _ in range(n_tensors)]
        return GgufHeader(fields, self.placed(entries, fields.get("general.alignment", 32)))

    def check_architecture(self, found: Any, wanted: str) -> None:
        if found != wanted:
            raise FileFormatError(
                f"{self.source} holds a model or adapter of architecture {str(found)[:60]!r}, not "
                "a control vector; a model is loaded with `load_model`"
            )
        if self.size > MAX_BYTES:
            raise FileFormatError(
                f"{self.source} has {self.size / 2**20:.0f} MiB; no control vector is larger than "
                f"{MAX_BYTES // 2**20}"
            )

    def take(self, n_bytes: int, what: str) -> bytes:
        """The next bytes; refused when the file has not that many left."""
        if n_bytes > self.left:
            raise FileFormatError(
                f"{self.source} is truncated or lies about a length: {what[:60]!r} needs {n_bytes} "
                f"bytes, {self.left} are left"
            )
        self.left -= n_bytes
        raw = self.file.read(n_bytes)
        if len(raw) != n_bytes:
            raise FileFormatError(f"{self.source} became shorter while it was read")
        return raw

    def number(self, form: str, what: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form), what))[0]

    def count(self, least_bytes: int, what: str) -> int:
        """A number of items, each of which takes at least so many bytes."""
        found = int(self.number("<Q", what))
        if found * least_bytes > self.left or found > MAX_ITEMS:
            raise FileFormatError(
                f"{self.source} is truncated or lies about the {what}: {found} do not fit into "
                f"the {self.left} bytes that are left"
            )
        return found

    def text(self, what: str) -> str:
        raw = self.take(self.number("<Q", what), what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise FileFormatError(
                f"{self.source} is damaged: {what[:60]!r} is not UTF-8 text"
            ) from error

    def value(self, kind: int, key: str) -> Any:
        if kind == STRING:
            return self.text(key)
        if kind in SCALARS:
            return self.array(SCALARS[kind], 1, key)[0].item()
        if kind != ARRAY:
            raise FileFormatError(f"{self.source} is damaged: {key[:60]!r} has no known type")
        item = self.number("<I", key)
        if item == STRING:
            return [self.text(key) for _ in range(self.count(8, f"length of {key}"))]
        if item not in SCALARS:
            raise FileFormatError(
                f"{self.source} is damaged: {key[:60]!r} is an array of no known type"
            )
        return self.array(SCALARS[item], int(self.number("<Q", key)), key)

    def array(self, form: str, length: int, key: str) -> Any:
        return np.frombuffer(self.take(length * np.dtype(form).itemsize, key), dtype=form)

    def tensor(self) -> GgufTensor:
        name = self.text("tensor name")
        n_dimensions = self.number("<I", name)
        if n_dimensions > MAX_DIMENSIONS:
            raise FileFormatError(
                f"{self.source} is damaged: the tensor {name[:60]!r} has {n_dimensions} dimensions"
            )
        sizes = [self.number("<Q", name) for _ in range(n_dimensions)]
        kind, offset = self.number("<I", name), self.number("<Q", name)
        return GgufTensor(name, tuple(reversed(sizes)), kind, offset)

    def placed(self, entries: list[GgufTensor], alignment: Any) -> dict[str, GgufTensor]:
        """The tensors by name, their offsets counted from the beginning of the file."""
        power_of_two = isinstance(alignment, int) and alignment > 0
        if not power_of_two or alignment & (alignment - 1):
            raise FileFormatError(f"{self.source} is damaged: its alignment is {alignment!r}")
        start = -(-(self.size - self.left) // alignment) * alignment
        placed: dict[str, GgufTensor] = {}
        total = 0
        for entry in entries:
            n_bytes = math.prod(entry.shape) * np.dtype(_float_type(entry, self.source)).itemsize
            total += n_bytes
            if start + entry.offset + n_bytes > self.size or total > self.size:
                raise FileFormatError(
                    f"{self.source} is truncated or lies about a shape: the tensor "
                    f"{entry.name[:60]!r} of shape {entry.shape} reaches beyond the file's end"
                )
            if entry.name in placed:
                raise FileFormatError(f"{self.source} holds the tensor {entry.name!r} twice")
            placed[entry.name] = GgufTensor(
                entry.name, entry.shape, entry.kind, start + entry.offset
            )
        return placed


def _float_type(tensor: GgufTensor, source: str) -> str:
    if tensor.kind not in FLOATS:
        raise FileFormatError(
            f"{source} stores the tensor {tensor.name[:60]!r} in a type that is not plain "
            f"floating-point (number {tensor.kind}); a control vector is float32"
        )
    return FLOATS[tensor.kind]
