"""Claims about trained directions among the estimators of a search."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_search import SMALL, TITLE

import steerlens as sl
from steerlens.behaviour.answers import Answerer
from steerlens.behaviour.plans import Plan, VectorBook
from steerlens.behaviour.plans.trained import gated_placebo, trained_layers
from steerlens.behaviour.search.space import first_candidates
from steerlens.training import TrainingSettings, directions

RECIPE = replace(
    SMALL.recipe,
    estimators=("trained_comply",),
    training=TrainingSettings(n_examples=20, max_tokens=12, n_steps=2, batch_size=2, look_every=1),
)
SETTINGS = replace(SMALL, recipe=RECIPE)


@pytest.fixture(scope="module")
def searched(roomy_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "plan"
    return sl.search(roomy_model, [TITLE], out, SETTINGS, show_progress=False), out


def test_a_plan_holds_the_trained_vector(searched):
    plan, out = searched
    vector = plan.vectors[TITLE, "trained_comply"]
    assert vector.layers == trained_layers(3) and vector.gate == "relu"
    loaded = Plan.load(out).vectors[TITLE, "trained_comply"]
    assert torch.equal(loaded.directions, vector.directions)
    assert torch.equal(loaded.reads, vector.reads)
    parts = [row["parts"] for row in plan.data["instructions"][TITLE]["table"] if row["parts"]]
    assert {part["operation"] for row in parts for part in row} == {"general"}
    # Directions are trained at some layers only, so no neighbouring layer is tried.
    assert {part["layer"] for row in parts for part in row} <= set(vector.layers)


def test_a_killed_search_goes_on_with_the_same_directions(searched, roomy_model, tmp_path):
    plan, _ = searched
    trained, calls = directions.descend, []

    def kill_later(*args, **kwargs):
        calls.append(1)
        return trained(*args, **kwargs)

    out = tmp_path / "plan"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(directions, "descend", kill_later)
        patch.setattr("steerlens.behaviour.search.halving.leading", interrupt)
        with pytest.raises(KeyboardInterrupt):
            sl.search(roomy_model, [TITLE], out, SETTINGS, show_progress=False)
        patch.undo()
        patch.setattr(directions, "descend", kill_later)
        again = sl.search(roomy_model, [TITLE], out, SETTINGS, resume=True, show_progress=False)
    assert len(calls) == 1
    for name in ("directions", "gaps", "reads", "biases"):
        ours, theirs = (getattr(p.vectors[TITLE, "trained_comply"], name) for p in (again, plan))
        assert torch.equal(ours, theirs)


def interrupt(*_args):
    raise KeyboardInterrupt


def test_the_placebo_pushes_the_same_tokens_as_far(searched):
    vector = searched[0].vectors[TITLE, "trained_comply"]
    placebo = gated_placebo(vector, seed=0)
    real, random = (v.at(v.layers[0], "general").interventions[0] for v in (vector, placebo))
    x = torch.randn(50, vector.d_model, generator=torch.Generator().manual_seed(0))
    moved = []
    for each in (real, random):
        amount = torch.relu(each.bias + x @ each.read)
        moved.append((amount[:, None] * each.write).norm(dim=-1))
    np.testing.assert_allclose(moved[0], moved[1], rtol=1e-5)
    assert abs(float(vector.directions[0] @ placebo.directions[0])) < 0.99


def test_given_words_have_a_direction_each_at_the_upper_layer(roomy_model):
    book = VectorBook(Answerer(roomy_model), replace(RECIPE, n_wording=8))
    task = sl.catalogue["keywords:existence"]
    sea, wood = (
        book.vector(task, {"keywords": words}, "trained_comply")
        for words in (["sea", "ship"], ["wood", "fire"])
    )
    assert sea.layers == wood.layers == trained_layers(3, by_words=True) == trained_layers(3)[-1:]
    assert not torch.equal(sea.directions, wood.directions)
    layers = {c[0].layer for c in first_candidates(["trained_comply"], 30, None, by_words=True)}
    assert layers == set(trained_layers(30, by_words=True))
