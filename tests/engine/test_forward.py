"""Claims about one pass over rows: rows join where they enter, and gradients are right."""

import pytest
import torch
from hf_reference import Change, one_pass
from steering_examples import random_vector

from steerlens.engine.forward import PassRow, run_rows
from steerlens.engine.modules import fast_modules, unembed
from steerlens.engine.reading import read

ROW, N_PROMPT = [3, 4, 5, 6, 7, 8], 4


class Push:
    """Adds ``relu(w·x + bias) z`` at one layer, in the dtype of the stream."""

    def __init__(self, layer, read, write, bias):
        self.layers = [layer]
        self.read, self.write, self.bias = read, write, bias

    def apply(self, layer, resid, roles):
        amount = torch.relu(resid @ self.read + self.bias) * roles.prompt
        return resid + amount[..., None] * self.write


@pytest.mark.parametrize("enters", ["as tokens", "from the trunk"])
def test_gradients_equal_finite_differences(wide_model, plain_model, enters):
    generator = torch.Generator().manual_seed(0)
    read_at, write = torch.randn(2, 16, generator=generator, dtype=torch.float64).requires_grad_()
    vectors = [read_at.detach().requires_grad_(), write.detach().requires_grad_()]
    push = Push(1, *vectors, bias=4.0)

    def score(logits):
        return logits[0, -1, 9] - logits[0, 2, 11] + logits[0].logsumexp(-1).sum()

    with torch.inference_mode(), fast_modules(wide_model):
        if enters == "as tokens":
            row = PassRow(tokens=ROW, n_prompt=N_PROMPT)
        else:
            [trunk] = read(wide_model, [ROW], [None], 2, keep=[1])
            row = PassRow(trunk=trunk, layer=1, n_prompt=N_PROMPT)
        passed = run_rows(wide_model, [row], steer=push, keep=[2], keep_gradients=True)
        with torch.inference_mode(False):
            logits = torch.stack([unembed(wide_model, resid) for resid in passed.resid])
            gradients = torch.autograd.grad(score(logits) + passed.kept[2].sum(), vectors)

    def value():
        """The same number from the plain model, hooked by hand."""
        shift = Change(
            1, lambda x: x + torch.relu(x @ push.read + push.bias)[:, None] * push.write, "prompt"
        )
        run = one_pass(plain_model, ROW[:N_PROMPT], [shift], ROW[N_PROMPT:])
        return score(run.logits[None]) + run.resid[2].sum()

    def differences(vector):
        """Central differences along each axis."""
        steps = []
        for axis in torch.eye(16, dtype=torch.float64) * 1e-6:
            with torch.no_grad():
                vector += axis
                above = value()
                vector -= 2 * axis
                steps.append((above - value()) / 2e-6)
                vector += axis
        return torch.stack(steps)

    for gradient, vector in zip(gradients, vectors, strict=True):
        assert gradient.abs().max() > 1e-2
        torch.testing.assert_close(gradient, differences(vector), rtol=1e-5, atol=1e-6)


def test_gradients_leave_the_weights_as_they_were(tiny_model):
    wanting = [parameter.requires_grad for parameter in tiny_model.original_model.parameters()]
    vector = torch.zeros(16, requires_grad=True)
    push = Push(0, torch.zeros(16), vector, bias=1.0)

    with fast_modules(tiny_model):
        passed = run_rows(tiny_model, [PassRow(tokens=ROW)], steer=push, keep_gradients=True)
    passed.resid.sum().backward()

    assert vector.grad is not None and vector.grad.abs().max() > 0
    parameters = list(tiny_model.original_model.parameters())
    assert all(parameter.grad is None for parameter in parameters)
    assert [parameter.requires_grad for parameter in parameters] == wanting


def test_a_pass_without_gradients_keeps_none(tiny_model):
    steering = random_vector(3, 16).at(1, "add")
    with torch.inference_mode(), fast_modules(tiny_model):
        passed = run_rows(tiny_model, [PassRow(tokens=ROW, steering=steering)])
    assert not passed.resid.requires_grad


def test_rows_that_join_at_different_layers_equal_the_bridge_one_by_one(tiny_model):
    steerings = [random_vector(3, 16).at(layer, "add", 2.0) for layer in (0, 1, 2)]
    rows = [ROW, ROW[:4], ROW[:5]]
    with torch.inference_mode(), fast_modules(tiny_model):
        trunks = read(tiny_model, rows, [None] * 3, keep=[0, 1, 2])
        passed = run_rows(
            tiny_model,
            [
                PassRow(trunk=trunk, layer=layer, steering=steering)
                for layer, (trunk, steering) in enumerate(zip(trunks, steerings, strict=True))
            ],
            remember=True,
        )
        readings = [passed.reading(i) for i in range(3)]
        # A row goes on from its steered reading as if it had been read at once.
        longer = run_rows(tiny_model, [PassRow(tokens=[9, 10], before=readings[0])]).resid[0]

    for row, steering, resid in zip(rows, steerings, passed.resid, strict=True):
        with steering.applied(tiny_model):
            _, cache = tiny_model.run_with_cache(torch.tensor([row]))
        expected = cache["blocks.2.hook_out"][0]
        torch.testing.assert_close(resid[: len(row)], expected, rtol=1e-4, atol=1e-5)
    prompt_only = random_vector(3, 16).at(0, "add", 2.0, "prompt")
    with prompt_only.applied(tiny_model, [len(ROW)]):
        _, cache = tiny_model.run_with_cache(torch.tensor([[*ROW, 9, 10]]))
    torch.testing.assert_close(longer, cache["blocks.2.hook_out"][0, -2:], rtol=1e-4, atol=1e-5)
