"""The isolated IFEval checks: same verdicts as lm-eval's own harness, offline, leaving no trace."""

import json
import logging
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steerlens.errors import SteerlensError, UnknownNameError
from steerlens.tasks import ifeval

PROSE = "The sea is wide and deep. Ships cross it every day, and nobody counts them."

# (id, kwargs): every check whose verdict does not depend on NLTK's sentence data.
CASES: list[tuple[str, dict[str, object]]] = [
    ("keywords:existence", {"keywords": ["sea", "ships"]}),
    ("keywords:frequency", {"keyword": "sea", "frequency": 2, "relation": "at least"}),
    ("keywords:forbidden_words", {"forbidden_words": ["ships", "wide"]}),
    (
        "keywords:letter_frequency",
        {"letter": "e", "let_frequency": 5, "let_relation": "less than"},
    ),
    ("language:response_language", {"language": "de"}),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}),
    ("length_constraints:number_words", {"num_words": 12, "relation": "less than"}),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "ships"},
    ),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}),
    ("detectable_format:constrained_response", {}),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}),
    ("detectable_format:multiple_sections", {"section_spliter": "Part", "num_sections": 2}),
    ("detectable_format:json_format", {}),
    ("detectable_format:title", {}),
    ("combination:two_responses", {}),
    ("combination:repeat_prompt", {"prompt_to_repeat": "The sea"}),
    ("startend:end_checker", {"end_phrase": "the end."}),
    ("change_case:english_capital", {}),
    ("change_case:english_lowercase", {}),
    ("punctuation:no_comma", {}),
    ("startend:quotation", {}),
]

RESPONSES = [
    PROSE,
    PROSE.lower(),
    PROSE.upper(),
    f'"{PROSE}"',
    "  ",
    "Das Meer ist weit und tief, und niemand zählt die Schiffe darauf.",
    "* The sea\n* Ships, ships and sea\nThe end.",
    "Sure, here it is:\n\n**The** *sea* [a] [b] P.S. ships\nMy answer is no.",
    "Here you go\n<<Sea>>\nPart 1 the sea\nPart 2 ships, sea\nHope it helps, bye",
    "The sea is wide.\n\nShips cross it.",
    "one ****** two",
    '```json\n{"sea": 1}\n```',
    "First\n***\nSecond",
    "Well, ok\nthe sea is calm and the ships are slow\nWell, bye",
]

# Runs in a fresh interpreter: lm-eval's real package, imported the ordinary way.
REFERENCE = """
import json, sys
import langdetect, nltk
nltk.download = lambda *args, **kwargs: True
langdetect.DetectorFactory.seed = 0
from lm_eval.tasks.ifeval import utils
cases, responses = json.load(sys.stdin)
verdicts = []
for ifeval_id, kwargs in cases:
    for response in responses:
        row = utils.InputExample(0, [ifeval_id], "The prompt", [kwargs])
        strict = utils.test_instruction_following_strict(row, response)
        loose = utils.test_instruction_following_loose(row, response)
        verdicts.append([strict.follow_all_instructions, loose.follow_all_instructions])
print("VERDICTS " + json.dumps(verdicts))
"""

# Also in a fresh interpreter: no connection may be opened, no lm-eval module may appear, and the
# caller's random numbers may not be consumed.
ISOLATION = """
import random, socket, sys
def refuse(*args, **kwargs):
    raise AssertionError("a connection was opened")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
from steerlens.tasks import ifeval
assert not {"nltk", "lm_eval", "torch", "langdetect"} & set(sys.modules), "imported too early"
assert ifeval.check("length_constraints:number_sentences", "One. Two.",
                    {"num_sentences": 2, "relation": "at least"})
assert ifeval.check("change_case:capital_word_frequency", "ONE two THREE.",
                    {"capital_frequency": 2, "capital_relation": "at least"})
assert ifeval.check("language:response_language", "The house is small.", {"language": "en"})
state = random.getstate()
ifeval.check("keywords:letter_frequency", "a", {"letter": "#", "let_frequency": 1,
                                                "let_relation": "at least"})
assert random.getstate() == state
import langdetect, nltk
assert not [name for name in sys.modules if name.startswith("lm_eval")], "lm_eval left behind"
assert langdetect.DetectorFactory.seed is None
assert nltk.download.__module__.startswith("nltk")
print("ISOLATED")
"""


def run_fresh(program: str, stdin: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], input=stdin, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_strict_and_loose_verdicts_are_those_of_the_real_harness() -> None:
    # given: lm-eval imported as its users do, over every check and a mixed bag of responses
    output = run_fresh(REFERENCE, json.dumps([CASES, RESPONSES]))
    expected = json.loads(output.split("VERDICTS ")[1])

    # when
    verdicts = [
        [ifeval.check(i, response, kwargs, loose=loose) for loose in (False, True)]
        for i, kwargs in CASES
        for response in RESPONSES
    ]

    # then
    labels = [(i, response) for i, _ in CASES for response in RESPONSES]
    assert dict(zip(labels, verdicts, strict=True)) == dict(zip(labels, expected, strict=True))
    strict, loose = zip(*expected, strict=True)
    assert sum(strict) > 20, "the responses are too one-sided to tell checks apart"
    assert sum(loose) > sum(strict)


def test_checking_opens_no_connection_and_leaves_no_module_behind() -> None:
    assert "ISOLATED" in run_fresh(ISOLATION)


def test_every_check_of_the_registry_but_the_sentence_based_ones_is_compared_above() -> None:
    sentence_based = {
        "length_constraints:number_sentences",
        "change_case:capital_word_frequency",
    }
    assert {i for i, _ in CASES} | sentence_based == set(ifeval.known_ifeval_ids())


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three?", 3),
        ("Dr. Smith met Mrs. Jones on St. James Street. They talked.", 2),
        ("We met at 5 p.m. The shop was closed.", 2),
        ("Bring fruit, e.g. apples, pears, etc. to the picnic.", 1),
        ("It costs 3.50 dollars. Cheap!", 2),
        ("The answer is no. It is not.", 2),
        ("No final period", 1),
        ("", 0),
    ],
)
def test_sentences_are_counted_without_downloaded_data(text: str, sentences: int) -> None:
    assert ifeval.count_sentences(text) == sentences


def test_sentence_spans_cover_everything_but_white_space() -> None:
    text = "  First one here.  Then\nanother one! \n\nLast"
    spans = ifeval.sentence_spans(text)
    assert [text[a:b] for a, b in spans] == ["First one here.", "Then\nanother one!", "Last"]


def test_a_sentence_limit_counts_strictly_below_the_threshold() -> None:
    arguments = {"num_sentences": 3, "relation": "less than"}
    check_id = "length_constraints:number_sentences"
    assert ifeval.check(check_id, "One. Two.", arguments)
    assert not ifeval.check(check_id, "One. Two. Three.", arguments)


def test_words_in_capitals_are_counted_by_token() -> None:
    arguments = {"capital_frequency": 3, "capital_relation": "at least"}
    check_id = "change_case:capital_word_frequency"
    assert ifeval.check(check_id, "NASA and ESA agree. WELL-KNOWN facts.", arguments)
    assert not ifeval.check(check_id, "NASA and Esa agree. WELL-known facts.", arguments)


@given(st.text(alphabet="ab \n*", max_size=40))
def test_loose_variants_drop_lines_and_asterisks(response: str) -> None:
    variants = ifeval.loose_variants(response)
    lines = response.split("\n")
    assert len(variants) == 8
    assert variants[0] == response
    assert "\n".join(lines[1:]).strip() in variants
    assert "\n".join(lines[:-1]).strip() in variants
    assert "\n".join(lines[1:-1]).strip().replace("*", "") in variants


def test_falsy_arguments_count_as_absent_as_in_ifeval_rows() -> None:
    row = {"num_words": 3, "relation": "at least", "keywords": None, "language": "", "letter": None}
    assert ifeval.check("length_constraints:number_words", "one two three", row)


def test_a_missing_argument_is_refused_rather_than_drawn_at_random() -> None:
    with pytest.raises(SteerlensError, match="lacks the argument 'relation'"):
        ifeval.check("length_constraints:number_words", "x", {"num_words": 3})
    with pytest.raises(SteerlensError, match="lacks the argument 'keywords'"):
        ifeval.check("keywords:existence", "x", {"keywords": None})


def test_an_unknown_argument_is_refused_with_those_that_exist() -> None:
    with pytest.raises(SteerlensError, match=r"does not know .*'words'; it takes 'num_words'"):
        ifeval.check(
            "length_constraints:number_words",
            "x",
            {"num_words": 3, "relation": "at least", "words": 3},
        )


@pytest.mark.parametrize(
    ("ifeval_id", "kwargs"),
    [
        ("length_constraints:number_words", {"num_words": "3", "relation": "at least"}),
        ("length_constraints:number_words", {"num_words": 3, "relation": "more than"}),
        ("keywords:existence", {"keywords": ["c("]}),
        ("language:response_language", {"language": "klingon"}),
    ],
)
def test_unusable_arguments_give_a_sentence_and_not_a_traceback(
    ifeval_id: str, kwargs: dict[str, object]
) -> None:
    with pytest.raises(SteerlensError, match="cannot use the arguments"):
        ifeval.check(ifeval_id, "some text", kwargs)


def test_an_argument_lm_eval_replaces_at_random_gives_the_same_verdict_each_time() -> None:
    # "#" is no letter, so lm-eval draws one; in PROSE, some letters occur twice and some do not.
    kwargs = {"letter": "#", "let_frequency": 2, "let_relation": "at least"}
    verdicts = {ifeval.check("keywords:letter_frequency", PROSE, kwargs) for _ in range(30)}
    assert len(verdicts) == 1


def test_an_ambiguous_language_gets_the_same_verdict_each_time() -> None:
    verdicts = {
        ifeval.check("language:response_language", "ok no si", {"language": "es"})
        for _ in range(20)
    }
    assert len(verdicts) == 1


def test_an_undetectable_language_is_accepted_without_noise_on_standard_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logging.getLogger("steerlens.tasks.ifeval").propagate = False
    try:
        assert ifeval.check("language:response_language", "12345", {"language": "de"})
    finally:
        logging.getLogger("steerlens.tasks.ifeval").propagate = True
    assert capsys.readouterr().err == ""


def test_an_unknown_check_is_named_with_its_neighbours() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'punctuation:no_comma'"):
        ifeval.check("punctuation:no_commas", "x", {})


def test_word_counts_are_runs_of_word_characters() -> None:
    assert ifeval.count_words("It's 3 o'clock — naïve, isn't it?") == 9
