"""GGUF files, read by the `gguf` package once no length in their header can lead it astray.

`gguf.GGUFReader` believes what a file claims: given 128 bytes that claim an array of 2^40 numbers,
gguf 0.19 was still looping after 15 s. `checked_reader` first walks through the header and compares
every count, length, shape and offset with the bytes that are left. Layout: magic ``GGUF``, version,
number of tensors and of metadata; the metadata (key, type, value); the tensors (name, dimensions,
type, offset); padding; the tensors' bytes
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3).
"""

import math
import struct
from pathlib import Path
from typing import BinaryIO

import gguf

from steerlens.errors import FileFormatError, first_line

__all__ = ["check_header", "checked_reader"]

# Bytes of the format's value types of a fixed size, by number (uint8, int8, uint16, …).
_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = gguf.GGUFValueType.STRING, gguf.GGUFValueType.ARRAY
_MAX_DIMENSIONS = 4
# The reader loops over the items of arrays, at some microseconds and 200 bytes each. The largest
# word lists have about a million entries, in up to four arrays.
_MAX_ITEMS = 2**22


def check_header(
    path: str | Path,
    name: str | None = None,
    *,
    architecture: str | None = None,
    max_bytes: int | None = None,
) -> None:
    """Refuse a file that is no GGUF file, or whose header claims more than the file holds.

    Args:
        path: The file.
        name: What it is called in messages; the path by default.
        architecture: What ``general.architecture`` must be. Another one is refused as soon as it is
            read, before the word list of a model's tokenizer.
        max_bytes: Size above which a file of this architecture is refused.

    Raises:
        FileFormatError: The file cannot be read, is not a GGUF file, is truncated, damaged, too
            large, or of another architecture.
    """
    name = str(path) if name is None else name
    try:
        with Path(path).open("rb") as file:
            _Header(file, name).check(architecture, max_bytes)
    except OSError as error:
        raise FileFormatError(f"{name} cannot be read: {error.strerror or error}") from error


def checked_reader(
    path: str | Path, *, architecture: str | None = None, max_bytes: int | None = None
) -> gguf.GGUFReader:
    """The `gguf` package's reader of a file that `check_header` does not refuse.

    Raises:
        FileFormatError: As `check_header`.
    """
    check_header(path, architecture=architecture, max_bytes=max_bytes)
    try:
        return gguf.GGUFReader(path)
    except Exception as error:  # the reader raises whatever numpy does
        raise FileFormatError(f"{path} is damaged: {first_line(error)}") from error


class _Header:
    """One walk through a header; counts the bytes that are left of the file."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.file, self.name = file, name
        self.size = self.left = file.seek(0, 2)
        self.items_left = _MAX_ITEMS
        file.seek(0)

    def check(self, architecture: str | None, max_bytes: int | None) -> None:
        magic = self.take(4, "magic")
        if magic != b"GGUF":
            raise FileFormatError(f"{self.name} is not a GGUF file (it begins with {magic!r})")
        version = self.number("<I", "version")
        if version not in (2, 3):
            raise FileFormatError(
                f"{self.name} is a GGUF file of version {version}; versions 2 and 3, "
                "little-endian, can be read"
            )
        n_tensors = self.count(24, "number of tensors")
        fields: dict[str, int | str | None] = {}
        for _ in range(self.count(13, "number of metadata")):
            key = self.text("metadata key")
            value = self.value(self.number("<I", key), key)
            if key in fields:
                raise FileFormatError(f"{self.name} holds the metadata {key!r} twice")
            fields[key] = value
            if key == "general.architecture" and architecture is not None:
                self.check_kind(value, architecture, max_bytes)
        if "general.architecture" not in fields:
            raise FileFormatError(f"{self.name} does not say what it holds (no architecture)")
        self.check_tensors(n_tensors, fields.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT))

    def check_kind(self, value: object, architecture: str, max_bytes: int | None) -> None:
        if value != architecture:
            raise FileFormatError(
                f"{self.name} holds a model or adapter of architecture {str(value)[:60]!r}, not "
                f"{architecture!r}; a model is loaded with `load_model`"
            )
        if max_bytes is not None and self.size > max_bytes:
            raise FileFormatError(
                f"{self.name} has {self.size / 2**20:.0f} MiB; no {architecture} file is larger "
                f"than {max_bytes / 2**20:.0f}"
            )

    def take(self, n_bytes: int, what: str) -> bytes:
        """The next bytes; refused when the file has not that many left."""
        self.reserve(n_bytes, what)
        raw = self.file.read(n_bytes)
        if len(raw) != n_bytes:
            raise FileFormatError(f"{self.name} became shorter while it was read")
        return raw

    def reserve(self, n_bytes: int, what: str) -> None:
        if n_bytes > self.left:
            raise FileFormatError(
                f"{self.name} is truncated or lies about a length: {what[:60]!r} needs {n_bytes} "
                f"bytes, {self.left} are left; download it or write it again"
            )
        self.left -= n_bytes

    def number(self, form: str, what: str) -> int:
        number: int = struct.unpack(form, self.take(struct.calcsize(form), what))[0]
        return number

    def count(self, least_bytes: int, what: str) -> int:
        """A number of items, each of which takes at least so many bytes."""
        n_items = self.number("<Q", what)
        self.items_left -= n_items
        if n_items * least_bytes > self.left or self.items_left < 0:
            raise FileFormatError(
                f"{self.name} is truncated or lies about the {what[:60]}: {n_items} do not fit "
                f"into the {self.left} bytes that are left, or are too many; download it or write "
                "it again"
            )
        return n_items

    def text(self, what: str) -> str:
        try:
            return self.take(self.number("<Q", what), what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise FileFormatError(
                f"{self.name} is damaged: {what[:60]!r} is not UTF-8 text"
            ) from error

    def value(self, kind: int, key: str) -> int | str | None:
        """A value's text or whole number; other values are passed over."""
        if kind == _STRING:
            return self.text(key)
        if kind == gguf.GGUFValueType.UINT32:
            return self.number("<I", key)
        if kind in _BYTES:
            self.take(_BYTES[kind], key)
            return None
        if kind != _ARRAY:
            raise FileFormatError(f"{self.name} is damaged: {key[:60]!r} has no known type")
        item = self.number("<I", key)
        if item == _STRING:
            for _ in range(self.count(8, f"length of {key}")):
                self.take(self.number("<Q", key), key)
        elif item in _BYTES:
            n_bytes = _BYTES[item] * self.count(_BYTES[item], f"length of {key}")
            self.reserve(n_bytes, key)
            self.file.seek(n_bytes, 1)
        else:
            raise FileFormatError(
                f"{self.name} is damaged: {key[:60]!r} is an array of no known type"
            )
        return None

    def check_tensors(self, n_tensors: int, alignment: object) -> None:
        """Each tensor, and all of them together, must lie within the file."""
        tensors = [self.tensor() for _ in range(n_tensors)]
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise FileFormatError(f"{self.name} is damaged: its alignment is {alignment!r}")
        start = -(-(self.size - self.left) // alignment) * alignment
        total = 0
        for tensor, shape, offset, n_bytes in tensors:
            total += n_bytes
            if start + offset + n_bytes > self.size or total > self.size:
                raise FileFormatError(
                    f"{self.name} is truncated or lies about a shape: the tensor {tensor[:60]!r} "
                    f"of shape {shape} reaches beyond the file's end; download it or write it again"
                )

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape (outermost first), offset and size in bytes of the next tensor."""
        name = self.text("tensor name")
        n_dimensions = self.number("<I", name)
        if n_dimensions > _MAX_DIMENSIONS:
            raise FileFormatError(
                f"{self.name} is damaged: the tensor {name[:60]!r} has {n_dimensions} dimensions"
            )
        shape = tuple(reversed([self.number("<Q", name) for _ in range(n_dimensions)]))
        kind, offset = self.number("<I", name), self.number("<Q", name)
        try:
            n_numbers, n_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        except ValueError as error:
            raise FileFormatError(
                f"{self.name} stores the tensor {name[:60]!r} in an unknown type (number {kind})"
            ) from error
        return name, shape, offset, math.prod(shape) // n_numbers * n_bytes
