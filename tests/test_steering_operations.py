"""The general operation ``x + s φ(a + w·x) z``, against plain Hugging Face hooks."""

import pytest
import torch
from tiny_models import tiny_llama
from torch import Tensor

import steerlens as sl
from steerlens.engine.choosing import choose_path
from steerlens.errors import SteeringError, UnknownNameError
from steerlens.models.chat import tokenize_prompts
from steerlens.steering.interventions import Steering
from steerlens.steering.operations import Intervention

PROMPTS = ["Where is Rome?", "Name a fruit, please.", "Who?"]


def drawn(seed: int, width: int = 16) -> Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def moved(x: Tensor, z: Tensor, w: Tensor, bias: float, gate: str, strength: float) -> Tensor:
    amount = bias + x.double() @ w.double()
    amount = amount.clamp_min(0) if gate == "relu" else amount
    return (x.double() + strength * amount[..., None] * z.double()).float()


def plain_tokens(ids: list[int], layer: int, change, n_new: int, ends: frozenset[int]):
    """Greedy tokens of a plain Hugging Face model whose block's output is changed everywhere."""
    model = tiny_llama()

    def hook(_module, _args, output):
        return change(output)

    model.model.layers[layer].register_forward_hook(hook)
    produced: list[int] = []
    with torch.no_grad():
        for _ in range(n_new):
            logits = model(torch.tensor([ids + produced])).logits[0, -1]
            token = int(logits.argmax())
            if token in ends:
                break
            produced.append(token)
    return tuple(produced)


@pytest.mark.parametrize("gate", ["identity", "relu"])
def test_rows_with_an_operation_of_their_own_equal_plain_hooks(tiny_model, gate):
    # given another read, write, bias and strength in every row, beside a named operation
    from steerlens.models.chat import end_token_ids

    parts = [(drawn(i), drawn(10 + i) * 0.1, 0.2 - 0.3 * i, 1.0 + i) for i in range(3)]
    rows = [
        Steering((Intervention(1, write=z, read=w, bias=bias, gate=gate, strength=strength),))
        for z, w, bias, strength in parts
    ]
    made = sl.generate(tiny_model, PROMPTS, rows, max_new_tokens=8)
    assert made.settings["attention"] == "sdpa"
    ids = tokenize_prompts(tiny_model, PROMPTS)
    for own, got, (z, w, bias, strength) in zip(ids, made.tokens, parts, strict=True):
        expected = plain_tokens(
            own,
            1,
            lambda x, z=z, w=w, b=bias, s=strength: moved(x, z, w, b, gate, s),
            8,
            end_token_ids(tiny_model),
        )
        assert got == expected


def test_hooks_and_engine_apply_the_same_operation(tiny_model):
    steering = Steering(
        (Intervention(1, write=drawn(1), read=drawn(2), bias=-0.5, gate="relu", scope="prompt"),)
    )
    engine = sl.generate(tiny_model, PROMPTS, steering, max_new_tokens=6)
    assert choose_path(tiny_model).is_fast
    [ids] = tokenize_prompts(tiny_model, PROMPTS[:1])
    with torch.no_grad(), steering.applied(tiny_model):
        logits = tiny_model(torch.tensor([ids]))[0, -1]
    assert int(logits.argmax()) == engine.tokens[0][0]
    run = sl.steer(tiny_model, PROMPTS[0], steering, max_new_tokens=4)
    assert run.effects.kl.max() > 0


@pytest.mark.parametrize(
    ("operation", "only_below", "bias", "reads", "gate"),
    [
        ("add", False, 2.0, 0.0, "identity"),
        ("set_projection", False, 3.0, -1.0, "identity"),
        ("set_projection", True, 3.0, -1.0, "relu"),
        ("ablate", False, 0.0, -1.0, "identity"),
    ],
)
def test_named_operations_are_cases_of_the_general_one(
    tiny_model, operation, only_below, bias, reads, gate
):
    unit = drawn(3) / drawn(3).norm()
    named = Intervention(
        1, unit, gap=2.0, target=3.0, operation=operation, strength=0.7, only_below=only_below
    )
    general = Intervention(1, write=unit, read=reads * unit, bias=bias, gate=gate, strength=0.7)
    from steerlens.steering.roles import TokenRoles
    from steerlens.steering.rows import RowSteering

    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(5), dtype=torch.float32) * 4
    everywhere = torch.ones(2, 5, dtype=torch.bool)
    roles = TokenRoles(prompt=everywhere, response=~everywhere)
    ours = [RowSteering([Steering((one,))]).apply(1, x, roles) for one in (named, general)]
    torch.testing.assert_close(ours[0], ours[1])
    expected = moved(x, unit, reads * unit, bias, gate, 0.7)
    torch.testing.assert_close(ours[1], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"write": torch.zeros(4)}, "write is zero"),
        ({"write": torch.ones(4), "read": torch.ones(3)}, "one shape"),
        ({"write": torch.ones(4), "operation": "add"}, "beside 'add'"),
        ({"read": torch.ones(4)}, "give write= with them"),
        ({"write": torch.tensor([1.0, float("nan")])}, "NaN"),
        ({"write": torch.ones(4), "bias": float("inf")}, "bias"),
        ({"operation": "add"}, "needs a direction"),
        ({"write": torch.ones(4), "target": 5.0}, "beside write"),
        ({"write": torch.ones(4), "direction": torch.eye(4)[0]}, "beside write"),
        ({}, "unknown operation"),
    ],
)
def test_parts_that_make_no_operation_are_refused(parts, words):
    with pytest.raises((SteeringError, UnknownNameError), match=words):
        Intervention(0, **parts)


def test_an_unknown_gate_names_the_known_ones():
    with pytest.raises(UnknownNameError, match="identity"):
        Intervention(0, write=torch.ones(4), gate="identidy")


def test_what_happens_to_the_callers_tensors_later_changes_nothing():
    z = torch.ones(4)
    one = Intervention(0, write=z)
    z.mul_(10)
    assert one.write.tolist() == [1.0] * 4 and one.gap == pytest.approx(2.0)
