"""Claims about which tokens are prompt, which response, and which padding."""

import pytest
import torch
from steering_examples import n_hooks

from steerlens.errors import SteeringError
from steerlens.steering.roles import TokenRoles, observed_roles


def test_roles_split_prompt_and_response_and_leave_padding_out():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    roles = TokenRoles.of_mask(mask, 5, torch.tensor([2, 4]))
    assert roles.prompt.int().tolist() == [[0, 0, 1, 1, 0], [1, 1, 1, 1, 0]]
    assert roles.response.int().tolist() == [[0, 0, 0, 0, 1], [0, 0, 0, 0, 1]]
    cached = TokenRoles.of_mask(mask, 1, None)
    assert cached.response.tolist() == [[True], [True]]


def test_prompt_lengths_must_name_every_row():
    mask = torch.ones(2, 3, dtype=torch.long)
    with pytest.raises(SteeringError, match="got 1 for 2 rows"):
        TokenRoles.of_mask(mask, 3, torch.tensor([2]))


def test_roles_of_the_pass_in_progress_are_observed_and_the_hook_is_taken_off(tiny_model):
    before = n_hooks(tiny_model)
    with observed_roles(tiny_model, prompt_lengths=[2, 3]) as roles:
        tiny_model(torch.tensor([[3, 4, 5], [3, 4, 5]]))
        assert roles().prompt.tolist() == [[True, True, False], [True, True, True]]
    assert n_hooks(tiny_model) == before


def test_a_call_without_tokens_is_refused():
    with pytest.raises(SteeringError, match="no input_ids"):
        TokenRoles.of_forward((), {}, None)


def test_a_mask_of_another_shape_is_refused():
    arguments = {"input_ids": torch.ones(1, 2, dtype=torch.long), "attention_mask": torch.ones(2)}
    with pytest.raises(SteeringError, match=r"\[batch pos\] attention mask"):
        TokenRoles.of_forward((), arguments, None)
