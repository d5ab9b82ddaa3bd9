"""Search and plans: small runs on a tiny model, and their algebra.

Notebooks 03 to 06 search and evaluate on the real model (`test_notebooks`).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from small_search import SMALL, TITLE
from stored_pieces import wait_for_pieces

import steerlens as sl
from steerlens.behaviour.answers import Answer, Answerer, Question
from steerlens.behaviour.evaluation import verdict
from steerlens.behaviour.judge import Judge
from steerlens.behaviour.plans import (
    NO_STEERING,
    InterventionSpec,
    Plan,
    VectorBook,
    describe,
)
from steerlens.behaviour.plans.candidates import candidate_from_json, to_json
from steerlens.behaviour.search import SearchSettings, search
from steerlens.behaviour.search.halving import search_task
from steerlens.behaviour.search.scoring import Score, choose, is_allowed, scored, worth
from steerlens.behaviour.search.space import (
    combinations,
    first_candidates,
    instructed_candidates,
    neighbours,
)
from steerlens.errors import FileFormatError, SteerlensError, UnknownNameError
from steerlens.vectors import SteeringVector

PROMPT = InterventionSpec("last_prompt", 24, "set_projection", 1.0, "prompt")
RESPONSE = InterventionSpec("response_rewrite", 20, "set_projection", 1.0, "all")


def _score(passed: list[bool], degenerate: list[bool], perplexity: float | None = None) -> Score:
    return Score((PROMPT,), tuple(passed), tuple(degenerate), 10, perplexity)


def test_a_setting_survives_json_and_bad_ones_are_refused() -> None:
    both = (PROMPT, RESPONSE, replace(RESPONSE, only_below=True))
    assert candidate_from_json(json.loads(json.dumps(to_json(both)))) == both
    with pytest.raises(FileFormatError, match="needs estimator"):
        candidate_from_json([{"estimator": "last_prompt"}])
    with pytest.raises(UnknownNameError, match="operation"):
        InterventionSpec("last_prompt", 3, "multiply", 1.0, "all")
    assert "only_below" not in to_json((PROMPT,))[0]
    assert describe((both[2],)).endswith("on all, only below its target")
    assert describe(NO_STEERING) == "no steering"


def test_candidates_stay_below_the_last_layer_and_differ() -> None:
    recovery = {layer: layer / 30 for layer in range(0, 29, 2)}
    found = first_candidates(["last_prompt", "response_rewrite", "include"], 30, recovery)
    assert len(found) == len(set(found))
    assert all(0 <= candidate[0].layer < 29 for candidate in found)
    near = neighbours((InterventionSpec("last_prompt", 28, "set_projection", 1.0, "all"),), 30)
    assert all(candidate[0].layer < 29 for candidate in near)
    assert (replace(RESPONSE, only_below=True),) in neighbours((RESPONSE,), 30)
    assert combinations([(RESPONSE,), (PROMPT,)])[0] == (PROMPT, RESPONSE)
    assert combinations([(PROMPT,)]) == []
    # With the instruction in the prompt each is tried at half strength as well, and once only.
    half = replace(PROMPT, strength=PROMPT.strength / 2)
    assert instructed_candidates([(PROMPT,), (PROMPT, RESPONSE), (half,)]) == [
        (PROMPT,),
        (half,),
        (PROMPT, RESPONSE),
        (half, replace(RESPONSE, strength=RESPONSE.strength / 2)),
        (replace(half, strength=PROMPT.strength / 4),),
    ]


def test_lengths_are_steered_by_where_answers_end_and_waited_for() -> None:
    found = first_candidates(["response_end"], 30, None)
    assert {candidate[0].scope for candidate in found} == {"response"}
    assert {candidate[0].strength > 0 for candidate in found} == {True, False}
    assert sl.catalogue["detectable_format:title"].tokens_to_tell({}) is None
    long = {"relation": "at least", "num_words": 200}
    at_least = sl.catalogue["length_constraints:number_words_at_least"]
    assert at_least.tokens_to_tell({}) == 0 and at_least.tokens_to_tell(long) == 300
    assert sl.catalogue["length:extremely_verbose"].tokens_to_tell({}) >= 251


def test_answers_that_end_are_cut_where_a_sentence_ends(roomy_model) -> None:
    answerer = Answerer(roomy_model)
    book = VectorBook(answerer, replace(SMALL.recipe, n_responses=4, least_own=2))
    given = [
        Answer("One is here. Two follows. Three ends it.", 9, "stop"),
        Answer("Only one sentence.", 4, "stop"),
        Answer("It goes on. And on. And", 9, "length"),
        Answer("This is good. That is bad.", 9, "stop"),
    ] * 2
    answerer.ask = lambda questions, *_: given  # type: ignore[method-assign,assignment]
    pairs = book._ended(sl.catalogue["length:brief"])
    assert [one.uninstructed_response for one in pairs][:2] == [
        "One is here. Two follows.",
        "This is good.",
    ]
    assert all(one.instructed == one.uninstructed for one in pairs)
    vector = book.vector(sl.catalogue["length:brief"], {}, "response_end")
    assert vector.metadata["position"] == "last_response"
    with pytest.raises(SteerlensError, match="asks for no length"):
        book.vector(sl.catalogue["detectable_format:title"], {}, "response_end")


def test_a_candidate_that_gains_nothing_or_is_hard_to_read_is_dropped() -> None:
    baseline = _score([True] + [False] * 19, [False] * 20, 10.0)
    assert is_allowed(_score([True] * 20, [True] * 20, 15.0), baseline, 1.5)
    assert not is_allowed(_score([True] * 20, [False] * 20, 15.1), baseline, 1.5)
    assert not is_allowed(_score([True] + [False] * 19, [False] * 20, 9.0), baseline, 1.5)


def test_what_gained_by_the_luck_of_being_chosen_is_not_chosen() -> None:
    never = [False] * 24
    baseline = _score([True] * 13 + [False] * 11, never, 10.0)
    # 14 of 24 against 13, others that gain as little, and one that gains much.
    near = [_score([i == j or i % 24 < 13 for i in range(24)], never, 10.0) for j in range(13, 17)]
    much = _score([True] * 23 + [False], never, 10.0)
    winner, corrected, n_allowed = choose([baseline, *near], 1.5, 1.0)
    assert winner is baseline and corrected.value == 13 / 24 and n_allowed == 5
    winner, corrected, _ = choose([baseline, *near, much], 1.5, 1.0)
    assert winner is much and 13 / 24 < corrected.value <= 23 / 24


@pytest.mark.parametrize("works", [False, True])
def test_hopeless_settings_are_spared_the_last_stage_and_the_judge(tiny_model, works: bool) -> None:
    """Answers are made up: only those steered at strength 1 have a title, or none has."""
    read: list[str] = []

    def perplexities(_judge, responses, *_given):
        read.extend(responses)
        return [10.0] * len(responses)

    def ask(questions, *_given):
        titled = [
            works and bool(one.label) and all(part["strength"] == 1 for part in one.label["parts"])
            for one in questions
        ]
        texts = ["<<A Title>> Rome is old." if one else "Rome is old." for one in titled]
        return [Answer(text, 6, "stop") for text in texts]

    book = VectorBook(Answerer(tiny_model), SMALL.recipe)
    generator = torch.Generator().manual_seed(0)
    cache = sl.ResidualCache.from_tensors(*torch.randn(2, 4, 3, 16, generator=generator))
    vector = sl.difference_of_means(cache)
    book.available = lambda *_: ({"response_rewrite": vector}, {})  # type: ignore[method-assign]
    book.steering = lambda *_: None  # type: ignore[method-assign]
    book.answerer.ask = ask  # type: ignore[method-assign]
    book.answerer.perplexities = perplexities  # type: ignore[method-assign]
    record = search_task(book, sl.catalogue[TITLE], SMALL, Judge(tiny_model)).record
    final = [row for row in record["table"] if row["stage"] == "final"]
    with_it = [row for row in record["table"] if row["stage"] == "instructed"]
    assert final[0]["parts"] == [] and (len(final) > 1) is works
    assert all({part["strength"] for part in row["parts"]} == {1} for row in final[1:])
    judged = [row for row in (*final, *with_it) if not row["parts"] or row["passed"]]
    assert len(read) == sum(row["n"] for row in judged)
    assert sum("<<" in text for text in read) == sum(row["passed"] for row in judged)
    assert bool(record["uninstructed"]["parts"]) is works


def test_a_response_that_newly_loops_costs_its_price_and_one_that_did_before_nothing() -> None:
    baseline = _score([False] * 4, [True, False, False, False], 10.0)
    steered = _score([True, True, False, False], [True, True, False, True], 10.0)
    assert worth(steered, baseline, 1.0) == [1, 0, 0, -1]
    assert worth(steered, baseline, 0.25) == [1, 0.75, 0, -0.25]
    assert sum(steered.successes) == 0


def test_scores_count_what_the_checks_say() -> None:
    pairs = list(sl.contrast_pairs(TITLE, n=2, split="select"))
    texts = ["<<Rome>>\nRome is old and large.", "Rome is old and large."]
    score = scored(
        (PROMPT,), sl.catalogue[TITLE], pairs, [Answer(text, 9, "stop") for text in texts]
    )
    expected = tuple(
        verdict(text, [TITLE], [pair.kwargs]).all_loose
        for text, pair in zip(texts, pairs, strict=True)
    )
    assert score.passed == expected == (True, False)


def test_a_response_that_was_cut_does_not_keep_an_upper_limit() -> None:
    words = "one two three four five six seven eight nine ten eleven twelve more words here now"
    for name, passes in (("length:brief", False), ("length:extremely_verbose", True)):
        pair = next(iter(sl.contrast_pairs(name, n=2, split="select")))
        text = words if name == "length:brief" else words * 20
        cut, ended = (
            scored((PROMPT,), sl.catalogue[name], [pair], [Answer(text, 64, reason)]).passed
            for reason in ("length", "stop")
        )
        assert ended == (True,) and cut == (passes,)


def test_equal_questions_are_answered_once(tiny_model) -> None:
    answerer = Answerer(tiny_model, batch_size=4)
    first = answerer.ask([Question("Name a city."), Question("Name a river.")], 4)
    calls: list[int] = []
    answerer._generate = lambda *a: calls.append(1)  # type: ignore[assignment,method-assign,return-value]
    assert answerer.ask([Question("Name a city."), Question("Name a river.")], 4) == first
    assert not calls


def test_a_vector_of_given_words_differs_with_the_words(model) -> None:
    book = VectorBook(Answerer(model), SMALL.recipe)
    task = sl.catalogue["keywords:existence"]
    sea, iron = (
        book.vector(task, {"keywords": [word]}, "last_prompt").directions[20]
        for word in ("sea", "iron")
    )
    assert 0.2 < float(sea @ iron) < 0.999
    with pytest.raises(SteerlensError, match="unknown estimator"):
        book.vector(task, {"keywords": ["sea"]}, "best")


def test_a_plan_names_its_choice_with_intervals_and_the_whole_table(
    roomy_model, plan_folder
) -> None:
    plan = Plan.load(plan_folder)
    record = plan.data["instructions"][TITLE]
    for context in ("uninstructed", "instructed"):
        choice = record[context]
        assert choice["low"] <= choice["rate"] <= choice["high"]
        assert choice["n"] == 3
        assert plan.candidate(TITLE, context) == candidate_from_json(choice["parts"])
    assert {row["stage"] for row in record["table"]} == {
        "broad",
        "narrow",
        "final",
        "instructed narrow",
        "instructed",
    }
    assert record["vectors"]
    plan.check_model(roomy_model)
    # The tables are the record, a row a context and a row a candidate tried.
    assert plan.table["rate"].tolist() == [
        record[context]["rate"] for context in ("uninstructed", "instructed")
    ]
    assert plan.tried["passed"].tolist() == [row["passed"] for row in record["table"]]
    assert TITLE in plan._repr_html_()


def test_a_search_stopped_anywhere_resumes_to_the_same_plan(
    roomy_model, plan_folder, tmp_path, monkeypatch
) -> None:
    asked: list[int] = []
    whole = Answerer._generate

    def stops_at_the_third(self, *given):
        asked.append(1)
        if len(asked) == 3:
            signal.raise_signal(signal.SIGINT)
        return whole(self, *given)

    monkeypatch.setattr(Answerer, "_generate", stops_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        search(roomy_model, [TITLE], tmp_path / "plan", SMALL, show_progress=False)
    monkeypatch.setattr(Answerer, "_generate", whole)
    search(roomy_model, [TITLE], tmp_path / "plan", SMALL, resume=True, show_progress=False)
    written = (tmp_path / "plan" / "plan.json").read_bytes()
    assert written == (plan_folder / "plan.json").read_bytes()
    other = SearchSettings(seed=1)
    with pytest.raises(SteerlensError, match="other settings"):
        search(roomy_model, [TITLE], tmp_path / "plan", other, resume=True, show_progress=False)


def test_a_finished_search_stopped_while_its_vectors_are_written_again_is_no_plan(
    roomy_model, plan_folder, tmp_path, monkeypatch
) -> None:
    folder = tmp_path / "plan"
    shutil.copytree(plan_folder, folder)
    save = SteeringVector.save

    def stops(self, path):
        save(self, path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(SteeringVector, "save", stops)
        search(roomy_model, [TITLE], folder, SMALL, resume=True, show_progress=False)
    with pytest.raises(FileFormatError, match="holds no plan"):
        Plan.load(folder)
    search(roomy_model, [TITLE], folder, SMALL, resume=True, show_progress=False)
    assert (folder / "plan.json").read_bytes() == (plan_folder / "plan.json").read_bytes()


def test_a_plan_is_for_weights_and_configuration_as_they_were(
    roomy_model, plan_folder, monkeypatch
) -> None:
    plan = Plan.load(plan_folder)
    monkeypatch.setattr(roomy_model.original_model.config, "rms_norm_eps", 1e-3)
    with pytest.raises(SteerlensError, match=r"configuration_hash .*search again"):
        plan.check_model(roomy_model)
    monkeypatch.undo()
    plan.check_model(roomy_model)
    weight = roomy_model.original_model.model.norm.weight.data
    weight.mul_(2)
    try:
        with pytest.raises(SteerlensError, match="weights were changed since loading"):
            plan.check_model(roomy_model)
    finally:
        weight.div_(2)
    plan.check_model(roomy_model)


def test_a_search_killed_outright_resumes_to_the_same_plan(
    roomy_folder, roomy_model, plan_folder, tmp_path
) -> None:
    # Given a search in a process of its own, killed once its first pieces are kept,
    folder = tmp_path / "plan"
    program = (
        "import sys, steerlens as sl; from small_search import SMALL, TITLE\n"
        "from steerlens.behaviour.search import search\n"
        "model = sl.load_model(sys.argv[1], device='cpu')\n"
        "search(model, [TITLE], sys.argv[2], SMALL, show_progress=False)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(roomy_folder), str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for_pieces(process, folder, 2)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (folder / "plan.json").exists()
    # when it is resumed, then the plan is that of an unbroken search.
    search(roomy_model, [TITLE], folder, SMALL, resume=True, show_progress=False)
    assert (folder / "plan.json").read_bytes() == (plan_folder / "plan.json").read_bytes()


def test_a_plan_from_another_model_or_a_folder_without_one_is_refused(
    tiny_model, plan_folder, tmp_path
) -> None:
    with pytest.raises(SteerlensError, match="searched on"):
        Plan.load(plan_folder).check_model(tiny_model)
    with pytest.raises(FileFormatError, match="holds no plan"):
        Plan.load(tmp_path)
    (tmp_path / "plan.json").write_text('{"schema": "other"}')
    with pytest.raises(FileFormatError, match="is no plan"):
        Plan.load(tmp_path)
