"""Verdicts agree with lm-eval's own functions, and cover what IFEval does not know."""

import json
import random
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steerlens.behaviour.evaluation.drawing import several
from steerlens.errors import SteerlensError, UnknownNameError
from steerlens.tasks import base_queries, catalogue, ifeval
from steerlens.tasks.checks import is_known, verdict

# Sentences that every splitter divides alike: the harness's own needs data that may not be here.
TEXTS = (
    "The sea is wide and deep. Ships cross it every day, and nobody counts them. It is blue.",
    "Sure, here is my answer!\n\n**Plan**\n\n* Buy bread, milk and tea.\n* Call Ann.\n\nGood luck!",
    "Yes.",
    'She said "no, never" and left.\n\nThe house was empty. Was it cold? IT WAS VERY COLD.',
)

# Checks that no instruction of the catalogue uses.
ONLY_IFEVAL: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "keywords:letter_frequency",
        {"letter": "e", "let_frequency": 6, "let_relation": "at least"},
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "the"},
    ),
    ("combination:repeat_prompt", {"prompt_to_repeat": "The sea is wide"}),
)

COMBINATIONS = (
    ("change_case:english_lowercase", "punctuation:no_comma"),
    ("detectable_format:title", "detectable_format:number_bullet_lists"),
    ("startend:quotation", "keywords:existence", "length_constraints:number_words_at_most"),
    ("language:response_language_de", "detectable_content:postscript"),
)

# Runs in a fresh interpreter: lm-eval's real package; only what would need NLTK's data is replaced,
# by Punkt without any list of abbreviations.
REFERENCE = """
import json, sys
import langdetect, nltk
from nltk.tokenize import NLTKWordTokenizer
from nltk.tokenize.punkt import PunktSentenceTokenizer
nltk.download = lambda *args, **kwargs: True
nltk.data.load = lambda *args, **kwargs: PunktSentenceTokenizer()
nltk.word_tokenize = lambda text: [
    word
    for sentence in PunktSentenceTokenizer().tokenize(text)
    for word in NLTKWordTokenizer().tokenize(sentence)
]
langdetect.DetectorFactory.seed = 0
from lm_eval.tasks.ifeval import utils
verdicts = []
for key, (ids, kwargs, prompt, response) in enumerate(json.load(sys.stdin)):
    row = utils.InputExample(key, ids, prompt, kwargs)
    strict = utils.test_instruction_following_strict(row, response)
    loose = utils.test_instruction_following_loose(row, response)
    verdicts.append([strict.follow_instruction_list, loose.follow_instruction_list,
                     strict.follow_all_instructions, loose.follow_all_instructions])
print("VERDICTS " + json.dumps(verdicts))
"""

Row = tuple[list[str], list[dict[str, Any]], str, str]


def rows() -> list[Row]:
    """Ids of the catalogue or IFEval, arguments, prompt, response."""
    rng = random.Random(0)
    queries = base_queries("fit")
    found: list[Row] = []
    for instruction in catalogue.values():
        if instruction.ifeval_id is None:
            continue
        for text in TEXTS:
            kwargs = instruction.sample_kwargs(rng, rng.choice(queries))
            responses = [text]
            if instruction.has_rewrite:
                rewritten = instruction.rewrite(text, **kwargs)
                responses += [rewritten, f"Sure:\n{rewritten}", f"*{rewritten}*\nHope it helps."]
            for response in responses:
                found.append(([instruction.id], [kwargs], "The prompt", response))
        found.append(([instruction.id], [kwargs], "The prompt", " \n"))
    for check_id, kwargs in ONLY_IFEVAL:
        found += [([check_id], [kwargs], "The prompt", text) for text in TEXTS]
        found += [([check_id], [kwargs], "The prompt", f"Well:\n{text}") for text in TEXTS]
    for prompt in several(COMBINATIONS, 4, split="fit"):
        ids, all_kwargs = list(prompt.instruction_ids), [dict(one) for one in prompt.kwargs]
        for text in TEXTS:
            rewritten = text
            for one, kwargs in zip(ids, all_kwargs, strict=True):
                if catalogue[one].has_rewrite:
                    rewritten = catalogue[one].rewrite(rewritten, **kwargs)
            found += [(ids, all_kwargs, prompt.prompt, each) for each in (text, rewritten)]
    return found


def test_verdicts_are_those_of_the_harness_for_every_check_it_has() -> None:
    # given
    given_rows = rows()
    in_ifeval = [
        ([catalogue[i].ifeval_id if i in catalogue else i for i in ids], *rest)
        for ids, *rest in given_rows
    ]
    assert len(given_rows) >= 300
    assert {i for ids, *_ in in_ifeval for i in ids} == set(ifeval.known_ifeval_ids())
    assert sum(len(ids) > 1 for ids, *_ in given_rows) >= 100

    # when
    done = subprocess.run(
        [sys.executable, "-c", REFERENCE],
        input=json.dumps(in_ifeval),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    expected = json.loads(done.stdout.split("VERDICTS ")[1])
    ours = [verdict(response, ids, kwargs, prompt) for ids, kwargs, prompt, response in given_rows]

    # then
    for row, one, theirs in zip(given_rows, ours, expected, strict=True):
        found = [list(one.strict), list(one.loose), one.all_strict, one.all_loose]
        assert found == theirs, row
    strict, loose = (sum(e[k] for e in expected) for k in (2, 3))
    assert 100 < strict < loose < len(expected) - 50, "the rows are too one-sided to tell"


def test_bands_of_words_are_checked_strictly_and_loosely() -> None:
    sixteen = " ".join(["word"] * 16)
    assert verdict(sixteen, ["length:brief"], [{}]).strict == (True,)
    assert verdict(sixteen, ["length:extremely_brief"], [{}]).strict == (False,)
    # without its first line it is short enough
    two_lines = f"Sure, this is what I would say to you:\n{' '.join(['word'] * 12)}"
    found = verdict(two_lines, ["length:extremely_brief"], [{}])
    assert (found.strict, found.loose) == ((False,), (True,))


def test_length_is_counted_in_words_and_sentences() -> None:
    found = verdict("Dr. Smith can't come. She is ill!", ["punctuation:no_comma"], [{}])
    assert (found.n_words, found.n_sentences) == (8, 2)


@pytest.mark.parametrize("response", ["", " ", "\n\t\n"])
def test_a_blank_response_follows_nothing(response: str) -> None:
    rng = random.Random(0)
    query = base_queries("fit")[0]
    ids = list(catalogue)
    found = verdict(response, ids, [catalogue[i].sample_kwargs(rng, query) for i in ids])
    assert found.strict == found.loose == (False,) * len(ids)
    assert (found.n_words, found.n_sentences) == (0, 0)
    assert not found.all_strict and not found.all_loose


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=60))
def test_no_response_makes_a_verdict_fail(response: str) -> None:
    ids = [i for i in catalogue if catalogue[i].group != "words" and "language" not in i]
    kwargs = [catalogue[i].sample_kwargs(random.Random(1), base_queries("fit")[0]) for i in ids]
    found = verdict(response, ids, kwargs)
    assert all(loose or not strict for strict, loose in zip(found.strict, found.loose, strict=True))


def test_brackets_without_end_are_no_json_and_no_failure() -> None:
    found = verdict("[" * 5000, ["detectable_format:json_format"], [{}])
    assert found.strict == (False,)


def test_nulls_among_the_arguments_count_as_absent() -> None:
    found = verdict("a b c", ["length:extremely_brief"], [{"num_words": None}])
    assert found.all_strict


def test_ids_of_both_kinds_are_known() -> None:
    assert is_known("length_constraints:number_words")
    assert is_known("length_constraints:number_words_at_most")
    assert not is_known("length_constraints:words")


def test_bad_requests_get_a_sentence() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'length:brief'"):
        verdict("text", ["length:breif"], [{}])
    with pytest.raises(SteerlensError, match="2 ids and 1 sets"):
        verdict("text", ["length:brief", "length:medium"], [{}])
    with pytest.raises(SteerlensError, match="at least one id"):
        verdict("text", [], [])
    with pytest.raises(SteerlensError, match="lacks the argument 'keywords'"):
        verdict("text", ["keywords:existence"], [{}])
