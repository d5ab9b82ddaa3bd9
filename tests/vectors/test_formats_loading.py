"""Claims about `load_vector`: any known file by its content, everything else in a sentence."""

import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

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
)
from safetensors.torch import save_file
from tiny_models import write_tiny_gguf
from transformer_lens.model_bridge import TransformerBridge

from steerlens.errors import FileFormatError, SteeringError
from steerlens.models.weights import sha256_of_files
from steerlens.vectors.formats.gguf import write_gguf
from steerlens.vectors.formats.index import INDEX_NAME, INDEX_SCHEMA, verify_file
from steerlens.vectors.formats.loading import load_vector, vector_format
from steerlens.vectors.formats.plain import write_plain

VECTOR = example_vector(d_model=16, n_layers=3)


class Bomb:
    """Unpickling it makes a folder: proof that somebody unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def write_index(folder: Path, **hashes: str) -> Path:
    entries = [{"file": f"{name}.safetensors", "sha256": one} for name, one in hashes.items()]
    path = folder / INDEX_NAME
    path.write_text(json.dumps({"schema": INDEX_SCHEMA, "vectors": entries}))
    return path


def test_every_known_format_gives_the_same_vector_whatever_the_file_is_called(
    tmp_path: Path,
) -> None:
    for kind, path in (
        ("steerlens", VECTOR.save(tmp_path / "a.gguf")),
        ("gguf", write_gguf(VECTOR, tmp_path / "b.safetensors")),
        ("plain", write_plain(VECTOR, tmp_path / "c")),
    ):
        assert vector_format(path) == kind
        assert_same_vector(load_vector(path), VECTOR)


def test_a_vector_that_does_not_fit_the_model_is_refused_with_the_reason(
    tmp_path: Path, tiny_model: TransformerBridge
) -> None:
    fits = write_gguf(VECTOR, tmp_path / "fits.gguf")
    assert_same_vector(load_vector(fits, tiny_model), VECTOR)
    narrow = write_gguf(example_vector(d_model=8), tmp_path / "narrow.gguf")
    with pytest.raises(SteeringError, match="has d_model 8, the model 16"):
        load_vector(narrow, tiny_model)
    deep = write_plain(example_vector(layers=(1, 3), d_model=16), tmp_path / "deep")
    with pytest.raises(SteeringError, match="4 layers, this model has 3"):
        load_vector(deep, tiny_model)
    other = write_plain(example_vector(d_model=16, n_layers=30), tmp_path / "other")
    with pytest.raises(SteeringError, match="30 layers, this model has 3"):
        load_vector(other, tiny_model)


def test_pickles_and_archives_are_refused_and_never_run(tmp_path: Path) -> None:
    trap = tmp_path / "unpickled"
    array = np.empty(1, dtype=object)
    array[0] = Bomb(trap)
    torch.save({"layer_1": Bomb(trap)}, tmp_path / "v.pt")
    torch.save({"layer_1": Bomb(trap)}, tmp_path / "v.bin", _use_new_zipfile_serialization=False)
    (tmp_path / "v.pkl").write_bytes(pickle.dumps(Bomb(trap)))
    (tmp_path / "v.safetensors").write_bytes(pickle.dumps(Bomb(trap)))
    np.savez(tmp_path / "v.npz", layer_1=array)
    np.save(tmp_path / "v.npy", array)
    for name in ("v.pt", "v.bin", "v.pkl", "v.safetensors", "v.npz", "v.npy"):
        with pytest.raises(FileFormatError, match="can run code"):
            load_vector(tmp_path / name)
    (tmp_path / "v.txt").write_bytes(pickle.dumps(Bomb(trap), protocol=0))
    with pytest.raises(FileFormatError, match="no known format"):
        load_vector(tmp_path / "v.txt")
    assert not trap.exists()


def test_other_files_are_named_for_what_they_are(tmp_path: Path) -> None:
    model = write_tiny_gguf(tmp_path / "model.gguf")
    weights = tmp_path / "weights.safetensors"
    save_file({"model.layers.0.mlp.up_proj.weight": torch.zeros(4, 4)}, weights)
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    for path, words in [
        (model, "holds a model or adapter of architecture 'llama'"),
        (weights, r"named 'model\.layers\.0\.mlp\.up_proj\.weight', which is no known layout"),
        (tmp_path / "empty", "no known format"),
        (tmp_path / "none", "no file at"),
        (tmp_path / "pipe", "no file at"),
        (tmp_path, "is a folder"),
    ]:
        with pytest.raises(FileFormatError, match=words):
            load_vector(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": torch.tensor([0, 1, 1])}, "names a layer twice"),
        ({"layers": torch.tensor([0, 1, -2])}, "names layer -2"),
        ({"layers": torch.tensor([0.0, 1.0, float("inf")])}, "whole number; got inf"),
        ({"layers": torch.zeros(20_000, dtype=torch.long)}, "no steering vector is that large"),
        ({"directions": torch.zeros(3, 16, dtype=torch.float8_e4m3fn)}, "no steering vector"),
        ({"directions": torch.ones(3, 16)}, "unit vectors"),
        ({"metadata": {"d_model": 15}}, "says d_model 15"),
        ({"metadata": {"n_layers": 2}}, "2 layers, but it holds layer 2"),
        ({"kind": "residual-cache"}, "holds 'residual-cache'"),
    ],
)
def test_our_own_files_are_not_believed_either(tmp_path: Path, changes: Any, words: str) -> None:
    parts = ("directions", "gaps", "targets", "baselines")
    tensors = {name: getattr(VECTOR, name) for name in parts}
    record = {"kind": "steering-vector", "metadata": {}}
    tensors["layers"] = torch.tensor(VECTOR.layers)
    for name, value in changes.items():
        (tensors if name in tensors else record)[name] = value
    path = tmp_path / "v.safetensors"
    save_file(tensors, path, metadata={"steerlens": json.dumps(record)})
    with pytest.raises(FileFormatError, match=words):
        load_vector(path)


def test_a_record_nested_without_end_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "v", metadata={"steerlens": "[" * 100_000})
    with pytest.raises(FileFormatError, match="not JSON"):
        load_vector(tmp_path / "v")


def test_a_layer_is_taken_only_where_the_file_has_none(tmp_path: Path) -> None:
    save_file({"vector": torch.ones(4)}, tmp_path / "one")
    assert load_vector(tmp_path / "one", layer=2).layers == (2,)
    with pytest.raises(FileFormatError, match="leave out layer="):
        load_vector(VECTOR.save(tmp_path / "v"), layer=2)


def test_a_file_that_is_not_the_one_its_index_lists_is_refused(tmp_path: Path) -> None:
    path = VECTOR.save(tmp_path / "v.safetensors")
    assert verify_file(path) is False
    write_index(tmp_path, v=sha256_of_files([path]), w="0" * 64)
    assert verify_file(path) is True
    assert_same_vector(load_vector(path), VECTOR)

    example_vector(seed=5, d_model=16).save(path)  # a sound file, but another one
    with pytest.raises(FileFormatError, match=r"is not the file that vectors\.index\.json lists"):
        load_vector(path)

    unlisted = VECTOR.save(tmp_path / "x.safetensors")
    assert verify_file(unlisted) is False
    assert_same_vector(load_vector(unlisted), VECTOR)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "no index of vectors"),
        (b'{"schema": "other"}', "no index of vectors"),
        (b'{"schema": "steerlens-vectors/1", "vectors": {}}', "lists no vectors"),
        (b'{"schema": "steerlens-vectors/1", "vectors": [3]}', "names no file of its own"),
        (
            b'{"schema": "steerlens-vectors/1", "vectors": [{"file": "../v", "sha256": ""}]}',
            "names no file of its own: '../v'",
        ),
        (
            b'{"schema": "steerlens-vectors/1", "vectors": [{"file": "v"}]}',
            "has no sha256",
        ),
    ],
)
def test_a_damaged_index_is_refused_rather_than_passed_over(
    tmp_path: Path, text: bytes, words: str
) -> None:
    path = VECTOR.save(tmp_path / "v.safetensors")
    (tmp_path / INDEX_NAME).write_bytes(text)
    with pytest.raises(FileFormatError, match=words):
        load_vector(path)


@given(data=st.data())
@settings(max_examples=250, deadline=2000)
def test_a_damaged_file_of_any_format_gives_a_vector_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("v") / "v"
    kind = data.draw(st.sampled_from(["own", "gguf", "plain", "model", "pickle"]))
    if kind == "own":
        VECTOR.save(path)
    elif kind == "gguf":
        write_gguf(VECTOR, path)
    elif kind == "plain":
        write_plain(VECTOR, path)
    elif kind == "model":
        write_tiny_gguf(path)
    else:
        buffer = io.BytesIO()
        torch.save(VECTOR.directions, buffer)
        path.write_bytes(buffer.getvalue())
    raw = path.read_bytes()
    path.write_bytes(data.draw(damage(len(raw)))(raw))
    assert_vector_or_sentence(outcome(load_vector, path))


@given(raw=st.binary(max_size=400))
@settings(max_examples=150, deadline=2000)
def test_bytes_at_random_give_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes
) -> None:
    path = tmp_path_factory.mktemp("v") / "v"
    for start in (b"", b"GGUF", len(raw).to_bytes(8, "little") + b"{"):
        path.write_bytes(start + raw)
        assert isinstance(outcome(load_vector, path), str)
