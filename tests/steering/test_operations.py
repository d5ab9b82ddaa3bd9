"""The general operation ``x + s φ(a + w·x) z``, against plain Hugging Face hooks."""

import json

import pytest
import torch
from hf_reference import Change, greedy
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_models import tiny_llama
from torch import Tensor

import steerlens as sl
from steerlens.behaviour.plans.candidates import (
    InterventionSpec,
    candidate_from_json,
    describe,
    to_json,
)
from steerlens.engine.choosing import choose_path
from steerlens.errors import FileFormatError, SteeringError, UnknownNameError
from steerlens.models.chat import tokenize_prompts
from steerlens.steering.interventions import Steering
from steerlens.steering.operations import Intervention
from steerlens.steering.roles import TokenRoles
from steerlens.steering.rows import RowSteering
from steerlens.vectors import SteeringVector

PROMPTS = ["Where is Rome?", "Name a fruit, please.", "Who?"]


def drawn(seed: int, width: int = 16) -> Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def moved(x: Tensor, z: Tensor, w: Tensor, bias: float, gate: str, strength: float) -> Tensor:
    amount = bias + x.double() @ w.double()
    amount = amount.clamp_min(0) if gate == "relu" else amount
    return (x.double() + strength * amount[..., None] * z.double()).float()


def plain_tokens(ids: list[int], layer: int, change, n_new: int, ends: frozenset[int]):
    """Greedy tokens of a plain Hugging Face model whose block's output is changed everywhere."""
    return tuple(greedy(tiny_llama(), ids, [Change(layer, change)], n_new, ends, again=True))


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
    ("operation", "side", "bias", "reads", "writes", "gate"),
    [
        ("add", {}, 2.0, 0.0, 1.0, "identity"),
        ("set_projection", {}, 3.0, -1.0, 1.0, "identity"),
        ("set_projection", {"only_below": True}, 3.0, -1.0, 1.0, "relu"),
        ("set_projection", {"only_above": True}, -3.0, 1.0, -1.0, "relu"),
        ("ablate", {}, 0.0, -1.0, 1.0, "identity"),
    ],
)
def test_named_operations_are_cases_of_the_general_one(operation, side, bias, reads, writes, gate):
    unit = drawn(3) / drawn(3).norm()
    named = Intervention(1, unit, gap=2.0, target=3.0, operation=operation, strength=0.7, **side)
    general = Intervention(
        1, write=writes * unit, read=reads * unit, bias=bias, gate=gate, strength=0.7
    )
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(5), dtype=torch.float32) * 4
    everywhere = torch.ones(2, 5, dtype=torch.bool)
    roles = TokenRoles(prompt=everywhere, response=~everywhere)
    ours = [RowSteering([Steering((one,))]).apply(1, x, roles) for one in (named, general)]
    torch.testing.assert_close(ours[0], ours[1])
    expected = moved(x, writes * unit, reads * unit, bias, gate, 0.7)
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


# --- one-sided projections ---


def test_a_projection_that_only_lowers_leaves_what_is_below_bit_for_bit():
    unit = drawn(3) / drawn(3).norm()
    one = Intervention(0, unit, target=0.5, operation="set_projection", only_above=True)
    x = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float32)
    real = torch.ones(2, 9, dtype=torch.bool)
    after = RowSteering([Steering((one,))]).apply(0, x, TokenRoles(real, ~real))
    below = x @ unit <= 0.5
    assert below.any() and not below.all()
    assert torch.equal(after[below], x[below])
    torch.testing.assert_close((after @ unit)[~below], torch.full_like(x[..., 0], 0.5)[~below])
    assert "only above its target" in one.describe()


def test_both_sides_at_once_are_refused():
    unit = drawn(3) / drawn(3).norm()
    with pytest.raises(SteeringError, match="exclude each other"):
        Intervention(0, unit, operation="set_projection", only_below=True, only_above=True)


# --- files ---

UNIT = drawn(3) / drawn(3).norm()
SAVED = Steering(
    (
        Intervention(
            2, write=drawn(1), read=drawn(2), bias=-0.5, gate="relu", strength=2.0, scope="response"
        ),
        Intervention(1, write=drawn(4), n_layers=3, label="mine"),
        Intervention(0, UNIT, 2.0, 3.0, "set_projection", 0.5, baseline=1.0, only_above=True),
    )
)


def test_interventions_of_every_kind_come_back_from_a_file_as_they_were(tmp_path):
    loaded = Steering.load(SAVED.save(tmp_path / "s.safetensors"))
    assert repr(loaded) == repr(SAVED)
    for one, other in zip(loaded.interventions, SAVED.interventions, strict=True):
        for name, value in vars(other).items():
            same = getattr(one, name)
            assert torch.equal(same, value) if isinstance(value, Tensor) else same == value, name


def test_a_file_that_holds_no_steering_is_refused_in_a_sentence(tmp_path):
    path = SAVED.save(tmp_path / "s.safetensors")
    with safe_open(path, "pt") as file:
        record = json.loads(file.metadata()["steerlens"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    entries = record["interventions"]
    for broken in (
        [{**entries[2], "operation": "general"}],
        [{**entries[0], "gate": "sigmoid"}],
        [{**entries[0], "colour": 3}],
        [{}],
        3,
    ):
        record["interventions"] = broken
        save_file(tensors, path, metadata={"steerlens": json.dumps(record)})
        with pytest.raises(FileFormatError, match="lacks or garbles a part of a steering"):
            Steering.load(path)


def gated_vector() -> SteeringVector:
    """Read directions, biases and a gate beside two write directions."""
    return SteeringVector(
        directions=torch.stack([UNIT, -UNIT]),
        gaps=torch.tensor([2.0, 3.0]),
        targets=torch.zeros(2),
        baselines=torch.zeros(2),
        layers=(1, 2),
        metadata={"targets_known": False},
        reads=torch.stack([drawn(5), drawn(6)]),
        biases=torch.tensor([0.25, -0.5]),
        gate="relu",
    )


def test_a_vector_with_read_directions_is_saved_and_applied_by_its_equation(tmp_path):
    vector = SteeringVector.load(gated_vector().save(tmp_path / "v.safetensors"))
    steering = vector.at(2, "general", strength=0.5, scope="prompt")
    x = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float32)
    prompt = torch.tensor([[True, True, True, True, False, False]])
    after = RowSteering([steering]).apply(2, x, TokenRoles(prompt, ~prompt))
    expected = torch.where(prompt[..., None], moved(x, -3.0 * UNIT, drawn(6), -0.5, "relu", 0.5), x)
    torch.testing.assert_close(after, expected, rtol=1e-5, atol=1e-5)
    assert vector.restricted_to([2]).at(2, "general").interventions[0].bias == -0.5


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (lambda v: v.at(1), "use operation 'general'"),
        (lambda v: 2.0 * v, "only vectors without them combine"),
        (lambda v: v.project_out(torch.ones(1, 16)), "only vectors without them combine"),
    ],
)
def test_what_a_vector_with_read_directions_cannot_do_is_refused(use, words):
    with pytest.raises(SteeringError, match=words):
        use(gated_vector())


def test_a_plan_names_the_general_operation_and_one_sided_projections():
    chosen = (
        InterventionSpec("last_prompt", 2, "general", 1.0, "all"),
        InterventionSpec("last_prompt", 3, "set_projection", 0.5, "response", only_above=True),
    )
    entries = to_json(chosen)
    assert candidate_from_json(json.loads(json.dumps(entries))) == chosen
    assert describe(chosen).endswith("only above its target")
    # a plan of an earlier version names neither side
    old = {key: entries[0][key] for key in ("estimator", "layer", "strength", "scope")}
    [spec] = candidate_from_json([{**old, "operation": "add"}])
    assert not spec.only_below and not spec.only_above


def test_parts_of_the_general_operation_belong_together():
    plain = SteeringVector(UNIT[None], *torch.ones(3, 1), layers=(1,))
    with pytest.raises(SteeringError, match="has no read directions"):
        plain.at(1, "general")
    with pytest.raises(SteeringError, match="give reads="):
        SteeringVector(UNIT[None], *torch.ones(3, 1), layers=(1,), gate="relu")
