"""Claims about steering vectors: their algebra and their files."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from steerlens.activations.cache import ResidualCache
from steerlens.errors import FileFormatError, SteeringError, SteerlensError
from steerlens.vectors import SteeringVector, difference_of_means


def example_cache(seed: int = 0, n_pairs: int = 10) -> ResidualCache:
    sides = torch.randn(2, n_pairs, 3, 5, generator=torch.Generator().manual_seed(seed))
    return ResidualCache.from_tensors(sides[0] + 2.0, sides[1], metadata={"n_layers": 3})


def test_save_and_load_give_the_same_numbers_and_provenance(tmp_path):
    vector = difference_of_means(example_cache())
    loaded = SteeringVector.load(vector.save(tmp_path / "made" / "v.safetensors"))
    for name in ("directions", "gaps", "targets", "baselines"):
        assert torch.equal(getattr(vector, name), getattr(loaded, name))
    assert loaded.layers == vector.layers
    assert dict(loaded.metadata) == json.loads(json.dumps(dict(vector.metadata)))


def test_a_file_of_an_earlier_version_without_a_gate_loads(tmp_path):
    vector = difference_of_means(example_cache())
    names = ("directions", "gaps", "targets", "baselines")
    tensors = {name: getattr(vector, name) for name in names}
    record = {"kind": "steering-vector", "metadata": {"n_layers": 3, "seed": 0}}
    path = tmp_path / "old.safetensors"
    save_file(
        {**tensors, "layers": torch.tensor(vector.layers)},
        path,
        metadata={"steerlens": json.dumps(record)},
    )
    loaded = SteeringVector.load(path)
    assert all(torch.equal(getattr(loaded, name), tensors[name]) for name in names)
    assert loaded.reads is None and loaded.metadata == {"n_layers": 3, "seed": 0}
    assert loaded.at(1).interventions[0].operation == "set_projection"


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
        ({"layers": torch.full((3,), torch.inf)}, "whole number; got inf"),
        ({"gaps": torch.zeros(3).to(torch.float8_e4m3fn)}, "gaps are torch.float8"),
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


def vector_of(
    seed: int, n_layers: int = 2, d_model: int = 5, shared: int = 7, **metadata
) -> SteeringVector:
    """A difference of means; vectors of one `shared` have the same uninstructed residuals."""
    instructed = torch.randn(8, n_layers, d_model, generator=torch.Generator().manual_seed(seed))
    uninstructed = torch.randn(
        8, n_layers, d_model, generator=torch.Generator().manual_seed(10_000 + shared)
    )
    instruction = {"instruction": f"v{seed}", **metadata}
    return difference_of_means(
        ResidualCache.from_tensors(instructed + 1.0, uninstructed + 0.5, metadata=instruction)
    )


def pushes(vector: SteeringVector) -> np.ndarray:
    """What ``add`` adds at strength 1."""
    return (vector.gaps[:, None] * vector.directions).double().numpy()


def assert_same(one: SteeringVector, other: SteeringVector) -> None:
    for name in ("directions", "gaps", "targets", "baselines"):
        torch.testing.assert_close(
            getattr(one, name), getattr(other, name), rtol=1e-3, atol=1e-4, msg=name
        )


SEEDS = st.integers(0, 500)
FACTORS = st.floats(-4, 4).filter(lambda x: abs(x) > 0.05)


@given(a=SEEDS, b=SEEDS, x=FACTORS, y=FACTORS)
@settings(max_examples=40, deadline=None)
def test_linear_combinations_are_those_of_the_pushes(a, b, x, y):
    one, other = vector_of(a), vector_of(501 + b)
    combined = x * one + other * y
    np.testing.assert_allclose(pushes(combined), x * pushes(one) + y * pushes(other), atol=1e-4)
    np.testing.assert_allclose(pushes(one - other), pushes(one) - pushes(other), atol=1e-4)


@given(a=SEEDS, b=SEEDS, c=SEEDS, x=FACTORS)
@settings(max_examples=40, deadline=None)
def test_addition_associates_and_commutes_and_scaling_distributes(a, b, c, x):
    one, two, three = vector_of(a), vector_of(501 + b), vector_of(1002 + c)
    assert_same((one + two) + three, one + (two + three))
    assert_same(one + two, two + one)
    assert_same(x * (one + two), x * one + x * two)
    negative = -one
    assert_same(-negative, one)
    assert_same(1.0 * one, one)


@given(a=SEEDS, b=SEEDS, x=FACTORS)
@settings(max_examples=30, deadline=None)
def test_baselines_of_combinations_are_projections_of_the_shared_uninstructed_mean(a, b, x):
    # given the mean that both vectors were fitted beside, which no vector holds
    generator = torch.Generator().manual_seed(10_007)
    mean = (torch.randn(8, 2, 5, generator=generator) + 0.5).mean(0)
    combined = vector_of(a) + x * vector_of(501 + b)
    expected = (combined.directions * mean).sum(-1)
    torch.testing.assert_close(combined.baselines, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(combined.targets, expected + combined.gaps, rtol=1e-3, atol=1e-3)


@given(a=SEEDS, b=SEEDS, c=SEEDS)
@settings(max_examples=40, deadline=None)
def test_orthogonalised_vectors_are_orthogonal_and_the_rest_lies_in_the_span(a, b, c):
    one, two, three = vector_of(a), vector_of(501 + b), vector_of(1002 + c)
    left = one.orthogonalise(two, three)
    for layer in range(2):
        span = np.stack([v.directions[layer].double().numpy() for v in (two, three)], axis=1)
        projection = span @ np.linalg.lstsq(span, pushes(one)[layer], rcond=None)[0]
        np.testing.assert_allclose(pushes(left)[layer], pushes(one)[layer] - projection, atol=1e-4)
        np.testing.assert_allclose(left.directions[layer].numpy() @ span, 0, atol=1e-4)
    # and doing it again changes nothing
    assert_same(left.orthogonalise(two, three), left)


def test_orthogonalised_vectors_keep_their_baseline_because_the_others_are_known():
    one, two = vector_of(1), vector_of(2)
    left = one.orthogonalise(two)
    generator = torch.Generator().manual_seed(10_007)
    mean = (torch.randn(8, 2, 5, generator=generator) + 0.5).mean(0)
    torch.testing.assert_close(left.baselines, (left.directions * mean).sum(-1))
    assert left.at(0).interventions[0].target == pytest.approx(float(left.targets[0]))


@given(seed=SEEDS, k=st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_projecting_out_leaves_nothing_in_the_subspace(seed, k):
    vector = vector_of(seed)
    subspace = torch.randn(k, 5, generator=torch.Generator().manual_seed(seed))
    left = vector.project_out(subspace)
    np.testing.assert_allclose(pushes(left) @ subspace.double().numpy().T, 0, atol=1e-4)
    per_layer = vector.project_out(subspace.expand(2, k, 5))
    assert_same(left, per_layer)


def test_what_was_projected_out_has_no_known_baseline_so_targets_are_refused(tmp_path):
    left = vector_of(1).project_out(torch.eye(5)[:1])
    left = SteeringVector.load(left.save(tmp_path / "v.safetensors"))
    with pytest.raises(SteeringError, match="baseline along what was projected out is unknown"):
        left.at(0)
    assert left.at(0, "add").interventions[0].baseline is None
    with pytest.raises(SteeringError, match="needs a target"):
        (left + vector_of(2)).at(0)


@given(a=SEEDS, share=st.floats(0, 1))
@settings(max_examples=20, deadline=None)
def test_interpolation_runs_from_one_vector_to_the_other(a, share):
    one, other = vector_of(a), vector_of(501 + a)
    between = one.interpolate(other, share)
    expected = (1 - share) * pushes(one) + share * pushes(other)
    np.testing.assert_allclose(pushes(between), expected, atol=1e-4)
    assert_same(one.interpolate(other, 0.0), one)
    assert_same(one.interpolate(other, 1.0), other)


def test_vectors_of_different_positions_or_weights_combine_to_add_but_not_to_a_target():
    at_prompt = vector_of(1, position="last_prompt", weights_hash="a")
    for other in (
        vector_of(2, position="response_mean", weights_hash="a"),
        vector_of(2, position="last_prompt", weights_hash="b"),
    ):
        combined = at_prompt + other
        assert combined.at(0, "add").interventions[0].gap > 0
        with pytest.raises(SteeringError, match="parts differ in"):
            combined.at(0)


def test_what_a_combination_was_made_of_is_kept_and_a_calibration_is_not():
    one = vector_of(1, data_hash="x", model="m", calibration=[{"layer": 0}])
    combined = 2 * one - vector_of(2, data_hash="y", model="m")
    assert combined.name == "2 × v1 + -1 × v2"
    assert combined.metadata["model"] == "m"
    assert "data_hash" not in combined.metadata and "calibration" not in combined.metadata
    parts = [(part["factor"], part["name"]) for part in combined.metadata["parts"]]
    assert parts == [(1.0, "2 × v1"), (-1.0, "v2")]


@pytest.mark.parametrize(
    ("combine", "words"),
    [
        (lambda v: v - v, "nothing is left of v1 .* at layer 0"),
        (lambda v: v * 0.0, "nothing is left"),
        (lambda v: v * float("inf"), "not finite"),
        (lambda v: v + vector_of(2, n_layers=3), "different layers or widths"),
        (lambda v: v + vector_of(2, d_model=6), "different layers or widths"),
        (lambda v: v.orthogonalise(2 * v), "nothing is left"),
        (lambda v: v.orthogonalise(), "at least one vector"),
        (lambda v: v.project_out(torch.eye(5)), "nothing is left"),
        (lambda v: v.project_out(torch.eye(6)), r"got \(6, 6\)"),
        (lambda v: v.project_out(torch.full((1, 5), torch.nan)), "NaN"),
    ],
)
def test_combinations_without_a_direction_are_refused_in_one_sentence(combine, words):
    with pytest.raises(SteeringError, match=words):
        combine(vector_of(1))


def test_vectors_of_models_of_other_depth_do_not_combine():
    sides = torch.randn(2, 4, 2, 5)
    one, other = (
        difference_of_means(
            ResidualCache.from_tensors(sides[0], sides[1], metadata={"n_layers": depth})
        )
        for depth in (3, 4)
    )
    with pytest.raises(SteeringError, match="3 and 4 layers; only vectors of one model"):
        one + other


def test_a_number_is_no_vector():
    with pytest.raises(SteeringError, match="combines with another one; got int"):
        vector_of(1) + 3
    with pytest.raises(TypeError):
        vector_of(1) * vector_of(2)
