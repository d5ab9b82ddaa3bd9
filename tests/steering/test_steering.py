"""Claims about operations, scopes, composition and hooks."""

import pytest
import torch
from hf_reference import Push, greedy, load_plain
from hypothesis import given, settings
from hypothesis import strategies as st
from steering_examples import n_hooks, random_vector

from steerlens.engine.batches import left_padded
from steerlens.errors import SteeringError, UnknownNameError
from steerlens.models.loading import tokenize_prompts
from steerlens.steering.interventions import Steering, applied_to_rows
from steerlens.steering.roles import TokenRoles
from steerlens.steering.rows import RowSteering, steer_residual

PROMPTS = [
    "Tell me about Rome.",
    "Why is the sky blue?",
    "Write a short note to my landlord asking for a new key, and be polite about it.",
    "List fruits.",
]


def residual_after(model, steering, layer, tokens, mask, **applied):
    kept = {}

    def keep(resid, hook):
        kept["resid"] = resid.clone()

    with (
        torch.inference_mode(),
        steering.applied(model, **applied),
        model.hooks(fwd_hooks=[(f"blocks.{layer}.hook_out", keep)]),
    ):
        logits = model(tokens, attention_mask=mask)
    return kept["resid"], logits


@given(
    strength=st.floats(-3, 3),
    operation=st.sampled_from(["add", "set_projection", "ablate"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=50, deadline=None)
def test_every_operation_equals_its_equation_in_the_manual(strength, operation, seed):
    vector = random_vector(1, 8, seed)
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(seed + 1))
    u, g, z = vector.directions[0], vector.gaps[0], vector.targets[0]
    expected = {
        "add": x + strength * g * u,
        "set_projection": x + strength * (z - x @ u)[..., None] * u,
        "ablate": x - strength * (x @ u)[..., None] * u,
    }[operation]
    one = vector.at(0, operation, strength).interventions[0]
    a, b = one.coefficients
    changed = steer_residual(
        x, u[None], torch.tensor([a]), torch.tensor([b]), torch.ones(2, 3, dtype=torch.bool)
    )
    torch.testing.assert_close(changed, expected, rtol=1e-4, atol=1e-4)


def test_untouched_positions_keep_their_bits_even_when_they_hold_nan():
    vector = random_vector(1, 8)
    x = torch.randn(1, 3, 8)
    x[0, 0] = torch.nan
    touched = torch.tensor([[False, True, False]])
    changed = steer_residual(
        x, vector.directions, torch.tensor([5.0]), torch.tensor([0.0]), touched
    )
    assert torch.isnan(changed[0, 0]).all()
    assert torch.equal(changed[0, 2], x[0, 2])
    assert not torch.equal(changed[0, 1], x[0, 1])


def test_set_projection_meets_its_target_at_every_real_position(model):
    vector = random_vector(30, 576)
    tokens, mask = left_padded(tokenize_prompts(model, PROMPTS))
    resid, _ = residual_after(model, vector.at(12), 12, tokens, mask)
    projection = resid @ vector.directions[12]
    real = projection[mask.bool()]
    assert (real / vector.targets[12] - 1).abs().max() < 1e-3


def test_padding_is_never_touched(model):
    vector = random_vector(30, 576)
    tokens, mask = left_padded(tokenize_prompts(model, PROMPTS))
    plain, _ = residual_after(model, Steering(()), 12, tokens, mask)
    steered, _ = residual_after(model, vector.at(12, "add", 3.0), 12, tokens, mask)
    padding = ~mask.bool()
    assert padding.any()
    assert torch.equal(plain[padding], steered[padding])
    assert not torch.equal(plain[~padding], steered[~padding])


def test_strength_zero_leaves_logits_bit_identical(model):
    vector = random_vector(30, 576)
    tokens, mask = left_padded(tokenize_prompts(model, PROMPTS[:2]))
    with torch.inference_mode():
        plain = model(tokens, attention_mask=mask)
    for operation in ("add", "set_projection", "ablate"):
        _, logits = residual_after(model, vector.at(7, operation, 0.0), 7, tokens, mask)
        assert torch.equal(plain, logits), operation


def test_scopes_touch_only_their_tokens(tiny_model):
    vector = random_vector(tiny_model.cfg.n_layers, tiny_model.cfg.d_model)
    tokens = torch.arange(6)[None] + 3
    mask = torch.ones_like(tokens)
    plain, _ = residual_after(tiny_model, Steering(()), 0, tokens, mask)
    for scope, expected in {
        "prompt": [True, True, True, True, False, False],
        "response": [False, False, False, False, True, True],
        "all": [True] * 6,
        "first:1": [False, False, False, False, True, False],
        "first:99": [False, False, False, False, True, True],
    }.items():
        steering = vector.at(0, "add", 1.0, scope)
        steered, _ = residual_after(tiny_model, steering, 0, tokens, mask, prompt_lengths=[4])
        changed = (steered != plain).any(-1)[0]
        assert changed.tolist() == expected, scope


def test_composition_applies_in_order_so_the_last_target_holds():
    first, second = random_vector(1, 8, 1), random_vector(1, 8, 2)
    x = torch.randn(1, 2, 8)
    real = torch.ones(1, 2, dtype=torch.bool)
    roles = TokenRoles(prompt=real, response=~real)
    both = RowSteering([first.at(0) + second.at(0)]).apply(0, x, roles)
    one = RowSteering([second.at(0)]).apply(0, RowSteering([first.at(0)]).apply(0, x, roles), roles)
    torch.testing.assert_close(both, one)
    torch.testing.assert_close(
        both @ second.directions[0], second.targets.expand(1, 2), rtol=1e-4, atol=1e-4
    )


def test_each_row_of_a_batch_follows_its_own_steering():
    vector, other = random_vector(2, 8, 1), random_vector(2, 8, 2)
    steerings = [
        vector.at(0, "add", 2.0),
        None,
        other.at(1) + vector.at(0, "ablate"),
        vector.at(0) + other.at(0, "add"),
    ]
    x = torch.randn(4, 3, 8)
    real = torch.ones(4, 3, dtype=torch.bool)
    together = RowSteering(steerings)
    for layer in (0, 1):
        batched = together.apply(layer, x, TokenRoles(real, ~real))
        for row, steering in enumerate(steerings):
            alone = RowSteering([steering]).apply(
                layer, x[row : row + 1], TokenRoles(real[:1], ~real[:1])
            )
            torch.testing.assert_close(batched[row : row + 1], alone)


def test_rows_of_a_forward_pass_are_steered_each_in_its_own_way(tiny_model):
    vector = random_vector(tiny_model.cfg.n_layers, tiny_model.cfg.d_model)
    tokens, mask = left_padded([[3, 4, 5, 6], [7, 8], [9, 10, 11]])
    rows = [vector.at(1, "add", 2.0), None, vector.at(0) + vector.at(2, "ablate", scope="response")]
    with torch.inference_mode(), applied_to_rows(tiny_model, rows, prompt_lengths=[2, 2, 2]):
        together = tiny_model(tokens, attention_mask=mask)
    for i, steering in enumerate(rows):
        alone = Steering(()) if steering is None else steering
        with torch.inference_mode(), alone.applied(tiny_model, prompt_lengths=[2]):
            expected = tiny_model(tokens[i : i + 1], attention_mask=mask[i : i + 1])[0, -1]
        torch.testing.assert_close(together[i, -1], expected, rtol=1e-4, atol=1e-4)


def test_a_batch_with_another_number_of_rows_is_refused(tiny_model):
    vector = random_vector(tiny_model.cfg.n_layers, tiny_model.cfg.d_model)
    with (
        pytest.raises(SteeringError, match="got 2 for a batch of 3 rows"),
        applied_to_rows(tiny_model, [vector.at(0), None]),
    ):
        tiny_model(torch.ones(3, 2, dtype=torch.long))


def test_a_scaled_steering_has_every_strength_multiplied():
    both = random_vector(2, 8).at(0, "add", 2.0) + random_vector(2, 8).at(1, "ablate", 0.5)
    assert [one.strength for one in both.scaled(3.0).interventions] == [6.0, 1.5]


def test_hooks_are_gone_after_success_failure_and_interrupt(tiny_model):
    vector = random_vector(tiny_model.cfg.n_layers, tiny_model.cfg.d_model)
    before = n_hooks(tiny_model)
    tokens = torch.tensor([[3, 4, 5]])
    with vector.at(0).applied(tiny_model):
        assert n_hooks(tiny_model) > before
        tiny_model(tokens)
    assert n_hooks(tiny_model) == before
    for failure in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(failure), vector.at(0).applied(tiny_model):
            tiny_model(tokens)
            raise failure
        assert n_hooks(tiny_model) == before


def test_steering_works_inside_the_models_own_generate(tiny_model):
    vector = random_vector(tiny_model.cfg.n_layers, tiny_model.cfg.d_model)
    tokens = torch.tensor([[3, 4, 5]])
    calls = []

    def count(resid, hook):
        calls.append(resid.shape[1])

    with (
        vector.at(0, "add", 4.0).applied(tiny_model),
        tiny_model.hooks(fwd_hooks=[("blocks.0.hook_out", count)]),
    ):
        tiny_model.generate(tokens, max_new_tokens=3, do_sample=False, verbose=False)
    assert calls == [3, 1, 1]


def test_the_first_tokens_of_a_response_are_counted_over_the_steps_of_a_generation(
    tiny_model, tiny_folder
):
    hf_model = load_plain(tiny_folder)
    vector = random_vector(tiny_model.cfg.n_layers, tiny_model.cfg.d_model)
    steering = vector.at(1, "add", 3.0, scope="first:2")
    u, gap = vector.directions[1], float(vector.gaps[1])
    push = Push(1, u, gap, 0.0, "add", 3.0, "first:2")
    prompts, n_new = [[3, 4, 5, 6, 7], [8, 9]], 6
    expected = [greedy(hf_model, prompt, [push], n_new) for prompt in prompts]
    assert expected != [greedy(hf_model, prompt, [], n_new) for prompt in prompts]
    tokens, mask = left_padded(prompts)
    with steering.applied(tiny_model), torch.inference_mode():
        out = tiny_model.original_model.generate(
            tokens, attention_mask=mask, max_new_tokens=n_new, do_sample=False, eos_token_id=-1
        )
    assert out[:, tokens.shape[1] :].tolist() == expected


def test_a_response_whose_prompt_was_read_before_cannot_be_counted(tiny_model):
    vector = random_vector(tiny_model.cfg.n_layers, tiny_model.cfg.d_model)
    with torch.inference_mode():
        cache = tiny_model.original_model(torch.tensor([[3, 4]]), use_cache=True).past_key_values
    with (
        pytest.raises(SteeringError, match=r"the prompt was read elsewhere; .* prompt_lengths"),
        vector.at(0, scope="first:2").applied(tiny_model),
    ):
        tiny_model.original_model(torch.tensor([[5]]), past_key_values=cache)


def test_scopes_add_up_to_the_prompt_and_the_first_tokens():
    prompt, first = (random_vector(2, 8).at(0, scope=scope) for scope in ("prompt", "first:3"))
    both = prompt + first
    assert both.touching("prompt").interventions == prompt.interventions
    assert both.touching("response").interventions == first.interventions
    assert first.interventions[0].describe().endswith("on first:3")


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"layer": 99}, SteeringError, "layer 99 is out of range"),
        ({"layer": 0, "operation": "ad"}, UnknownNameError, "did you mean 'add'"),
        ({"layer": 0, "scope": "promt"}, UnknownNameError, "did you mean 'prompt'"),
        (
            {"layer": 0, "scope": "first:N"},
            SteeringError,
            "whole number of at least 1 .* 'first:8'",
        ),
        ({"layer": 0, "scope": "first:0"}, SteeringError, "'first:0' needs a whole number"),
        ({"layer": 0, "scope": "first:-3"}, SteeringError, "'first:-3' needs"),
        ({"layer": 0, "scope": "8"}, UnknownNameError, "choose one of .*first:N"),
        ({"layer": 0, "strength": float("nan")}, SteeringError, "finite"),
    ],
)
def test_bad_steering_is_refused_in_one_sentence(arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        random_vector(2, 8).at(**arguments)


def test_a_vector_of_another_width_or_depth_is_refused(tiny_model):
    depth, width = tiny_model.cfg.n_layers, tiny_model.cfg.d_model
    wide = random_vector(depth, width + 1)
    with (
        pytest.raises(SteeringError, match=f"d_model {width + 1}"),
        wide.at(0).applied(tiny_model),
    ):
        pass
    deep = random_vector(depth + 1, width)
    with pytest.raises(SteeringError, match="out of range"):
        deep.at(depth).check_model(tiny_model)
    with pytest.raises(SteeringError, match=f"{depth + 1} layers"):
        deep.check_model(tiny_model)
