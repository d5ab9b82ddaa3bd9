"""Claims about how interventions propagate, against residuals of a plain Hugging Face model."""

import numpy as np
import pytest
import torch
from hf_reference import adding, one_pass
from steering_examples import random_vector

from steerlens.effects import token_effects

LAYER, STRENGTH = 20, 3.0
IDS = list(range(200, 216))


@pytest.fixture(scope="module")
def vector():
    return random_vector(30, 576)


@pytest.fixture(scope="module")
def propagation(model, vector):
    return token_effects(model, IDS[:6], IDS[6:], vector.at(LAYER, "add", STRENGTH)).propagation


def test_change_shift_and_norms_are_hugging_faces_at_every_later_layer(
    propagation, hf_model, vector
):
    u = vector.directions[LAYER].double()
    plain = one_pass(hf_model, IDS).resid[LAYER:]
    shift = STRENGTH * vector.gaps[LAYER] * vector.directions[LAYER]
    moved = one_pass(hf_model, IDS, [adding(LAYER, shift)]).resid[LAYER:]

    assert propagation.layers == tuple(range(LAYER, 30))
    scale = plain.norm(dim=-1)
    for measured, expected in (
        (propagation.projection_change[0], (moved - plain) @ u),
        (propagation.shift, (moved - plain).norm(dim=-1)),
        (propagation.norm_baseline, plain.norm(dim=-1)),
        (propagation.norm_change, moved.norm(dim=-1) - plain.norm(dim=-1)),
    ):
        torch.testing.assert_close(measured.double() / scale, expected / scale, rtol=0, atol=1e-4)


def test_the_share_that_survives_is_one_where_it_starts_and_the_ratio_above(propagation):
    change = propagation.projection_change[0]

    torch.testing.assert_close(propagation.survival[0, 0], torch.ones(len(IDS)))
    torch.testing.assert_close(propagation.survival[0], change / change[0])
    frame = propagation.table
    assert frame.survival.tolist() == pytest.approx(
        [float(np.quantile(row, 0.5)) for row in propagation.survival[0].numpy()], rel=1e-6
    )
    assert (frame.survival_low <= frame.survival).all()
    assert (frame.survival <= frame.survival_high).all()


def test_share_is_undefined_at_tokens_that_were_not_touched_and_below_the_layer(model, vector):
    steering = vector.at(LAYER, "add", STRENGTH, "response")

    effects = token_effects(model, IDS[:6], IDS[6:], steering, layers=[5, LAYER, 29])
    propagation = effects.propagation

    assert propagation.layers == (5, LAYER, 29)
    assert propagation.shift[0].abs().max() == 0
    assert propagation.survival[0, 0].isnan().all()
    assert propagation.survival[0, :, :6].isnan().all()
    assert propagation.survival[0, 1:, 6:].isfinite().all()
    assert propagation.table.layer.tolist() == [LAYER, 29]
    assert propagation.table.n_tokens.tolist() == [10, 10]


def test_an_intervention_that_moves_nothing_has_no_share(model, vector):
    propagation = token_effects(model, IDS[:6], IDS[6:], vector.at(28, "add", 0.0)).propagation

    assert propagation.survival.isnan().all()
    assert propagation.table.survival.isna().all()
    assert "2 layers 28–29" in repr(propagation)
