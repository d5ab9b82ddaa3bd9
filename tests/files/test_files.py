"""Claims about files: whole or not at all, and one sentence when they cannot be."""

import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from steerlens import files
from steerlens.errors import FileFormatError, SteerlensError
from steerlens.files import check_writable, read_tensors, write_tensors, write_text


def test_tensors_and_their_record_come_back(tmp_path: Path) -> None:
    path = write_tensors(tmp_path / "new" / "t", "kind", {"x": torch.arange(3)}, {"seed": 1})

    tensors, record = read_tensors(path, "kind")

    assert tensors["x"].tolist() == [0, 1, 2]
    assert record == {"seed": 1}
    with pytest.raises(FileFormatError, match="holds 'kind', expected 'other'"):
        read_tensors(path, "other")


def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tensors(tmp_path / "t", "kind", {"x": torch.zeros(1)}, {})
    before = path.read_bytes()

    def full(_tensors: object, target: Path, metadata: object) -> None:
        target.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device")

    monkeypatch.setattr(files, "save_file", full)

    with pytest.raises(SteerlensError, match=r"cannot write .*No space left"):
        write_tensors(path, "kind", {"x": torch.ones(1)}, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_refused_and_one_that_can_is_left_untouched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_writable(tmp_path / "a" / "b" / "c.json")
    assert list(tmp_path.iterdir()) == []

    file = write_text(tmp_path / "file", "x")
    with pytest.raises(SteerlensError, match="file is a file"):
        check_writable(file / "c.json")

    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(SteerlensError, match="read-only"):
        check_writable(tmp_path / "c.json")


def test_a_record_nested_deeper_than_python_reads_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "deep"
    save_file({"x": torch.zeros(1)}, path, metadata={files.HEADER_KEY: "[" * 200_000})

    with pytest.raises(FileFormatError, match="without a steerlens record"):
        read_tensors(path, "kind")
