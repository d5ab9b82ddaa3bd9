"""Claims about plain safetensors: the layouts of other tools, and clear words for the rest."""

import json
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
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from steerlens.errors import FileFormatError, SteeringError
from steerlens.vectors.formats import plain
from steerlens.vectors.formats.plain import block_layer, read_plain, write_plain
from steerlens.vectors.formats.record import shifts_of

ROW = torch.tensor([3.0, 0.0, 4.0])


def plain_file(path: Path, tensors: dict[str, torch.Tensor], **header: str) -> Path:
    # safetensors refuses tensors that share memory.
    save_file({name: row.clone() for name, row in tensors.items()}, path, metadata=header or None)
    return path


def test_other_readers_find_one_tensor_a_layer_that_holds_g_times_u(tmp_path: Path) -> None:
    vector = example_vector(layers=(0, 7))

    found = load_file(write_plain(vector, tmp_path / "v.safetensors"))

    assert set(found) == {"layer_0", "layer_7"}
    for row, layer in enumerate((0, 7)):
        expected = np.float64(vector.gaps[row]) * vector.directions[row].double().numpy()
        np.testing.assert_array_equal(found[f"layer_{layer}"], expected.astype(np.float32))


@given(layers=st.sets(st.integers(0, 80), min_size=1, max_size=6), seed=st.integers(0, 500))
@settings(max_examples=25, deadline=None)
def test_what_is_written_comes_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, layers: set[int], seed: int
) -> None:
    vector = example_vector(sorted(layers), 9, seed)
    path = write_plain(vector, tmp_path_factory.mktemp("v") / "v.safetensors")
    assert_same_vector(read_plain(path), vector)


def test_some_layers_can_be_written(tmp_path: Path) -> None:
    vector = example_vector(layers=(1, 4))
    assert read_plain(write_plain(vector, tmp_path / "v", layers=[4])).layers == (4,)
    with pytest.raises(SteeringError, match="out of range"):
        write_plain(vector, tmp_path / "w", layers=[2])


@pytest.mark.parametrize(
    "names",
    [
        ("layer_2", "layer_11"),
        ("layer2", "layer11"),
        ("layers.2", "layers.11"),
        ("blocks.2.hook_out", "blocks.11.hook_resid_post"),
        ("model.layers.2", "model.layers[11]"),
        ("transformer.h.2", "transformer.h.11"),
        ("direction.2", "direction.11"),
        ("layers.2.direction", "layers.11.vector"),
        ("2", "11"),
    ],
)
def test_a_tensor_a_layer_is_read_under_the_names_in_use(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    path = plain_file(tmp_path / "v", {names[0]: ROW, names[1]: 2 * ROW[None]}, model="m")

    vector = read_plain(path)

    assert dict(zip(vector.layers, vector.gaps.tolist(), strict=True)) == {2: 5.0, 11: 10.0}
    assert vector.metadata["model"] == "m" and vector.metadata["targets_known"] is False


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_types_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    vector = read_plain(plain_file(tmp_path / "v", {"layer_1": ROW.to(dtype)}))
    assert vector.directions.dtype == torch.float32 and vector.gaps.tolist() == [5.0]


def test_one_tensor_for_all_layers_counts_them_from_zero_or_as_told(tmp_path: Path) -> None:
    both = torch.stack([ROW, 2 * ROW])
    assert read_plain(plain_file(tmp_path / "a", {"vector": both})).layers == (0, 1)
    told = {"steering_vectors": both, "layers": torch.tensor([9, 4])}
    vector = read_plain(plain_file(tmp_path / "b", told))
    assert dict(zip(vector.layers, vector.gaps.tolist(), strict=True)) == {9: 5.0, 4: 10.0}


def test_one_tensor_for_one_layer_needs_to_be_told_which(tmp_path: Path) -> None:
    path = plain_file(tmp_path / "v", {"steering_vector": ROW})
    with pytest.raises(FileFormatError, match="does not say for which layer; give layer="):
        read_plain(path)
    assert read_plain(path, layer=13).layers == (13,)
    told = plain_file(tmp_path / "w", {"vector": ROW}, layer="6")
    assert read_plain(told).layers == (6,)
    told = plain_file(tmp_path / "x", {"vector": ROW[None], "layers": torch.tensor([8])})
    assert read_plain(told).layers == (8,)


def test_psyctls_layout_whose_names_count_tensors_is_refused(tmp_path: Path) -> None:
    path = plain_file(tmp_path / "v", {"layer_0": ROW}, layer_names="['model.layers[13]']")
    with pytest.raises(FileFormatError, match=r"psyctl's layout.*model\.layers\[13\]"):
        read_plain(path)


def test_steering_lites_strength_is_part_of_what_it_adds(tmp_path: Path) -> None:
    tensors = {"layer15.v": ROW / 5}
    settings_ = {"method": "mean_diff", "coeff": -2.5, "target": "residual"}
    vector = read_plain(plain_file(tmp_path / "v", tensors, cfg=json.dumps(settings_)))
    torch.testing.assert_close(shifts_of(vector)[15], -2.5 * ROW / 5)

    for change in (
        {"method": "spherical"},
        {"target": "mlp_out"},
        {"target_submodule": "mlp"},
        {"coeff": "x"},
        {"coeff": float("inf")},
    ):
        path = plain_file(tmp_path / "w", tensors, cfg=json.dumps({**settings_, **change}))
        with pytest.raises(FileFormatError):
            read_plain(path)


@pytest.mark.parametrize(
    ("tensors", "header", "words"),
    [
        ({"weight": ROW}, {}, "holds tensors named 'weight', which is no known layout"),
        ({f"w{n}": ROW for n in range(9)}, {}, r"'w5', … \(9 in all\)"),
        ({"model.layers.0.mlp.down_proj.weight": ROW}, {}, "no known layout"),
        ({"vector": ROW, "bias": ROW}, {}, "no known layout"),
        ({}, {}, "no known layout"),
        ({"layer_1": ROW, "layers.1": ROW}, {}, "two rows for one layer"),
        ({"layer_1": ROW, "layer_2": ROW[:2]}, {}, "different widths"),
        ({"layer_1": torch.ones(2, 3)}, {}, r"shape \(2, 3\) for layer 1"),
        ({"layer_1": torch.ones(3, dtype=torch.long)}, {}, "torch.int64"),
        ({"layer_1": torch.tensor(1.0)}, {}, "expected d_model"),
        ({"layer_1": ROW * float("nan")}, {}, "NaN or infinity"),
        ({"layer_99999": ROW}, {}, "names layer 99999"),
        ({"vector": torch.ones(2, 3), "layers": torch.tensor([1])}, {}, "one row for each layer"),
        (
            {"vector": torch.ones(2, 3), "layers": torch.tensor([1, 1])},
            {},
            "two rows for one layer",
        ),
        ({"vector": torch.ones(2, 3), "layers": torch.tensor([1.5, 2])}, {}, "not whole numbers"),
        ({"vector": torch.ones(2, 3), "layers": torch.tensor([-1, 2])}, {}, "names layer -1"),
        ({"vector": torch.ones(2, 3, 4)}, {}, r"expected \[layer d_model\]"),
        ({"vector": ROW}, {"layer": "two"}, "does not say for which layer"),
        ({"layer_1": ROW}, {"steerlens": "{}"}, "another record"),
        ({"layer_1": ROW}, {"steerlens": "[" * 100_000}, "not JSON"),
        ({"layer_1": ROW}, {"cfg": "1"}, "steering-lite's method None"),
        ({"layer_1": ROW}, {"cfg": "{"}, "not JSON"),
    ],
)
def test_unknown_layouts_and_lies_are_refused_in_a_sentence(
    tmp_path: Path, tensors: Any, header: dict[str, str], words: str
) -> None:
    with pytest.raises(FileFormatError, match=words):
        read_plain(plain_file(tmp_path / "v", tensors, **header))


def test_a_layer_that_the_file_contradicts_is_refused(tmp_path: Path) -> None:
    path = plain_file(tmp_path / "v", {"layer_3": ROW})
    assert read_plain(path, layer=3).layers == (3,)
    with pytest.raises(FileFormatError, match="leave out layer=4"):
        read_plain(path, layer=4)


def test_a_file_of_a_models_size_is_refused_before_its_tensors_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = plain_file(tmp_path / "v", {"layer_3": torch.ones(1000)})
    monkeypatch.setattr(plain, "MAX_BYTES", 1000)
    monkeypatch.setattr(plain, "_read_tensors", lambda *_: pytest.fail("tensors were read"))
    with pytest.raises(FileFormatError, match="no steering vector is larger"):
        read_plain(path)


def test_a_changed_number_is_noticed(tmp_path: Path) -> None:
    path = write_plain(example_vector(), tmp_path / "v")
    raw = bytearray(path.read_bytes())
    raw[-2] ^= 4
    path.write_bytes(raw)
    with pytest.raises(FileFormatError, match="does not match its tensors"):
        read_plain(path)


def test_names_of_places_inside_a_block_are_not_layers() -> None:
    inside = ("layers.3.mlp", "blocks.3.attn.hook_z", "model.embed_tokens", "layer_x", "lm_head")
    assert [block_layer(name) for name in inside] == [None] * len(inside)


@given(data=st.data())
@settings(max_examples=200, deadline=2000)
def test_a_damaged_file_gives_a_vector_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("v") / "v.safetensors"
    kind = data.draw(st.sampled_from(["ours", "layers", "one"]))
    if kind == "ours":
        write_plain(example_vector(d_model=3), path)
    elif kind == "layers":
        plain_file(path, {"layer_1": ROW, "layer_2": ROW}, model="m")
    else:
        plain_file(path, {"vector": torch.ones(2, 3), "layers": torch.tensor([1, 2])})
    raw = path.read_bytes()
    path.write_bytes(data.draw(damage(len(raw)))(raw))
    assert_vector_or_sentence(outcome(read_plain, path))


def test_the_record_does_not_hide_the_tensors_from_a_plain_reader(tmp_path: Path) -> None:
    with safe_open(write_plain(example_vector(), tmp_path / "v"), "np") as file:
        assert set(file.metadata()) == {"steerlens"}
        assert file.get_tensor("layer_2").shape == (8,)
