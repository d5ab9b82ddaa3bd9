"""Claims about control vectors in GGUF: what other tools find in them, and what comes back."""

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interop_examples import (
    assert_same_vector,
    assert_vector_or_sentence,
    damage,
    example_vector,
    outcome,
    ulps,
)
from tiny_models import write_tiny_gguf

from steerlens.errors import FileFormatError, SteeringError, SteerlensError
from steerlens.vectors.formats.gguf import read_gguf, write_gguf
from steerlens.vectors.formats.record import shifts_of


def write_foreign(path: Path, directions: dict[str, np.ndarray], **fields: Any) -> Path:
    """A control vector as repeng's ``export_gguf`` writes it, with the gguf package."""
    writer = gguf.GGUFWriter(path, fields.pop("architecture", "controlvector"))
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", fields.pop("layer_count", len(directions)))
    for key, value in fields.items():
        writer.add_string(f"steerlens.{key}", value)
    for name, values in directions.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def header(n_tensors: int = 0, n_fields: int = 1, version: int = 3) -> bytes:
    """The beginning of a control vector, for headers that no writer would write."""
    start = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_fields)
    return start + text("general.architecture") + struct.pack("<I", 8) + text("controlvector")


def test_the_gguf_package_finds_g_times_u_at_every_layer_but_the_first(tmp_path: Path) -> None:
    vector = example_vector(layers=(0, 1, 5), d_model=16)

    path = write_gguf(vector, tmp_path / "v.gguf", model_hint="llama")

    reader = gguf.GGUFReader(path)
    found = {tensor.name: tensor for tensor in reader.tensors}
    # llama.cpp refuses a file with direction.0, with any other name, or another type.
    assert set(found) == {"direction.1", "direction.5"}
    for row, layer in ((1, 1), (2, 5)):
        tensor = found[f"direction.{layer}"]
        expected = np.float64(vector.gaps[row]) * vector.directions[row].numpy().astype(np.float64)
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        assert tensor.shape.tolist() == [16]
        np.testing.assert_array_equal(tensor.data, expected.astype(np.float32))
    assert reader.fields["general.architecture"].contents() == "controlvector"
    assert reader.fields["controlvector.model_hint"].contents() == "llama"
    assert reader.fields["controlvector.layer_count"].contents() == 2


@given(
    layers=st.sets(st.integers(0, 60), min_size=1, max_size=6).filter(lambda s: s != {0}),
    d_model=st.integers(1, 40),
    seed=st.integers(0, 1000),
    metadata=st.dictionaries(
        st.text(max_size=8).filter(lambda key: key not in ("d_model", "n_layers")),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
            lambda inner: st.lists(inner, max_size=3),
        ),
        max_size=4,
    ),
)
@settings(max_examples=40, deadline=None)
def test_what_is_written_comes_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    layers: set[int],
    d_model: int,
    seed: int,
    metadata: dict[str, Any],
) -> None:
    vector = example_vector(sorted(layers), d_model, seed, more=metadata)
    path = write_gguf(vector, tmp_path_factory.mktemp("v") / "v.gguf")
    assert_same_vector(read_gguf(path), vector)


def test_one_layer_can_be_written_because_llama_cpp_steers_at_all_it_finds(tmp_path: Path) -> None:
    vector = example_vector(layers=(0, 1, 5))
    path = write_gguf(vector, tmp_path / "v.gguf", layers=[5])
    assert [tensor.name for tensor in gguf.GGUFReader(path).tensors] == ["direction.5"]
    assert read_gguf(path).layers == (5,)
    for layers in ([0], [7]):
        with pytest.raises(SteeringError, match="layer"):
            write_gguf(vector, tmp_path / "w.gguf", layers=layers)
    assert not (tmp_path / "w.gguf").exists()


def test_a_file_of_another_tool_is_read_at_its_layers_with_its_strength(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = {n: rng.normal(size=12).astype(np.float32) for n in (0, 3, 11)}

    vector = read_gguf(
        write_foreign(tmp_path / "v.gguf", {f"direction.{n}": row for n, row in rows.items()})
    )

    assert vector.layers == (0, 3, 11)
    assert vector.metadata["model_hint"] == "llama"
    assert vector.metadata["targets_known"] is False
    for layer, row in rows.items():
        np.testing.assert_allclose(
            vector.gaps[vector.layer_index(layer)], np.linalg.norm(row), rtol=1e-6
        )
        assert ulps(shifts_of(vector)[layer], torch.from_numpy(row)) <= 1


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floating_point_types_are_read_too(tmp_path: Path, dtype: Any) -> None:
    row = np.array([3, 0, 4], dtype=dtype)
    vector = read_gguf(write_foreign(tmp_path / "v.gguf", {"direction.2": row}))
    assert vector.gaps.tolist() == [5.0]


def test_repeng_finds_the_same_directions_and_we_find_those_of_its_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(np, "float_", np.float64, raising=False)  # repeng 0.4.0 asks for it
    repeng = pytest.importorskip("repeng")
    vector = example_vector(layers=(1, 4), d_model=16)

    theirs = repeng.ControlVector.import_gguf(write_gguf(vector, tmp_path / "ours.gguf"))

    assert sorted(theirs.directions) == [1, 4]
    for layer, shift in shifts_of(vector).items():
        np.testing.assert_array_equal(theirs.directions[layer], shift)

    theirs.export_gguf(tmp_path / "theirs.gguf")
    again = read_gguf(tmp_path / "theirs.gguf")
    assert again.layers == (1, 4)
    for layer, shift in shifts_of(vector).items():
        assert ulps(shifts_of(again)[layer], shift) <= 1


def test_a_model_is_refused_by_name_and_before_its_tensors_are_looked_at(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "model.gguf")
    with pytest.raises(FileFormatError, match="holds a model or adapter of architecture 'llama'"):
        read_gguf(path)
    # Only the first field is needed: a model whose tensors are missing is still named as one.
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(FileFormatError, match="architecture 'llama'"):
        read_gguf(path)


@pytest.mark.parametrize(
    ("directions", "fields", "words"),
    [
        ({}, {}, "without directions"),
        ({"direction.0": np.zeros(4, np.float32)}, {}, "nothing but zeros"),
        ({"direction.1": np.full(4, np.inf, np.float32)}, {}, "NaN or infinity at layer 1"),
        ({"direction.1": np.ones((2, 4), np.float32)}, {}, r"shape \(2, 4\)"),
        ({"direction.1": np.ones(4, np.int32)}, {}, "not plain floating-point"),
        ({"direction.99999": np.ones(4, np.float32)}, {}, "names layer 99999"),
        ({"direction.one": np.ones(4, np.float32)}, {}, "holds a tensor 'direction.one'"),
        ({"blk.0.weight": np.ones(4, np.float32)}, {}, "holds a tensor 'blk.0.weight'"),
        (
            {"direction.1": np.ones(4, np.float32), "direction.01": np.ones(4, np.float32)},
            {},
            "two directions for layer 1",
        ),
        (
            {"direction.1": np.ones(4, np.float32), "direction.2": np.ones(5, np.float32)},
            {},
            "different widths",
        ),
        ({"direction.1": np.ones(4, np.float32)}, {"layer_count": 0}, "says it has 0 layers"),
        ({"direction.1": np.ones(4, np.float32)}, {"metadata": "{}"}, "lacks or garbles"),
        ({"direction.1": np.ones(4, np.float32)}, {"metadata": "[" * 100_000}, "not JSON"),
        ({"direction.1": np.ones(4, np.float32)}, {"architecture": "llama"}, "holds a model"),
    ],
)
def test_files_that_lie_are_refused_in_a_sentence(
    tmp_path: Path, directions: Any, fields: Any, words: str
) -> None:
    path = write_foreign(tmp_path / "v.gguf", directions, **fields)
    with pytest.raises(FileFormatError, match=words):
        read_gguf(path)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "needs 4 bytes"),
        (b"GGML" + bytes(40), "not a GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 50331648"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "does not say what it holds"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "lies about the number of tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "lies about the number of metadata"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**63) + bytes(30), "lies about a length"),
        (header(n_fields=2) + text("x") + struct.pack("<IIQ", 9, 0, 2**40) + bytes(9), "lies"),
        (header(n_fields=2) + text("x") + struct.pack("<IIQ", 9, 8, 2**40) + bytes(9), "lies"),
        (header(n_fields=2) + text("x") + struct.pack("<IIQ", 9, 9, 1) + bytes(9), "no known type"),
        (header(n_fields=2) + text("x") + struct.pack("<I", 77), "no known type"),
        (header(n_fields=2) + struct.pack("<Q", 1) + b"\xff" + bytes(9), "not UTF-8"),
        (header(n_fields=2) + header()[24:], "twice"),
        (
            header(1) + text("direction.1") + struct.pack("<I", 99) + bytes(40),
            "has 99 dimensions",
        ),
        (
            header(1) + text("direction.1") + struct.pack("<IQIQ", 1, 2**50, 0, 0) + bytes(64),
            "reaches beyond the file's end",
        ),
        (
            header(1) + text("direction.1") + struct.pack("<IQIQ", 1, 4, 0, 2**62) + bytes(64),
            "reaches beyond the file's end",
        ),
        (
            header(1, 2)
            + text("general.alignment")
            + struct.pack("<II", 4, 0)
            + text("direction.1")
            + struct.pack("<IQIQ", 1, 1, 0, 0)
            + bytes(64),
            "alignment is 0",
        ),
    ],
)
def test_headers_that_lie_are_refused_before_anything_is_allocated(
    tmp_path: Path, raw: bytes, words: str
) -> None:
    path = tmp_path / "v.gguf"
    path.write_bytes(raw)
    with pytest.raises(FileFormatError, match=words):
        read_gguf(path)


def test_many_names_for_the_same_bytes_do_not_multiply_them(tmp_path: Path) -> None:
    one = [text(f"direction.{n}") + struct.pack("<IQIQ", 1, 2000, 0, 0) for n in range(1, 100)]
    path = tmp_path / "v.gguf"
    path.write_bytes(header(len(one)) + b"".join(one) + bytes(10_000))
    with pytest.raises(FileFormatError, match="reaches beyond"):
        read_gguf(path)


def test_a_missing_file_and_a_place_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="cannot be read"):
        read_gguf(tmp_path / "none.gguf")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SteerlensError, match="cannot write"):
        write_gguf(example_vector(), tmp_path / "file" / "v.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_changed_number_is_noticed_in_the_tensors_and_in_the_record(tmp_path: Path) -> None:
    path = write_gguf(example_vector(), tmp_path / "v.gguf")
    raw = bytearray(path.read_bytes())
    raw[-10] ^= 1
    path.write_bytes(raw)
    with pytest.raises(FileFormatError, match="does not match its tensors"):
        read_gguf(path)


EXAMPLE = example_vector(layers=(1, 2), d_model=4, note=json.loads('{"a": [1, "b"]}'))


@given(data=st.data())
@settings(max_examples=300, deadline=2000)
def test_a_damaged_file_gives_a_vector_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("v")
    if data.draw(st.booleans()):
        path = write_gguf(EXAMPLE, folder / "v.gguf")
    else:
        path = write_foreign(folder / "v.gguf", {"direction.3": np.ones(4, np.float32)})
    raw = path.read_bytes()
    path.write_bytes(data.draw(damage(len(raw)))(raw))
    assert_vector_or_sentence(outcome(read_gguf, path))
