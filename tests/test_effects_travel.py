"""Claims about how interventions travel, against residuals of a plain Hugging Face model."""

import numpy as np
import pytest
import torch
from effects_examples import by_hand
from steering_examples import random_vector

from steerlens.effects import token_effects

LAYER, STRENGTH = 20, 3.0
IDS = list(range(200, 216))


@pytest.fixture(scope="module")
def vector():
    return random_vector(30, 576)


@pytest.fixture(scope="module")
def travel(model, vector):
    return token_effects(model, IDS[:6], IDS[6:], vector.at(LAYER, "add", STRENGTH)).travel


def test_change_shift_and_norms_equal_hugging_face_at_every_later_layer(travel, hf_model, vector):
    u = vector.directions[LAYER].double()
    plain = torch.stack(by_hand(hf_model, IDS).resid[LAYER:])
    shift = STRENGTH * vector.gaps[LAYER] * vector.directions[LAYER]
    moved = torch.stack(by_hand(hf_model, IDS, LAYER, shift).resid[LAYER:])

    assert travel.layers == tuple(range(LAYER, 30))
    scale = plain.norm(dim=-1)
    for measured, expected in (
        (travel.projection_change[0], (moved - plain) @ u),
        (travel.shift, (moved - plain).norm(dim=-1)),
        (travel.norm_baseline, plain.norm(dim=-1)),
        (travel.norm_change, moved.norm(dim=-1) - plain.norm(dim=-1)),
    ):
        torch.testing.assert_close(measured.double() / scale, expected / scale, rtol=0, atol=1e-4)


def test_the_share_that_survives_is_one_where_it_starts_and_the_ratio_above(travel):
    change = travel.projection_change[0]

    torch.testing.assert_close(travel.survival[0, 0], torch.ones(len(IDS)))
    torch.testing.assert_close(travel.survival[0], change / change[0])
    frame = travel.table
    assert frame.survival.tolist() == pytest.approx(
        [float(np.quantile(row, 0.5)) for row in travel.survival[0].numpy()], rel=1e-6
    )
    assert (frame.survival_low <= frame.survival).all()
    assert (frame.survival <= frame.survival_high).all()


def test_share_is_undefined_at_tokens_that_were_not_touched_and_below_the_layer(model, vector):
    steering = vector.at(LAYER, "add", STRENGTH, "response")

    travel = token_effects(model, IDS[:6], IDS[6:], steering, layers=[5, LAYER, 29]).travel

    assert travel.layers == (5, LAYER, 29)
    assert travel.shift[0].abs().max() == 0
    assert travel.survival[0, 0].isnan().all()
    assert travel.survival[0, :, :6].isnan().all()
    assert travel.survival[0, 1:, 6:].isfinite().all()
    assert travel.table.layer.tolist() == [LAYER, 29]
    assert travel.table.n_tokens.tolist() == [10, 10]


def test_an_intervention_that_moves_nothing_has_no_share(model, vector):
    travel = token_effects(model, IDS[:6], IDS[6:], vector.at(28, "add", 0.0)).travel

    assert travel.survival.isnan().all()
    assert travel.table.survival.isna().all()
    assert "2 layers 28–29" in repr(travel)
