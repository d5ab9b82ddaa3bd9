"""Claims about shifts and the exact record: what a vector is when it leaves, and coming back."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interop_examples import assert_same_vector, example_vector, ulps

from steerlens.errors import FileFormatError, SteeringError, SteerlensError
from steerlens.steering.rows import steer_residual
from steerlens.vectors.formats.record import (
    check_claims,
    exact_record,
    shifts_of,
    vector_of_record,
    vector_of_shifts,
)


def test_a_shift_is_what_add_at_strength_one_adds_bit_for_bit() -> None:
    vector = example_vector(d_model=64)
    one = vector.at(2, operation="add").interventions[0]
    offset, slope = one.coefficients

    added = steer_residual(
        torch.zeros(1, 1, 64),
        one.direction[None],
        torch.tensor([offset]),
        torch.tensor([slope]),
        torch.ones(1, 1, dtype=torch.bool),
    )

    assert torch.equal(shifts_of(vector)[2], added[0, 0])


@given(seed=st.integers(0, 10_000), scale=st.floats(1e-3, 1e4))
@settings(max_examples=60, deadline=None)
def test_shifts_from_elsewhere_come_back_within_one_unit_in_the_last_place(
    seed: int, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    given_ = torch.from_numpy((rng.normal(size=50) * scale).astype(np.float32))

    vector = vector_of_shifts({4: given_}, "a test", {})

    norm = np.linalg.norm(given_.double().numpy())
    np.testing.assert_allclose(vector.gaps, [norm], rtol=1e-6)
    np.testing.assert_allclose(vector.directions[0], given_.double().numpy() / norm, rtol=1e-6)
    assert ulps(shifts_of(vector)[4], given_) <= 1


def test_without_a_record_the_targets_are_said_to_be_unknown() -> None:
    vector = vector_of_shifts({1: torch.ones(4)}, "a test", {"model": "m"})

    assert vector.metadata == {"estimator": "imported", "model": "m", "targets_known": False}
    assert vector.targets.tolist() == vector.gaps.tolist() == [2.0]
    assert vector.baselines.tolist() == [0.0]


def test_a_layer_of_zeros_has_no_direction_and_is_left_out() -> None:
    vector = vector_of_shifts({1: torch.zeros(4), 2: torch.ones(4)}, "a test", {})
    assert vector.layers == (2,)
    with pytest.raises(FileFormatError, match="nothing but zeros"):
        vector_of_shifts({1: torch.zeros(4)}, "a test", {})


@pytest.mark.parametrize(
    ("shifts", "words"),
    [
        ({}, "no layers"),
        ({-1: torch.ones(2)}, "names layer -1"),
        ({10**9: torch.ones(2)}, "which no model has"),
        ({True: torch.ones(2)}, "names layer True"),
        ({1: torch.ones(2), 2: torch.ones(3)}, "different widths"),
        ({1: torch.tensor([1.0, float("nan")])}, "NaN or infinity at layer 1"),
        ({1: torch.full((2,), 3e38)}, "norm overflows"),
        ({1: torch.ones(2, dtype=torch.long)}, "expected d_model floating-point"),
        ({1: torch.ones(2, 2)}, "expected d_model floating-point"),
        ({1: torch.tensor(1.0)}, "expected d_model floating-point"),
        ({1: "text"}, "holds a str for layer 1"),
    ],
)
def test_shifts_that_no_vector_can_have_are_refused(shifts: Any, words: str) -> None:
    with pytest.raises(FileFormatError, match=words):
        vector_of_shifts(shifts, "a test", {})


def test_a_record_gives_the_vector_back_bit_for_bit_also_through_json() -> None:
    vector = example_vector()
    record = json.loads(json.dumps(exact_record(vector)))
    assert_same_vector(vector_of_record(record, shifts_of(vector), "a test"), vector)


def test_a_record_that_does_not_match_the_tensors_beside_it_is_refused() -> None:
    vector = example_vector()
    record, shifts = exact_record(vector), shifts_of(vector)

    shifts[1] = shifts[1].clone()
    shifts[1][3] = torch.nextafter(shifts[1][3], torch.tensor(9.0))
    with pytest.raises(FileFormatError, match="does not match its tensors"):
        vector_of_record(record, shifts, "a test")
    with pytest.raises(FileFormatError, match="does not match its tensors"):
        vector_of_record(record, {7: shifts[0]}, "a test")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"directions": "%%%"}, "garbles"),
        ({"directions": ""}, "garbles"),
        ({"directions": "AAAA"}, "garbles"),
        ({"directions": 5}, "garbles"),
        ({"gaps": [1.0]}, "gaps must hold one number"),
        ({"gaps": [1.0, float("nan"), 1.0]}, "NaN"),
        ({"gaps": ["a", "b", "c"]}, "garbles"),
        ({"gaps": [10**400] * 3}, "garbles"),
        ({"targets": None}, "garbles"),
        ({"layers": [0, 0, 1]}, "twice"),
        ({"layers": [0, 1, "2"]}, "names layer '2'"),
        ({"layers": [[0], [1], [2]]}, "which no model has"),
        ({"layers": 3}, "garbles"),
        ({"metadata": []}, "garbles"),
        ({"metadata": {"d_model": 9}}, "says d_model 9"),
        ({"metadata": {"n_layers": 2}}, "2 layers, but it holds layer 2"),
        ({"metadata": {"n_layers": "3"}}, "3 layers, but it holds layer 2"),
    ],
)
def test_garbled_and_lying_records_are_refused(change: dict[str, object], words: str) -> None:
    vector = example_vector()
    with pytest.raises(FileFormatError, match=words):
        vector_of_record({**exact_record(vector), **change}, shifts_of(vector), "a test")


def test_a_missing_part_of_a_record_is_named() -> None:
    record = exact_record(example_vector())
    del record["targets"]
    with pytest.raises(FileFormatError, match="targets"):
        vector_of_record(record, shifts_of(example_vector()), "a test")


def test_metadata_that_json_cannot_hold_are_refused_before_writing() -> None:
    with pytest.raises(SteerlensError, match="cannot be written as JSON"):
        exact_record(example_vector(thing=object()))


def test_some_layers_can_be_chosen_and_unknown_ones_are_refused() -> None:
    vector = example_vector(layers=(3, 5, 9))
    one = vector.restricted_to([9])
    assert one.layers == (9,) and torch.equal(one.directions[0], vector.directions[2])
    assert float(one.targets[0]) == float(vector.targets[2])
    with pytest.raises(SteeringError, match="layer 4 is out of range"):
        vector.restricted_to([4])
    with pytest.raises(SteeringError, match="layers is empty"):
        vector.restricted_to([])


def test_a_vector_that_overflows_float32_is_refused() -> None:
    vector = example_vector(layers=(1,))
    vector.gaps[0] = 3e38
    vector.directions[0] = torch.tensor([1.0] + [0.0] * 7)
    assert torch.isfinite(shifts_of(vector)[1]).all()
    with pytest.raises(SteeringError, match=r"gaps hold .* numbers that do not fit float32"):
        type(vector)(
            vector.directions, vector.gaps.double() * 10, vector.targets, vector.baselines, (1,), {}
        )
    # past the check at construction
    object.__setattr__(vector, "gaps", vector.gaps.double() * 10)
    with pytest.raises(SteeringError, match="does not fit float32"):
        shifts_of(vector)


def test_layers_twice_in_a_vector_are_refused() -> None:
    with pytest.raises(FileFormatError, match="twice"):
        check_claims(example_vector(layers=(1, 1)), "a test")
