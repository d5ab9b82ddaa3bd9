"""Claims about steering vectors and their files."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from steerlens.activations import ResidualCache
from steerlens.errors import FileFormatError, SteeringError, SteerlensError
from steerlens.vectors import SteeringVector, difference_of_means, random_direction


def example_cache(seed: int = 0, n_pairs: int = 10) -> ResidualCache:
    sides = torch.randn(2, n_pairs, 3, 5, generator=torch.Generator().manual_seed(seed))
    return ResidualCache.from_tensors(sides[0] + 2.0, sides[1], metadata={"n_layers": 3})


@given(seed=st.integers(0, 10_000), n_pairs=st.integers(2, 30))
@settings(max_examples=40, deadline=None)
def test_difference_of_means_equals_numpy(seed, n_pairs):
    cache = example_cache(seed, n_pairs)
    vector = difference_of_means(cache)
    plus, minus = cache.instructed.double().numpy(), cache.uninstructed.double().numpy()
    difference = plus.mean(0) - minus.mean(0)
    gap = np.linalg.norm(difference, axis=-1)
    unit = difference / gap[:, None]
    np.testing.assert_allclose(vector.gaps, gap, rtol=1e-5)
    np.testing.assert_allclose(vector.directions, unit, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(vector.targets, (plus.mean(0) * unit).sum(-1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        vector.baselines, (minus.mean(0) * unit).sum(-1), rtol=1e-4, atol=1e-5
    )


def test_target_minus_baseline_is_the_gap():
    vector = difference_of_means(example_cache())
    torch.testing.assert_close(vector.targets - vector.baselines, vector.gaps)


def test_a_placebo_pushes_as_far_in_an_unrelated_direction():
    cache = example_cache()
    vector, placebo = difference_of_means(cache), random_direction(cache, seed=3)
    torch.testing.assert_close(placebo.gaps, vector.gaps)
    torch.testing.assert_close(placebo.directions.norm(dim=-1), torch.ones(3))
    torch.testing.assert_close(placebo.targets - placebo.baselines, vector.gaps)
    again = random_direction(cache, seed=3)
    assert torch.equal(placebo.directions, again.directions)
    assert not torch.equal(placebo.directions, random_direction(cache, seed=4).directions)


def test_save_and_load_give_the_same_numbers_and_provenance(tmp_path):
    vector = difference_of_means(example_cache())
    loaded = SteeringVector.load(vector.save(tmp_path / "made" / "v.safetensors"))
    for name in ("directions", "gaps", "targets", "baselines"):
        assert torch.equal(getattr(vector, name), getattr(loaded, name))
    assert loaded.layers == vector.layers
    assert dict(loaded.metadata) == json.loads(json.dumps(dict(vector.metadata)))


def test_sides_with_equal_means_have_no_direction():
    same = torch.randn(4, 2, 5)
    with pytest.raises(SteeringError, match="same mean at layer 0"):
        difference_of_means(ResidualCache.from_tensors(same, same.clone()))


def test_broken_and_foreign_files_are_refused_in_one_sentence(tmp_path):
    good = difference_of_means(example_cache()).save(tmp_path / "good.safetensors")
    truncated = tmp_path / "truncated.safetensors"
    truncated.write_bytes(good.read_bytes()[:-7])
    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(2)}, foreign)
    text = tmp_path / "text.safetensors"
    text.write_text("not a tensor file")
    cache = example_cache().save(tmp_path / "cache.safetensors")
    for path, words in [
        (tmp_path / "missing.safetensors", "no file at"),
        (truncated, "truncated or foreign"),
        (foreign, "without a steerlens record"),
        (text, "truncated or foreign"),
        (cache, "holds 'residual-cache'"),
    ]:
        with pytest.raises(FileFormatError, match=words):
            SteeringVector.load(path)


def test_a_file_that_lies_about_shapes_is_refused(tmp_path):
    vector = difference_of_means(example_cache())
    path = vector.save(tmp_path / "v.safetensors")
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors["gaps"] = torch.zeros(7)
    save_file(tensors, path, metadata=header)
    with pytest.raises(SteerlensError, match="gaps must hold one number"):
        SteeringVector.load(path)


def test_nothing_is_left_behind_when_a_file_cannot_be_written(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    with pytest.raises(SteerlensError, match="cannot write"):
        difference_of_means(example_cache()).save(blocker / "v.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"directions": torch.ones(3, 5)}, "unit vectors"),
        ({"layers": torch.zeros(3, 3, dtype=torch.long)}, "steering vector"),
        ({"metadata": "[1]"}, "metadata"),
        ({"metadata": '{"n_layers": "3"}'}, "n_layers"),
    ],
)
def test_a_file_with_parts_no_vector_can_have_is_refused_by_name(tmp_path, changes, words):
    from safetensors import safe_open

    path = difference_of_means(example_cache()).save(tmp_path / "v.safetensors")
    with safe_open(path, "pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    record = json.loads(header["steerlens"])
    if "metadata" in changes:
        record["metadata"] = json.loads(changes.pop("metadata"))
    save_file({**tensors, **changes}, path, metadata={"steerlens": json.dumps(record)})
    with pytest.raises(FileFormatError, match=words) as refused:
        SteeringVector.load(path)
    assert "v.safetensors" in str(refused.value)


def test_the_layers_a_vector_has_are_named_one_by_one_where_some_are_missing():
    sides = torch.randn(2, 4, 2, 5)
    vector = difference_of_means(ResidualCache.from_tensors(sides[0], sides[1], layers=[0, 6]))
    with pytest.raises(SteeringError, match="it has layers 0, 6"):
        vector.at(3)
