"""Searches and evaluations that do not decode greedily: what they answer, record and refuse."""

from dataclasses import replace

import pytest
from small_search import SMALL, TITLE

import steerlens as sl
from steerlens.behaviour.answers import Answerer, Question
from steerlens.behaviour.evaluation import catalogue_prompts
from steerlens.behaviour.evaluation.run import EvaluationSettings, evaluate
from steerlens.behaviour.plans import Plan
from steerlens.behaviour.search import search
from steerlens.engine.sampling import Decoding
from steerlens.errors import FileFormatError, ModelError, SteerlensError

# So strong that random weights show it within a few tokens.
PENALTY = Decoding(repetition_penalty=4.0)
DRAWN = Decoding(temperature=1.0, top_k=50, samples=3, seed=2)
BEFORE = ({"role": "system", "content": "Be brief."},)


def test_a_plan_is_evaluated_as_it_was_chosen_unless_told_otherwise(
    roomy_model, plan_folder, tmp_path
):
    plan = Plan.load(plan_folder)
    settings = {**plan.data["settings"], "decoding": {"repetition_penalty": 4.0}}
    plan = replace(plan, data={**plan.data, "settings": {**settings, "conversation": [*BEFORE]}})
    prompts = catalogue_prompts([TITLE], 2)
    short = EvaluationSettings(max_new_tokens=8)
    run = evaluate(roomy_model, prompts, tmp_path / "a", plan, short, show_progress=False)
    assert run.summary["decoding"].endswith("penalty 4 (as the plan was chosen with)")
    plain = [row for row in run.responses if row["condition"] == "uninstructed"]
    asked = [[*BEFORE, {"role": "user", "content": row["prompt"]}] for row in plain]
    expected = sl.generate(roomy_model, asked, decoding=PENALTY, max_new_tokens=8)
    assert [row["response"] for row in plain] == list(expected.texts)

    told = replace(short, decoding=Decoding(), conversation=())
    run = evaluate(roomy_model, prompts, tmp_path / "b", plan, told, show_progress=False)
    assert run.summary["decoding"] == (
        "greedy (as asked for; the plan was chosen with: greedy, repetition penalty 4)"
    )
    texts = [row["response"] for row in run.responses if row["condition"] == "uninstructed"]
    assert texts != list(expected.texts)
    prompts_alone = [row["prompt"] for row in plain]
    assert texts == list(sl.generate(roomy_model, prompts_alone, max_new_tokens=8).texts)


def test_several_samples_are_counted_by_prompt_and_resumed_only_as_they_were(
    roomy_model, plan_folder, tmp_path
):
    prompts, plan = catalogue_prompts([TITLE], 2), Plan.load(plan_folder)
    settings = EvaluationSettings(max_new_tokens=6, decoding=DRAWN)
    run = evaluate(roomy_model, prompts, tmp_path / "e", plan, settings, show_progress=False)
    assert len(run.responses) == 2 * 5 * 3
    assert {row["sample"] for row in run.responses} == {0, 1, 2}
    assert len({row["response"] for row in run.responses if row["row"] == prompts[0].row}) > 3
    assert run.summary["conditions"]["uninstructed"]["all"]["n"] == 2
    assert {difference["n"] for difference in run.summary["differences"]} == {2}
    again = evaluate(roomy_model, prompts, tmp_path / "e", plan, settings, resume=True)
    assert again.responses == run.responses
    other = replace(settings, decoding=replace(DRAWN, seed=3))
    with pytest.raises(SteerlensError, match="was made with other settings"):
        evaluate(roomy_model, prompts, tmp_path / "e", plan, other, resume=True)


def test_a_search_says_how_its_plan_was_decoded(roomy_model, tmp_path):
    settings = replace(SMALL, decoding=replace(DRAWN, samples=2), conversation=[*BEFORE])
    plan = search(roomy_model, [TITLE], tmp_path / "s", settings, show_progress=False)
    loaded = Plan.load(tmp_path / "s")
    assert plan.decoding == loaded.decoding == settings.decoding
    assert loaded.conversation == BEFORE
    record = loaded.data["instructions"][TITLE]
    assert record["uninstructed"]["n"] == 3
    assert {row["n"] for row in record["table"] if row["stage"] == "final"} == {6}
    with pytest.raises(SteerlensError, match="was made with other settings"):
        search(roomy_model, [TITLE], tmp_path / "s", SMALL, resume=True, show_progress=False)


def test_remembered_answers_are_named_by_their_decoding(tiny_model):
    answerer = Answerer(tiny_model, batch_size=4)
    questions = [Question("Name a city."), Question("Name a river.")]
    greedy = answerer.ask(questions, 6)
    assert answerer.ask(questions, 6, decoding=PENALTY) != greedy
    drawn = answerer.ask(questions, 6, decoding=DRAWN)
    assert len(drawn) == 6 and len({answer.text for answer in drawn}) > 2
    assert answerer.ask(questions, 6, decoding=DRAWN) == drawn
    assert answerer.ask(questions, 6, decoding=replace(DRAWN, seed=9)) != drawn
    # A prompt draws alike wherever it stands.
    assert answerer.ask(questions[1:], 6, decoding=DRAWN) == drawn[3:]


def test_what_no_run_can_begin_with_is_refused(plan_folder, tmp_path):
    with pytest.raises(ModelError, match="message 0 of conversation has the role 'bot'"):
        replace(SMALL, conversation=[{"role": "bot", "content": "Hi."}])
    text = (plan_folder / "plan.json").read_text()
    (tmp_path / "plan.json").write_text(text.replace('"temperature"', '"heat"'))
    for vector in plan_folder.glob("vectors"):
        (tmp_path / "vectors").symlink_to(vector)
    with pytest.raises(FileFormatError, match="lacks a part of a plan"):
        Plan.load(tmp_path)
