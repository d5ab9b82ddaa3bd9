"""Claims about composed steerings: what is expected of them, and joint projection."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steerlens.activations.cache import ResidualCache, cache_residuals
from steerlens.errors import SteeringError
from steerlens.steering.interventions import Steering
from steerlens.steering.operations import Intervention
from steerlens.steering.roles import TokenRoles
from steerlens.steering.rows import RowSteering
from steerlens.tasks.drawing import contrast_pairs
from steerlens.vectors import SteeringVector, difference_of_means
from steerlens.vectors.composition import compose_report, joint_projection

FIVE = [
    "detectable_format:title",
    "detectable_format:number_bullet_lists",
    "detectable_format:json_format",
    "change_case:english_capital",
    "startend:quotation",
]


def towards(
    direction,
    target=1.0,
    baseline=0.0,
    layer=3,
    operation="set_projection",
    strength=1.0,
    scope="all",
    gap=1.0,
    label="v",
) -> Steering:
    unit = torch.as_tensor(direction, dtype=torch.float32)
    return Steering(
        (
            Intervention(
                layer=layer,
                direction=unit / unit.norm(),
                gap=gap,
                target=float(target),
                operation=operation,
                strength=float(strength),
                scope=scope,
                label=label,
                baseline=baseline,
            ),
        )
    )


def random_steerings(k, d_model=12, seed=0, **options) -> list[Steering]:
    rng = np.random.default_rng(seed)
    common = rng.normal(size=d_model)  # so that cosines are far from zero
    return [
        towards(rng.normal(size=d_model) + common, rng.normal() * 5, float(rng.normal()), **options)
        for _ in range(k)
    ]


def matrix_and_targets(steerings):
    ones = [one for steering in steerings for one in steering.interventions]
    u = np.stack([one.direction.double().numpy() for one in ones], axis=1)
    return u, np.array([one.target for one in ones])


def applied(steering: Steering, x: torch.Tensor, layer: int = 3) -> torch.Tensor:
    real = torch.ones(x.shape[:2], dtype=torch.bool)
    return RowSteering([steering]).apply(layer, x, TokenRoles(real, ~real))


def residuals(d_model=12, seed=0) -> torch.Tensor:
    return torch.randn(2, 3, d_model, generator=torch.Generator().manual_seed(seed)) * 10


@given(k=st.integers(1, 6), seed=st.integers(0, 500), strength=st.floats(0, 2))
@settings(max_examples=40, deadline=None)
def test_joint_projection_is_the_least_change_that_meets_all_targets(k, seed, strength):
    steerings = random_steerings(k, seed=seed, strength=strength)
    x = residuals(seed=seed)
    u, z = matrix_and_targets(steerings)
    moved = applied(joint_projection(steerings, cutoff=0.0), x).double().numpy()
    # numpy's least-squares solver gives the solution of least norm of Uᵀ δ = z − Uᵀ x
    for before, after in zip(x.double().reshape(-1, 12), moved.reshape(-1, 12), strict=True):
        change = np.linalg.lstsq(u.T, z - u.T @ before.numpy(), rcond=None)[0]
        np.testing.assert_allclose(after, before.numpy() + strength * change, atol=2e-3)


@given(k=st.integers(2, 5), seed=st.integers(0, 500))
@settings(max_examples=30, deadline=None)
def test_all_targets_hold_at_once_and_in_any_order(k, seed):
    steerings = random_steerings(k, seed=seed)
    u, z = matrix_and_targets(steerings)
    joint = joint_projection(steerings)
    backwards = Steering(tuple(reversed(joint.interventions)))
    for steering in (joint, backwards):
        projections = applied(steering, residuals(seed=seed)).double().numpy() @ u
        np.testing.assert_allclose(projections, np.broadcast_to(z, projections.shape), atol=1e-3)


def test_targets_that_conflict_are_met_in_the_sense_of_least_squares():
    # given one direction twice, with targets 1 and 3, and another one
    steerings = [towards([1.0, 0, 0], 1), towards([1.0, 0, 0], 3), towards([0, 1.0, 0], 5)]
    joint = joint_projection(steerings)
    assert len(joint.interventions) == 2
    moved = applied(joint, residuals(d_model=3))
    torch.testing.assert_close(moved[..., :2], torch.tensor([2.0, 5.0]).expand(2, 3, 2))


def test_directions_closer_than_the_cutoff_do_not_push_without_bound():
    steerings = [towards([1.0, 0.001], 1), towards([1.0, -0.001], 2)]
    x = residuals(d_model=2)
    bounded = applied(joint_projection(steerings), x)
    exact = applied(joint_projection(steerings, cutoff=0.0), x)
    assert (exact - x).norm() > 20 * (bounded - x).norm()


def test_strengths_move_each_target_from_its_baseline_and_hold_jointly():
    steerings = random_steerings(3, seed=4)
    strengths = (0.5, 1.0, 2.0)
    u, z = matrix_and_targets(steerings)
    b = np.array([s.interventions[0].baseline for s in steerings])
    balanced = joint_projection(steerings, strengths=strengths)
    projections = applied(balanced, residuals()).double().numpy() @ u
    expected = b + np.array(strengths) * (z - b)
    np.testing.assert_allclose(projections, np.broadcast_to(expected, projections.shape), atol=1e-3)


def test_each_layer_is_solved_on_its_own():
    low, high = random_steerings(2, seed=1, layer=3), random_steerings(2, seed=2, layer=5)
    joint = joint_projection([*low, *high])
    assert [one.layer for one in joint.interventions] == [3, 3, 5, 5]
    u, z = matrix_and_targets(high)
    np.testing.assert_allclose(
        applied(joint, residuals(), layer=5).double().numpy() @ u,
        np.broadcast_to(z, (2, 3, 2)),
        atol=1e-3,
    )


@pytest.mark.parametrize(
    ("steerings", "options", "words"),
    [
        ([towards([1.0, 0], operation="add")], {}, "add ×1 at layer 3 on all is none"),
        ([towards([1.0, 0]), towards([0, 1.0], scope="prompt")], {}, "different scopes"),
        ([towards([1.0, 0]), towards([0, 1.0], strength=0.5)], {}, "different strengths"),
        ([towards([1.0, 0])], {"strengths": (1.0, 2.0)}, "got 2 for 1"),
        ([towards([1.0, 0], baseline=None)], {"strengths": (1.0,)}, "no baseline"),
        ([towards([1.0, 0])], {"cutoff": 1.0}, "cutoff"),
        ([towards([1.0, 0]), towards([0, 1.0, 0])], {}, r"different widths .* \[2, 3\]"),
        ([], {}, "nothing to compose"),
    ],
)
def test_what_has_no_joint_projection_is_refused_in_one_sentence(steerings, options, words):
    with pytest.raises(SteeringError, match=words):
        joint_projection(steerings, **options)


@given(k=st.integers(1, 4), seed=st.integers(0, 300), data=st.data())
@settings(max_examples=30, deadline=None)
def test_expected_projections_are_those_of_a_residual_at_the_baselines(k, seed, data):
    operations = st.sampled_from(["add", "set_projection", "ablate"])
    steerings = [
        Steering(
            (
                replace(
                    steering.interventions[0],
                    operation=data.draw(operations),
                    strength=data.draw(st.floats(-2, 2)),
                ),
            )
        )
        for steering in random_steerings(k, seed=seed)
    ]
    u, _ = matrix_and_targets(steerings)
    b = np.array([s.interventions[0].baseline for s in steerings])
    x = torch.from_numpy(np.linalg.lstsq(u.T, b, rcond=None)[0]).float()[None, None]
    together = sum(steerings[1:], steerings[0])
    report = compose_report(steerings)
    np.testing.assert_allclose(
        report.table.expected, (applied(together, x)[0, 0].double().numpy() @ u), atol=1e-3
    )
    alone = [float(applied(s, x)[0, 0].double().numpy() @ u[:, i]) for i, s in enumerate(steerings)]
    np.testing.assert_allclose(report.table.alone, alone, atol=1e-3)
    np.testing.assert_allclose(
        report.push.loc[3], float((applied(together, x) - x).norm()), atol=1e-3
    )
    orders = [
        applied(sum(order[1:], order[0]), x)[0, 0].double().numpy() @ u
        for order in itertools.permutations(steerings)
    ]
    np.testing.assert_allclose(report.table.order_spread, np.ptp(orders, axis=0), atol=1e-3)


def test_the_last_of_two_holds_and_the_first_misses_by_the_cosine():
    report = compose_report([towards([1.0, 0], 1), towards([0.6, 0.8], 1)])
    assert report.cosines.iloc[0, 1] == pytest.approx(0.6)
    assert report.table.missed.tolist() == pytest.approx([0.6 * (1 - 0.6), 0.0], abs=1e-6)
    assert report.table.jointly_missed.tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    assert report.order_matters
    assert "order matters" in repr(report)


def test_orthogonal_directions_do_not_disturb_each_other():
    report = compose_report([towards([1.0, 0, 0]), towards([0, 1.0, 0], operation="ablate")])
    assert report.table.missed.abs().max() == 0
    assert report.table.shared_energy.tolist() == [0.0, 0.0]
    assert not report.order_matters


def test_additions_commute():
    report = compose_report(
        [towards([1.0, 0], operation="add"), towards([0.6, 0.8], operation="add")]
    )
    assert report.table.order_spread.abs().max() < 1e-12
    assert report.table.missed.tolist() == pytest.approx([0.6, 0.6], abs=1e-6)


def test_shared_energy_is_the_share_of_variance_the_others_explain():
    steerings = random_steerings(4, seed=9)
    u, _ = matrix_and_targets(steerings)
    precision = np.linalg.inv(u.T @ u)
    expected = 1 - 1 / np.diag(precision)
    np.testing.assert_allclose(compose_report(steerings).table.shared_energy, expected, atol=1e-5)


def test_scopes_that_share_no_token_do_not_meet():
    one, other = towards([1.0, 0], scope="prompt"), towards([0.6, 0.8], scope="response")
    assert compose_report([one, other]).table.missed.abs().max() < 1e-12
    everywhere = towards([0.6, 0.8], scope="all")
    assert compose_report([one, everywhere]).table.missed.iloc[0] == pytest.approx(0.24, abs=1e-6)


def test_a_change_reaches_the_layers_above_and_not_those_below():
    low = towards([1.0, 0], operation="add", layer=2)
    high = towards([0.6, 0.8], operation="add", layer=7)
    table = compose_report([high, low]).table
    assert table.layer.tolist() == [2, 7]
    assert table.missed.tolist() == pytest.approx([0.0, 0.6], abs=1e-6)


def test_without_baselines_projections_are_unknown_and_cosines_are_not():
    report = compose_report([towards([1.0, 0], baseline=None), towards([0.6, 0.8])])
    assert np.isnan(report.table.expected).all()
    assert report.cosines.iloc[0, 1] == pytest.approx(0.6)


def test_more_interventions_than_orders_can_be_tried_are_sampled():
    report = compose_report(random_steerings(7, seed=3), seed=1)
    again = compose_report(random_steerings(7, seed=3), seed=1)
    assert len(report.table) == 7
    assert report.table.order_spread.equals(again.table.order_spread)


def test_five_instructions_at_one_layer_meet_all_targets_in_the_model(model):
    # given vectors of five instructions, steered jointly at layer 24 of the real model
    steerings = []
    for task in FIVE:
        pairs = contrast_pairs(task, n=6, seed=0)
        vector = difference_of_means(cache_residuals(model, pairs, layers=[24]))
        steerings.append(vector.at(24))
    tokens = model.to_tokens("Tell me about Rome and its roads.")
    kept = {}

    def keep(resid, hook):
        kept["resid"] = resid.clone()

    with (
        torch.inference_mode(),
        joint_projection(steerings).applied(model),
        model.hooks(fwd_hooks=[("blocks.24.hook_out", keep)]),
    ):
        model(tokens)
    u, z = matrix_and_targets(steerings)
    projections = kept["resid"][0].double().numpy() @ u
    gaps = np.array([s.interventions[0].gap for s in steerings])
    # to 1e-3 of the gap that each target is meant to close
    assert np.abs((projections - z) / gaps).max() < 1e-3


def test_vectors_compose_with_their_own_names_and_numbers():
    sides = torch.randn(2, 6, 2, 5, generator=torch.Generator().manual_seed(0))
    vector: SteeringVector = difference_of_means(
        ResidualCache.from_tensors(sides[0] + 1, sides[1], metadata={"instruction": "title"})
    )
    report = compose_report(vector.at(0) + vector.at(1, "add", 0.5))
    assert report.cosines.columns.tolist() == ["title @0", "title @1"]
    baseline, gap = float(vector.baselines[0]), float(vector.gaps[0])
    assert report.table.alone[0] == pytest.approx(baseline + gap, rel=1e-5)
    assert "<table" in report._repr_html_()
