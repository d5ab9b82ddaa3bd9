"""Claims about `train_direction` and the ceiling, on a tiny model."""

import numpy as np
import pytest
import torch

import steerlens as sl
from steerlens.attribution.ceiling import ceiling
from steerlens.errors import ModelError, SteeringError, UnknownNameError
from steerlens.tasks.fluency import fluency
from steerlens.training import Slot, TrainingSettings, train_direction, train_directions
from steerlens.training.examples import finished, training_examples

TITLE = "detectable_format:title"
QUICK = TrainingSettings(n_examples=16, max_tokens=12, n_steps=4, batch_size=3, look_every=2)


def test_directions_of_every_kind_side_by_side(roomy_model, tmp_path):
    slots = [
        Slot((1,), "comply", gate=True),
        Slot((0,), "prefer", gate=False, loop_weight=0.5),
        Slot((0, 2), "imitate", gate=True),
        Slot((1,), "regress", gate=True),
        Slot((1,), "regress", gate=False),
    ]
    trained = train_directions(roomy_model, TITLE, slots, settings=QUICK, show_progress=False)
    assert (trained.table["n_examples"] >= 8).all()
    assert (trained.table["loss"][:3] <= trained.table["start_loss"][:3]).all()
    assert trained.plot().data
    for slot, vector in zip(slots, trained.vectors, strict=True):
        assert vector.layers == slot.layers
        vector.save(tmp_path / "vector.safetensors")
        loaded = sl.load_vector(tmp_path / "vector.safetensors")
        operation = "general" if slot.gate else "add"
        steering = loaded.at(slot.layers[0], operation)
        texts = sl.generate(roomy_model, ["Tell me about Rome."], steering, max_new_tokens=3).texts
        assert len(texts) == 1
        with pytest.raises(SteeringError, match="it was trained, not read off two means"):
            loaded.at(slot.layers[0], "set_projection")


def test_layers_trained_at_once_are_those_trained_alone(roomy_model):
    options = {"settings": QUICK, "gate": True, "show_progress": False}
    both = train_direction(roomy_model, TITLE, layers=(0, 2), **options)
    alone = train_direction(roomy_model, TITLE, layers=(2,), **options)
    assert both.layers == (0, 2)
    # The same sums in another order: float32 rounding, through Adam's division by its square root.
    torch.testing.assert_close(both.directions[1], alone.directions[0], rtol=1e-2, atol=1e-3)


def test_a_plain_regressed_direction_is_the_mean_difference_over_the_response(roomy_model):
    vector = train_direction(
        roomy_model, TITLE, (1,), "regress", settings=QUICK, show_progress=False
    )
    pairs = sl.contrast_pairs(TITLE, n=16)
    examples = training_examples(roomy_model, sl.catalogue[TITLE], pairs, 12, show_progress=False)
    differences = []
    for example in examples:
        sides = []
        for prompt in (example.instructed, example.prompt):
            tokens = torch.tensor([[*prompt, *example.obeyed[:-1]]])
            _, cache = roomy_model.run_with_cache(tokens)
            sides.append(cache["blocks.1.hook_out"][0, len(prompt) - 1 :])
        differences.append(sides[0] - sides[1])
    expected = torch.cat(differences).mean(0)
    torch.testing.assert_close(
        vector.directions[0] * vector.gaps[0], expected, rtol=1e-4, atol=1e-5
    )


def test_compliant_responses_comply_and_end(roomy_model):
    task = sl.catalogue[TITLE]
    pairs = sl.contrast_pairs(task, n=6)
    words = ["A lake is still. A river", "It is late. Go home."]

    def answers(prompts):
        return [(words[i % 2], bool(i % 2)) for i, _ in enumerate(prompts)]

    examples = training_examples(roomy_model, task, pairs, 60, answers)
    tokenizer, end = roomy_model.tokenizer, roomy_model.tokenizer.eos_token_id
    for example in examples:
        assert example.compliant[-1] == example.plain[-1] == end
        assert task.check(tokenizer.decode(example.compliant[:-1]))
        text = tokenizer.decode(example.plain[:-1])
        assert text in ("A lake is still.", "It is late. Go home.")
        assert fluency(text).n_words < 10


@pytest.mark.parametrize(
    ("text", "ended", "expected"),
    [
        ("One. Two. Thr", False, "One. Two."),
        ("One. Two. Thr", True, "One. Two. Thr"),
        ("no sentence", False, "no sentence"),
        ('He said "no." And', False, 'He said "no."'),
        ("3.14 is", False, "3.14 is"),
    ],
)
def test_a_cut_response_ends_at_its_last_full_sentence(text, ended, expected):
    assert finished(text, ended) == expected


def test_the_ceiling_has_every_curve_with_its_interval(roomy_model):
    found = ceiling(
        roomy_model, TITLE, layers=[0, 1], n_pairs=4, horizon=6, training=QUICK, show_progress=False
    )
    table = found.table
    for name in ("ceiling", "mean_difference", "other_task", "placebo"):
        assert (table[f"{name}_low"] <= table[name]).all()
        assert (table[name] <= table[f"{name}_high"]).all()
    known = table[table["ceiling_low"] > 0]
    np.testing.assert_allclose(known["share"], known["mean_difference"] / known["ceiling"])
    assert table["share"].notna().sum() == len(known)
    assert found.best_layer in (0, 1)
    assert found.plot().data
    # The recovery of the direction that was taken, measured as any other vector's.
    pairs = sl.contrast_pairs(TITLE, n=4, split="select")
    again = sl.causal_recovery(
        roomy_model,
        pairs,
        found.vectors[1],
        operations=["general"],
        scopes=["all"],
        horizons=[6],
        show_progress=False,
    )
    assert again.table["recovery"][0] == pytest.approx(table["ceiling"][1], abs=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"objective": "complain"}, UnknownNameError, "unknown objective 'complain'"),
        ({"layers": (9,)}, SteeringError, "layers are out of range: the model has 3"),
        ({"layers": ()}, SteeringError, "give at least one layer"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(roomy_model, options, error, sentence):
    with pytest.raises(error, match=sentence):
        train_direction(roomy_model, TITLE, **options)


def test_words_must_be_given(roomy_model):
    with pytest.raises(SteeringError, match=r"keywords:existence are words.*give kwargs"):
        train_direction(roomy_model, "keywords:existence", (1,), settings=QUICK)


def test_weights_that_are_no_numbers_are_refused(roomy_model, monkeypatch):
    whole = torch.nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False)
    monkeypatch.setattr(roomy_model.original_model, "parameters", lambda: iter([whole]))
    with pytest.raises(ModelError, match="quantised"):
        train_direction(roomy_model, TITLE, (1,), settings=QUICK)
