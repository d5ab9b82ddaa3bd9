"""Claims about contributions of positions: they add up, and each equals a run by hand."""

import pytest
import torch
from hf_reference import adding, one_pass
from steering_examples import random_vector

from steerlens.effects import token_contributions, token_effects
from steerlens.errors import SteerlensError

LAYER, STRENGTH = 18, 4.0
IDS = list(range(400, 418))


@pytest.fixture(scope="module")
def vector():
    return random_vector(30, 576)


@pytest.fixture(scope="module")
def effects(model, vector):
    return token_effects(model, IDS[:6], IDS[6:], vector.at(LAYER, "add", STRENGTH))


def test_contributions_add_up_to_the_whole_change(model, effects):
    found = token_contributions(model, effects, 15)

    assert len(found.spans) == 15
    assert float(found.contributions.sum()) == pytest.approx(found.change, abs=1e-12)
    whole = float(effects.logprob_steered[15] - effects.logprob_baseline[15])
    assert found.change == pytest.approx(whole, abs=1e-4)
    assert found.table.share.sum() == pytest.approx(1.0)
    assert found.table.role.tolist() == ["prompt"] * 6 + ["response"] * 9


def test_each_contribution_equals_switching_its_position_on_by_hand(
    model, effects, hf_model, vector
):
    shift = STRENGTH * vector.gaps[LAYER] * vector.directions[LAYER]
    expected = []
    for n_on in range(8):
        on = torch.arange(7) < n_on
        run = one_pass(hf_model, IDS[:7], [adding(LAYER, shift, on)])
        expected.append(float(run.logprobs[-1, IDS[7]]))

    found = token_contributions(model, effects, 7)

    torch.testing.assert_close(
        found.contributions, torch.tensor(expected, dtype=torch.float64).diff(), rtol=0, atol=1e-4
    )
    assert found.logprob_baseline == pytest.approx(expected[0], abs=1e-4)


def test_the_plain_path_gives_the_same_parts(model, effects):
    with model.hooks(fwd_hooks=[("blocks.2.attn.hook_pattern", lambda resid, hook: None)]):
        plain = token_contributions(model, effects, 9, group=4)
    fast = token_contributions(model, effects, 9, group=4)

    assert plain.spans == fast.spans
    torch.testing.assert_close(plain.contributions, fast.contributions, rtol=0, atol=1e-4)


def test_runs_of_positions_do_not_cross_the_end_of_the_prompt_and_add_up_as_well(model, effects):
    single, grouped = (token_contributions(model, effects, 12, group=n) for n in (1, 4))

    assert grouped.spans == ((0, 4), (4, 6), (6, 10), (10, 12))
    for (start, stop), part in zip(grouped.spans, grouped.contributions.tolist(), strict=True):
        assert part == pytest.approx(float(single.contributions[start:stop].sum()), abs=1e-4)


def test_positions_no_intervention_touches_have_no_part(model, vector):
    steering = vector.at(LAYER, "add", STRENGTH, "response") + vector.at(29, "add", 1.0, "response")
    effects = token_effects(model, IDS[:6], IDS[6:], steering)

    found = token_contributions(model, effects, 10)

    assert found.spans == tuple((n, n + 1) for n in range(6, 10))
    assert float(found.contributions.sum()) == pytest.approx(
        float(effects.logprob_steered[10] - effects.logprob_baseline[10]), abs=1e-4
    )
    first = token_contributions(model, effects, 6)
    assert first.spans == () and first.change == 0.0
    assert len(first.table) == 0


def test_any_token_can_be_asked_for_also_the_one_that_would_follow(model, effects):
    found = token_contributions(model, effects, len(IDS), target=450)

    assert found.target == model.tokenizer.decode([450])
    assert float(found.contributions.sum()) == pytest.approx(found.change)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"position": 0}, "position must be between 1 and 17, or 18 with a target; got 0"),
        ({"position": 18}, "got 18"),
        ({"position": 3, "group": 0}, "group must be at least 1"),
        ({"position": 3, "target": 10**6}, "token 1000000 is not in this model's vocabulary"),
    ],
)
def test_positions_out_of_range_are_refused(model, effects, arguments, words):
    with pytest.raises(SteerlensError, match=words):
        token_contributions(model, effects, **arguments)
