"""Claims about the cost of what a search chooses: measured, kept, and said."""

import json
from dataclasses import replace

import pytest
from small_search import SMALL, TITLE

import steerlens as sl
from steerlens.behaviour.answers import Answerer
from steerlens.behaviour.plain_text import PlainText
from steerlens.behaviour.plans import InterventionSpec, Plan, VectorBook, describe
from steerlens.behaviour.search.cost import add_cost

CANDIDATE = (InterventionSpec("last_prompt", 1, "add", 3.0, "all"),)


def cost_of(book, task, candidate, stage):
    choice = {}
    add_cost(book, task, {}, choice, candidate, stage)
    return choice


def test_a_choice_is_measured_once_and_kept(roomy_model, monkeypatch):
    book, task = VectorBook(Answerer(roomy_model), SMALL.recipe), sl.catalogue[TITLE]
    stage = [{"setting": "no steering"}, {"setting": describe(CANDIDATE)}]
    first = cost_of(book, task, CANDIDATE, stage)
    effects = sl.side_effects(roomy_model, book.steering(task, {}, CANDIDATE), show_progress=False)
    assert first == effects.summary("steered")
    assert set(stage[1]) == {"setting", "cost", "cost_low", "cost_high"}
    assert set(stage[0]) == {"setting"}
    monkeypatch.setattr(PlainText, "measured", None)
    assert cost_of(book, task, CANDIDATE, stage) == first
    # No steering costs nothing, and takes nothing.
    assert cost_of(book, task, (), stage) == {}


def test_a_plan_says_what_its_choice_costs_and_an_older_one_still_loads(plan_folder, tmp_path):
    plan = Plan.load(plan_folder)
    data = json.loads((plan_folder / "plan.json").read_text(encoding="utf-8"))
    choice = data["instructions"][TITLE]["uninstructed"]
    without = {name: value for name, value in choice.items() if "cost" not in name}
    numbers = {"cost": 1.25, "cost_low": 1.2, "cost_high": 1.31, "accuracy_change": -0.05}
    data["instructions"][TITLE]["uninstructed"] = {**without, **numbers}
    priced = replace(plan, data=data)
    assert priced.described(TITLE).endswith(
        "; perplexity of plain text ×1.25 [1.20, 1.31], common questions -5 points"
    )
    assert priced.table["cost"].iloc[0] == pytest.approx(1.25)
    data["instructions"][TITLE]["uninstructed"] = without
    assert "plain text" not in replace(plan, data=data).described(TITLE)
