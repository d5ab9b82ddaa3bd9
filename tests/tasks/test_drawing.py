"""Prompts drawn from the catalogue: deterministic, of one split, and checkable."""

import itertools

import pytest

from steerlens.behaviour.evaluation.drawing import catalogue_prompts, several
from steerlens.errors import PairsError, SteerlensError, UnknownNameError
from steerlens.tasks import base_queries, catalogue
from steerlens.tasks.checks import verdict
from steerlens.tasks.drawing import contrast_pairs


def test_prompts_are_the_pairs_of_their_split() -> None:
    ids = ["punctuation:no_comma", "keywords:existence"]
    found = catalogue_prompts(ids, 5, split="select", seed=3)
    assert [prompt.key for prompt in found] == [f"{i}/{k}" for i in ids for k in range(5)]
    for instruction_id, drawn in zip(ids, (found[:5], found[5:]), strict=True):
        pairs = contrast_pairs(instruction_id, 5, seed=3, split="select")
        assert [(p.prompt, p.prompt_without_instruction) for p in drawn] == [
            (pair.instructed, pair.uninstructed) for pair in pairs
        ]
        assert [p.kwargs for p in drawn] == [(pair.kwargs,) for pair in pairs]
        assert {p.instruction_ids for p in drawn} == {(instruction_id,)}


def test_fewer_prompts_are_the_first_of_more() -> None:
    ids = list(catalogue)
    few, many = catalogue_prompts(ids, 1), catalogue_prompts(ids, 4)
    assert few == many[::4]
    pair = [("detectable_format:title", "length:brief")]
    assert several(pair, 3) == several(pair, 9)[:3]
    assert several(pair, 3, seed=1) != several(pair, 3)


def test_every_drawn_prompt_can_be_scored() -> None:
    for prompt in catalogue_prompts(list(catalogue), 2):
        verdict("Some answer.", prompt.instruction_ids, prompt.kwargs, prompt.prompt)


def test_several_instructions_follow_one_query_in_order() -> None:
    combination = ("detectable_format:title", "punctuation:no_comma", "length:medium")
    queries = {query.text for query in base_queries("report")}
    found = several([combination], 8)
    for prompt in found:
        assert prompt.prompt_without_instruction in queries
        rest = prompt.prompt.removeprefix(prompt.prompt_without_instruction or "")
        for instruction_id, kwargs in zip(prompt.instruction_ids, prompt.kwargs, strict=True):
            one = catalogue[instruction_id]
            wordings = [one.render(text, kwargs) for text in one.phrasings_for("report")]
            wording = next(text for text in wordings if rest.strip().startswith(text))
            rest = rest.strip().removeprefix(wording)
        assert rest == ""
    # all pairings of the two phrasings of each occur
    endings = {p.prompt.removeprefix(p.prompt_without_instruction or "") for p in found}
    assert len(endings) == 8
    assert len({prompt.prompt_without_instruction for prompt in found}) == 8


def test_a_query_suits_every_instruction_of_a_combination() -> None:
    found = several([("detectable_format:constrained_response", "punctuation:no_comma")], 5)
    kinds = {query.text: query.kind for query in base_queries("report")}
    assert {kinds[prompt.prompt_without_instruction or ""] for prompt in found} == {"yes-no"}


def test_contradictions_that_ids_tell_are_refused() -> None:
    contradictions = [
        ("change_case:english_lowercase", "change_case:english_capital"),
        ("language:response_language_de", "language:response_language_fr"),
        ("language:response_language_de", "change_case:english_lowercase"),
        ("length:brief", "length:verbose"),
        ("length:brief", "length_constraints:number_words_at_least"),
        ("keywords:existence", "keywords:forbidden_words"),
    ]
    for combination in contradictions:
        for ordered in itertools.permutations(combination):
            with pytest.raises(SteerlensError, match="contradict each other"):
                several([ordered], 1)


def test_what_goes_together_is_not_refused() -> None:
    together = [
        ("change_case:english_lowercase", "length:brief", "punctuation:no_comma"),
        ("language:response_language_de", "detectable_format:number_bullet_lists"),
        ("keywords:existence", "detectable_format:title"),
        ("detectable_format:json_format", "keywords:existence"),
    ]
    assert len(several(together, 2)) == 8


def test_bad_requests_get_a_sentence() -> None:
    with pytest.raises(UnknownNameError, match="unknown instruction"):
        catalogue_prompts(["punctuation:no_commas"], 2)
    with pytest.raises(UnknownNameError, match="unknown split"):
        catalogue_prompts(["punctuation:no_comma"], 2, split="test")
    with pytest.raises(PairsError, match="were asked for"):
        catalogue_prompts(["punctuation:no_comma"], 10_000)
    with pytest.raises(SteerlensError, match="list of instructions"):
        catalogue_prompts([], 2)
    with pytest.raises(SteerlensError, match="list of instructions"):
        catalogue_prompts("punctuation:no_comma", 2)
    with pytest.raises(SteerlensError, match="twice"):
        catalogue_prompts(["punctuation:no_comma", "punctuation:no_comma"], 2)
    with pytest.raises(SteerlensError, match="at least 1 prompt"):
        catalogue_prompts(["punctuation:no_comma"], 0)
    with pytest.raises(SteerlensError, match="two or more different"):
        several([("length:brief",)], 1)
    with pytest.raises(SteerlensError, match="gives at most"):
        several([("length:brief", "punctuation:no_comma")], 10_000)


def test_rows_of_ifeval_are_matched_to_the_catalogue_by_their_arguments() -> None:
    number = "length_constraints:number_sentences"
    language = "language:response_language"
    for check, kwargs, expected in (
        (number, {"relation": "at least", "num_sentences": 9}, f"{number}_at_least"),
        (number, {"relation": "less than"}, f"{number}_at_most"),
        (language, {"language": "it"}, f"{language}_it"),
    ):
        assert catalogue.matching(check, kwargs) is catalogue[expected]
    assert catalogue.matching(language, {"language": "kn"}) is None
    assert catalogue.matching("combination:repeat_prompt", {}) is None
    for task in catalogue.values():
        assert catalogue.matching(task.id, {}) is task
        if task.ifeval_id is not None:
            assert catalogue.matching(task.ifeval_id, task.fixed_kwargs) is task
