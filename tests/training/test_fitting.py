"""Claims about training directions: gradients are right, and what was planted is found."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hf_reference import Change, one_pass
from steering_examples import random_vector

from steerlens.engine.forward import gradients
from steerlens.engine.modules import fast_modules
from steerlens.errors import SteeringError
from steerlens.training.examples import TrainingExample
from steerlens.training.fitting import TrainingSettings, Trunks, _Passes, descend, read_trunks
from steerlens.training.objectives import Forced, forced_texts, usable
from steerlens.training.parameters import DirectionParameters, Slot

D_MODEL = 16
EXAMPLES = (
    TrainingExample((3, 4, 5, 6), (9, 3, 4, 5, 6), (7, 8, 9, 2), (10, 11, 2), (12, 13, 14)),
    TrainingExample((5, 6, 7), (9, 5, 6, 7), (8, 3, 2), (4, 4, 4, 2), (20, 21, 22, 2)),
)
SLOTS = (
    Slot((1,), "comply", gate=True),
    Slot((0,), "comply", gate=False, loop_weight=0.7),
    Slot((0, 2), "prefer", gate=True),
    Slot((1,), "imitate", gate=True),
)


def trunks_of(model, slots, examples=EXAMPLES):
    texts = [
        text
        for slot in slots
        for example in examples
        for text in forced_texts(example, slot.objective, slot.loop_weight > 0)
    ]
    instructed = [Forced(example.instructed, example.obeyed) for example in examples]
    return read_trunks(model, texts, range(model.cfg.n_layers), instructed)


def random_parameters(slots, n_layers, dtype, seed=0):
    """Parameters away from where training starts: no gate is open or closed everywhere."""
    generator = torch.Generator().manual_seed(seed)
    start = {layer: torch.randn(D_MODEL, generator=generator) for layer in range(n_layers)}
    found = DirectionParameters.starting_at(
        slots, dict.fromkeys(range(n_layers), 1.7), start, torch.device("cpu")
    )
    read = torch.randn(found.read.shape, generator=generator, dtype=torch.float32)
    values = {"write": found.write, "read": read, "bias": found.bias - 0.8}
    values = {name: each.detach().to(dtype).requires_grad_() for name, each in values.items()}
    return replace(found, scale=found.scale.to(dtype), **values)


def loss_by_hand(plain_model, parameters, slot_index):
    """The loss of one slot, one text at a time, through plain hooks."""
    slot = parameters.slots[slot_index]

    def change(site):
        r, z, w = parameters.scale[site], parameters.write[site], parameters.read[site]

        def pushed(x):
            amount = torch.relu(parameters.bias[site] + x @ w / r)[:, None] if slot.gate else 1.0
            return x + amount * r * z

        return Change(parameters.sites[site][1], pushed, "all")

    changes = [change(s) for s, (own, _) in enumerate(parameters.sites) if own == slot_index]

    def logprobs(prompt, response, changes=changes):
        logits = one_pass(plain_model, [*prompt, *response[:-1]], changes).logits
        return torch.log_softmax(logits, -1)[len(prompt) - 1 :]

    def scores(prompt, response):
        rows = logprobs(prompt, response)
        return torch.stack([row[token] for row, token in zip(rows, response, strict=True)])

    losses = []
    for example in EXAMPLES:
        if slot.objective == "imitate":
            target = logprobs(example.instructed, example.obeyed, ())
            q = logprobs(example.prompt, example.obeyed)
            loss = (target.exp() * (target - q)).sum(-1).mean()
        else:
            loss = -scores(example.prompt, example.compliant).mean()
        if slot.objective == "prefer":
            gap = -loss - scores(example.prompt, example.plain).mean()
            loss = -torch.nn.functional.logsigmoid(2 * gap - 1) + loss / 10
        if slot.loop_weight:
            begun = list(example.compliant[:-1])
            span = begun[len(begun) - max(1, len(begun) // 2) :]
            repeated = scores(example.prompt, begun + span + span)[len(begun) + 1 :]
            loss = loss - slot.loop_weight * torch.log(1 - repeated.exp()).mean()
        losses.append(loss)
    return torch.stack(losses).mean()


def test_losses_and_gradients_equal_plain_hooks_and_finite_differences(wide_model, plain_model):
    parameters = random_parameters(SLOTS, wide_model.cfg.n_layers, torch.float64)
    with torch.inference_mode(), fast_modules(wide_model), gradients(wide_model):
        passes = _Passes(wide_model, parameters, trunks_of(wide_model, SLOTS), "all")
        losses = passes.losses(EXAMPLES, penalty=0.0)

    for i in range(len(SLOTS)):
        assert losses[i] == pytest.approx(float(loss_by_hand(plain_model, parameters, i)), rel=1e-9)

    generator = torch.Generator().manual_seed(1)
    for name in ("write", "read", "bias"):
        values = getattr(parameters, name)
        for site, (slot, _) in enumerate(parameters.sites):
            along = torch.randn(values[site].shape, generator=generator, dtype=torch.float64)
            with torch.no_grad():
                values[site] += 1e-6 * along
                above = loss_by_hand(plain_model, parameters, slot)
                values[site] -= 2e-6 * along
                below = loss_by_hand(plain_model, parameters, slot)
                values[site] += 1e-6 * along
            expected = float(above - below) / 2e-6
            found = float((values.grad[site] * along).sum())
            assert found == pytest.approx(expected, rel=1e-5, abs=1e-8)
            assert SLOTS[slot].gate or name == "write" or found == 0


def test_the_penalty_is_the_mean_squared_share_of_the_push(wide_model, plain_model):
    slots = (Slot((1,), "comply", gate=False),)
    parameters = random_parameters(slots, wide_model.cfg.n_layers, torch.float64)
    grads = []
    for penalty in (0.0, 0.5):
        parameters.write.grad = None
        with fast_modules(wide_model), gradients(wide_model):
            passes = _Passes(wide_model, parameters, trunks_of(wide_model, slots), "all")
            passes.losses(EXAMPLES, penalty=penalty)
        grads.append(parameters.write.grad[0])

    shares = []
    for example in EXAMPLES:
        x = one_pass(plain_model, [*example.prompt, *example.compliant[:-1]]).resid[1]
        shares.append((1 / x.square().sum(-1)).mean())
    z = parameters.write[0].detach() * parameters.scale[0]
    expected = 0.5 * 2 * z * torch.stack(shares).mean() * parameters.scale[0]
    torch.testing.assert_close(grads[1] - grads[0], expected, rtol=1e-8, atol=1e-10)


def test_a_planted_direction_is_recovered(wide_model):
    """Imitating a run that was steered finds what it was steered with."""
    layer, planted = 1, random_vector(3, D_MODEL, seed=5).directions[1].double() * 3
    rng = np.random.default_rng(0)
    examples = []
    for _ in range(24):
        prompt, response = (tuple(rng.integers(3, 60, n).tolist()) for n in (5, 6))
        examples.append(TrainingExample(prompt, prompt, (), (), response))
    slots = [Slot((layer,), "imitate", gate=False)]
    settings = TrainingSettings(n_steps=150, learning_rate=0.5, push_penalty=0.0, patience=99)
    scale = {layer: 1.0}
    with fast_modules(wide_model), gradients(wide_model):
        trunks = trunks_of(wide_model, slots, examples)
        steered = steered_targets(wide_model, examples, layer, planted)
        start = {layer: torch.zeros(D_MODEL)}
        parameters = DirectionParameters.starting_at(slots, scale, start, torch.device("cpu"))
        best, looks = descend(
            wide_model, parameters, examples, Trunks(trunks.resid, steered), settings
        )
    assert looks[-1].losses[0] < 0.01 * looks[0].losses[0]
    found = best.write[0].double()
    # GPT-2's norms take away the mean, so only what is left of a direction after it can be seen.
    found, planted = found - found.mean(), planted - planted.mean()
    assert float(found @ planted / found.norm() / planted.norm()) > 0.99


def steered_targets(model, examples, layer, push):
    """Final residuals of runs to which a push was added."""
    parameters = DirectionParameters.starting_at(
        [Slot((layer,), "imitate", gate=False)],
        {layer: 1.0},
        {layer: push},
        torch.device("cpu"),
        noise=0.0,
    )
    from steerlens.engine.forward import PassRow, run_rows
    from steerlens.training.parameters import TrainedRows

    targets = {}
    for example in examples:
        text = Forced(example.prompt, example.obeyed)
        with torch.no_grad():
            steer = TrainedRows(parameters, [0])
            passed = run_rows(model, [PassRow(tokens=text.tokens)], steer=steer)
        targets[text] = passed.resid[0, len(text.prompt) - 1 :].clone()
    return targets


def trained(model, slots, seed=0):
    settings = TrainingSettings(n_steps=6, batch_size=1, held_out=0.5, look_every=2)
    with fast_modules(model), gradients(model):
        parameters = DirectionParameters.starting_at(
            slots,
            dict.fromkeys(range(3), 2.0),
            {layer: torch.ones(D_MODEL) / 4 for layer in range(3)},
            torch.device("cpu"),
        )
        return descend(model, parameters, EXAMPLES, trunks_of(model, slots), settings, seed=seed)


def test_the_same_seed_gives_the_same_directions_to_the_bit(tiny_model):
    runs = [trained(tiny_model, SLOTS)[0] for _ in range(2)]
    for name in ("write", "read", "bias"):
        assert torch.equal(getattr(runs[0], name), getattr(runs[1], name))


def test_directions_side_by_side_are_those_trained_alone(wide_model):
    """Other slots of the same batch change nothing but rounding."""
    both, _ = trained(wide_model, SLOTS)
    alone, _ = trained(wide_model, SLOTS[:1])
    torch.testing.assert_close(both.write[0], alone.write[0], rtol=1e-4, atol=1e-6)


def test_what_is_kept_is_never_worse_than_the_start(tiny_model):
    _, looks = trained(tiny_model, SLOTS)
    losses = np.array([look.losses for look in looks])
    assert (losses.min(axis=0) <= losses[0]).all()


def test_a_loss_that_is_no_number_names_its_direction(tiny_model):
    slots = [Slot((1,), "comply", gate=True)]
    with fast_modules(tiny_model), gradients(tiny_model):
        parameters = random_parameters(slots, 3, torch.float32)
        parameters.write.data[0, 0] = torch.inf
        passes = _Passes(tiny_model, parameters, trunks_of(tiny_model, slots), "all")
        with pytest.raises(SteeringError, match=r"comply, gated, layer 1.*lower learning rate"):
            passes.losses(EXAMPLES)


def test_too_few_examples_name_what_can_be_had():
    bare = [replace(example, compliant=()) for example in EXAMPLES]
    with pytest.raises(SteeringError, match=r"0 of 2 base queries.*imitate, regress can be had"):
        usable(bare, "comply", 2)


def test_memory_that_runs_out_halves_the_pass_and_changes_nothing(tiny_model, monkeypatch):
    slots = SLOTS[:2]
    whole, _ = trained(tiny_model, slots)
    run, sizes = _Passes._chunk, []

    def small(passes, chunk):
        sizes.append(len(chunk))
        if len(chunk) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return run(passes, chunk)

    monkeypatch.setattr(_Passes, "_chunk", small)
    halved, _ = trained(tiny_model, slots)
    assert max(sizes) > 1
    # The same sums in another order, through Adam's division by a square root.
    torch.testing.assert_close(halved.write, whole.write, rtol=1e-3, atol=1e-5)

    monkeypatch.setattr(_Passes, "_chunk", lambda *_: small(None, (0, 0)))
    with pytest.raises(SteeringError, match=r"one example of a direction .* needs more memory"):
        trained(tiny_model, slots)
