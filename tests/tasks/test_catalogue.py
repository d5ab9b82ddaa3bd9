"""The catalogue: each instruction can be phrased, drawn, checked and mostly rewritten to comply."""

import inspect
import json
import pickle
import random
import re
import string
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steerlens.errors import SteerlensError, UnknownNameError
from steerlens.tasks import SPLITS, Task, base_queries, catalogue, ifeval

IDS = list(catalogue)
REWRITABLE = [i for i in IDS if catalogue[i].has_rewrite]
ALL_QUERIES = [query for split in SPLITS for query in base_queries(split)]

GROUP_SIZES = {"format": 19, "length": 9, "words": 3}

# Very short, long, multi-line, markdown, quotation, code, other scripts, capitals, odd white space.
RESPONSES = [
    "Yes.",
    "42",
    "Paris",
    "The sky is blue because air scatters short wavelengths, mostly blue, more than long ones.",
    "# Reasons\n\n* **First**: do this, then that.\n* Second: wait, e.g. 1,000 s.\n\nThat's *it*!",
    "1. Wash your hands.\n2. Dry them.\n3. Repeat this, and again,\n   often.",
    "- a cat\n- a dog\n- a [bird]",
    "Dear Sir,\n\nI am writing to you, Mr. Smith, about the U.S. visit.\n\nBest,\nJane",
    '"Hello," she said. "I\'m gonna go; NASA said no." She left, and he stayed.',
    "```python\nprint('hi, you')\n```\nThis prints a greeting, as you can see [1]. ******\nDone.",
    "Café crème, naïve façade — “quoted” text… 𝐁𝐨𝐥𝐝 ĸ ǅ. Emoji 😀, and the end of it all is near.",
    "I am a LARGE language model AND I like to SHOUT A LOT, you know. YES.",
    "  Water rises.\r\n\tIt forms clouds, and then it rains on the sea.\n\n\nThe sun returns.  ",
    " ".join(["Plants use the light of the sun, water and air to make their food."] * 30),
]


def seeded_cases(instruction: Task, n: int = 6) -> list[dict[str, object]]:
    rng = random.Random(instruction.id)
    return [instruction.sample_kwargs(rng, rng.choice(ALL_QUERIES)) for _ in range(n)]


# The data


def test_the_catalogue_has_the_promised_instructions_in_three_groups() -> None:
    groups = {group: [i for i in IDS if catalogue[i].group == group] for group in GROUP_SIZES}
    assert {group: len(ids) for group, ids in groups.items()} == GROUP_SIZES
    assert len(IDS) == sum(GROUP_SIZES.values())


@pytest.mark.parametrize("instruction_id", IDS)
def test_each_instruction_has_four_two_and_two_phrasings_and_shares_none(
    instruction_id: str,
) -> None:
    task = catalogue[instruction_id]
    assert [len(task.phrasings_for(split)) for split in SPLITS] == [4, 2, 2]
    everywhere = [text for other in catalogue.values() for text in other.phrasings]
    assert all(everywhere.count(text) == 1 for text in task.phrasings)


@pytest.mark.parametrize("instruction_id", IDS)
def test_each_phrasing_can_be_filled_with_drawn_arguments(instruction_id: str) -> None:
    task = catalogue[instruction_id]
    for kwargs in seeded_cases(task):
        for phrasing in task.phrasings:
            text = task.render(phrasing, kwargs)
            assert text.strip() == text
            assert not re.search(r"\{[a-z_]+\}|None", text)


@pytest.mark.parametrize("instruction_id", [i for i in IDS if catalogue[i].ifeval_id])
def test_drawn_arguments_are_exactly_those_of_the_ifeval_check(instruction_id: str) -> None:
    task = catalogue[instruction_id]
    assert task.ifeval_id is not None
    for kwargs in seeded_cases(task):
        assert set(kwargs) == set(ifeval.required_kwargs(task.ifeval_id))
        assert json.loads(json.dumps(kwargs)) == kwargs


def test_phrasings_state_the_numbers_that_are_checked() -> None:
    at_most = catalogue["length_constraints:number_words_at_most"]
    kwargs = {"relation": "less than", "num_words": 51}
    for phrasing in at_most.phrasings:
        assert re.search(r"\b50\b|(below|under) 51\b", at_most.render(phrasing, kwargs))
    for band in (catalogue[i] for i in IDS if catalogue[i].word_band):
        limits = [str(limit) for limit in band.word_band or () if limit not in (1, None)]
        for phrasing in band.phrasings:
            assert re.findall(r"\d+", band.render(phrasing, {})) == limits


def test_base_queries_are_many_distinct_and_split_in_half_a_quarter_and_a_quarter() -> None:
    texts = {query.text.casefold() for query in ALL_QUERIES}
    assert len(texts) == len(ALL_QUERIES) >= 256
    n_yes_no = sum(query.kind == "yes-no" for query in ALL_QUERIES)
    assert n_yes_no >= 60
    for split, share in zip(SPLITS, (0.5, 0.25, 0.25), strict=True):
        assert len(base_queries(split)) == share * len(ALL_QUERIES)
        for kind in {query.kind for query in ALL_QUERIES}:
            of_kind = [query for query in ALL_QUERIES if query.kind == kind]
            assert sum(query.split == split for query in of_kind) == share * len(of_kind)


def test_keywords_are_three_plain_words_that_the_query_does_not_give_away() -> None:
    for query in ALL_QUERIES:
        assert len(set(query.keywords)) == 3
        for word in query.keywords:
            assert word.isalpha()
            assert word == word.lower()
            assert word not in query.text.lower()
            # The keyword checks look for substrings: no keyword may count for another.
            assert not any(word in other for other in query.keywords if other != word)


def test_no_base_query_asks_for_a_form_itself() -> None:
    form = re.compile(
        r"\b(words?|sentences?|paragraphs?|bullets?|lists?|json|uppercase|lowercase|commas?|"
        r"markdown|brief\w*|concise\w*|in (english|french|german|spanish|italian))\b",
        re.IGNORECASE,
    )
    assert [query.text for query in ALL_QUERIES if form.search(query.text)] == []


def test_unknown_splits_are_refused() -> None:
    for call in (base_queries, catalogue["punctuation:no_comma"].phrasings_for):
        with pytest.raises(UnknownNameError, match="unknown split 'train'"):
            call("train")


# Looking up


def test_an_unknown_id_is_answered_with_its_neighbours() -> None:
    with pytest.raises(UnknownNameError, match=r"did you mean .*'punctuation:no_comma'"):
        catalogue["punctuation:no_coma"]
    assert "punctuation:no_coma" not in catalogue


def test_an_ifeval_id_with_several_variants_names_them() -> None:
    with pytest.raises(UnknownNameError) as caught:
        catalogue["length_constraints:number_words"]
    assert "'length_constraints:number_words_at_most'" in str(caught.value)
    assert "'length_constraints:number_words_at_least'" in str(caught.value)


def test_looking_at_the_catalogue_imports_nothing_heavy() -> None:
    program = (
        "import sys; from steerlens.tasks import catalogue; len(catalogue);"
        "print({'torch', 'nltk', 'lm_eval', 'pandas', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_an_instruction_survives_pickling() -> None:
    task = catalogue["keywords:existence"]
    assert pickle.loads(pickle.dumps(task)) == task
    assert len({task, pickle.loads(pickle.dumps(task))}) == 1


# Wording


def test_the_instruction_follows_the_query_after_a_space_or_on_a_line_of_its_own() -> None:
    task = catalogue["punctuation:no_comma"]
    assert task.instruct("Why?", "No commas.", {}) == "Why? No commas."
    assert task.instruct("Sum up:\ntext", "No commas.", {}) == "Sum up:\ntext\nNo commas."


def test_words_are_quoted_and_frequencies_worded() -> None:
    existence = catalogue["keywords:existence"]
    assert existence.render("Use {words}.", {"keywords": ["sea", "sun", "sky"]}) == (
        'Use "sea", "sun" and "sky".'
    )
    frequency = catalogue["keywords:frequency"]
    kwargs = {"keyword": "sea", "frequency": 2, "relation": "less than"}
    assert frequency.render('"{keyword}" {amount} times', kwargs) == '"sea" fewer than 2 times'


def test_a_phrasing_without_its_value_is_refused() -> None:
    task = catalogue["length_constraints:number_words_at_most"]
    with pytest.raises(SteerlensError, match="needs the value 'limit'"):
        task.render("At most {limit} words.", {})


# Checks


def test_a_variant_fixes_its_arguments_and_refuses_others() -> None:
    task = catalogue["length_constraints:number_words_at_most"]
    assert task.check("one two", num_words=3)
    assert not task.check("one two three", num_words=3)
    with pytest.raises(SteerlensError, match="means relation='less than'"):
        task.check("one two", num_words=3, relation="at least")


def test_the_length_levels_are_bands_without_overlap_or_gap() -> None:
    levels = [task for task in catalogue.values() if task.word_band]
    for n_words in range(1, 400):
        text = " ".join(["word"] * n_words)
        passed = [task.id for task in levels if task.check(text)]
        assert len(passed) == 1
        expected = ["extremely_brief", "brief", "medium", "verbose", "extremely_verbose"][
            sum(n_words > limit for limit in (15, 50, 120, 250))
        ]
        assert passed == [f"length:{expected}"]


def test_the_loose_length_check_forgives_an_opening_line() -> None:
    task = catalogue["length:extremely_brief"]
    response = "Sure, here is the extremely short answer that you asked me for today:\nBlue light."
    assert not task.check(response + " It scatters most.")
    assert task.check(response + " It scatters most.", loose=True)


def test_a_blank_response_passes_no_check() -> None:
    for task in catalogue.values():
        for loose in (False, True):
            assert not task.check(" \n", loose=loose, **seeded_cases(task)[0])


def test_a_length_level_takes_no_arguments() -> None:
    with pytest.raises(SteerlensError, match="takes no arguments"):
        catalogue["length:brief"].check("text", num_words=3)


# Rewrites


@pytest.mark.parametrize("instruction_id", REWRITABLE)
def test_rewrites_of_varied_responses_pass_the_check(instruction_id: str) -> None:
    task = catalogue[instruction_id]
    for response in RESPONSES:
        for kwargs in seeded_cases(task):
            rewritten = task.rewrite(response, **kwargs)
            assert task.check(rewritten, **kwargs), (response, kwargs, rewritten)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(REWRITABLE), st.randoms(use_true_random=False), st.integers(2, 6))
def test_rewrites_of_any_run_of_sentences_pass_the_check(
    instruction_id: str, rng: random.Random, n_sentences: int
) -> None:
    task = catalogue[instruction_id]
    sentences = [" ".join(response.split()) for response in RESPONSES[3:9]]
    response = rng.choice((" ", "\n", "\n\n")).join(rng.choices(sentences, k=n_sentences))
    kwargs = task.sample_kwargs(rng, rng.choice(ALL_QUERIES))
    assert task.check(task.rewrite(response, **kwargs), **kwargs)


@pytest.mark.parametrize("instruction_id", REWRITABLE)
def test_a_compliant_response_is_left_as_it_is(instruction_id: str) -> None:
    task = catalogue[instruction_id]
    kwargs = seeded_cases(task)[0]
    once = task.rewrite(RESPONSES[3], **kwargs)
    assert task.rewrite(once, **kwargs) == once


CONTENT_KEPT = sorted(
    set(REWRITABLE)
    - {
        "length_constraints:number_sentences_at_most",
        "length_constraints:number_words_at_most",
        "length:extremely_brief",
        "keywords:forbidden_words",
    }
)


@pytest.mark.parametrize("instruction_id", CONTENT_KEPT)
def test_a_rewrite_keeps_every_word_in_order(instruction_id: str) -> None:
    # given: words of the response, without case, markup or punctuation
    task = catalogue[instruction_id]
    response = RESPONSES[3] + " It looks violet at dusk, and red at dawn."
    words = re.findall(r"\w+", response.lower())

    # when
    rewritten = task.rewrite(response, **seeded_cases(task)[0])

    # then: the words appear in this order, perhaps with others in between
    remaining = iter(re.findall(r"\w+", rewritten.lower()))
    assert all(word in remaining for word in words)


@pytest.mark.parametrize(
    ("instruction_id", "kwargs", "response", "expected"),
    [
        ("punctuation:no_comma", {}, "Yes, 1,000 cats,dogs.", "Yes 1000 cats dogs."),
        ("startend:quotation", {}, ' He said "no". ', "\"He said 'no'.\""),
        ("detectable_format:title", {}, "It's the sea.", "<<It's The Sea>>\n\nIt's the sea."),
        (
            "detectable_format:number_bullet_lists",
            {"num_bullets": 2},
            "1. Stop.\n2. Look around.\n3. Go.",
            "* Stop. Look around.\n* Go.",
        ),
        (
            "detectable_content:postscript",
            {"postscript_marker": "P.P.S"},
            "It rains. Take a coat.",
            "It rains.\n\nP.P.S Take a coat.",
        ),
        (
            "combination:two_responses",
            {},
            "It rains. Take a coat.",
            "It rains.\n\n******\n\nTake a coat.",
        ),
        (
            "detectable_format:constrained_response",
            {},
            "No, it does not.",
            "My answer is no. No, it does not.",
        ),
        (
            "length_constraints:number_words_at_most",
            {"num_words": 6},
            "It rains today. Take a coat with you.",
            "It rains today.",
        ),
        (
            "length_constraints:number_words_at_most",
            {"num_words": 3},
            "It rains today. Take a coat with you.",
            "It rains.",
        ),
        (
            "length_constraints:number_sentences_at_most",
            {"num_sentences": 3},
            "It rains. Take a coat! Or stay? Here.",
            "It rains. Take a coat!",
        ),
        (
            "keywords:forbidden_words",
            {"forbidden_words": ["rain", "this"]},
            "Rain and rainbows: this is rain.",
            "it and rainbows: it is it.",
        ),
        (
            "keywords:frequency",
            {"keyword": "sea", "frequency": 2, "relation": "less than"},
            "The sea, the Sea, the sea.",
            "The sea, the this, the this.",
        ),
        (
            "change_case:capital_word_frequency",
            {"capital_frequency": 1, "capital_relation": "less than"},
            "Ann and I like NASA.",
            "Ann and i like nasa.",
        ),
    ],
)
def test_rewrites_read_as_expected(
    instruction_id: str, kwargs: dict[str, object], response: str, expected: str
) -> None:
    assert catalogue[instruction_id].rewrite(response, **kwargs) == expected


def test_a_json_rewrite_carries_the_response_as_a_field() -> None:
    response = 'Say "hi",\nnaïve one.'
    assert json.loads(catalogue["detectable_format:json_format"].rewrite(response)) == {
        "response": response
    }


def test_there_is_no_rewrite_where_content_would_have_to_be_invented() -> None:
    without = {i for i in IDS if not catalogue[i].has_rewrite}
    assert without == {
        *(f"language:response_language_{code}" for code in ("de", "fr", "es", "it")),
        "length_constraints:number_sentences_at_least",
        "length_constraints:number_words_at_least",
        *(f"length:{level}" for level in ("brief", "medium", "verbose", "extremely_verbose")),
    }
    with pytest.raises(SteerlensError, match="has no rewrite"):
        catalogue["length:verbose"].rewrite("text")


def test_a_blank_or_hopeless_response_is_refused() -> None:
    with pytest.raises(SteerlensError, match="blank response"):
        catalogue["punctuation:no_comma"].rewrite(" \n")
    chinese = "天空之所以是蓝色的，是因为空气散射了阳光中的蓝光。" * 5
    with pytest.raises(SteerlensError, match="cannot be made to follow"):
        catalogue["change_case:english_lowercase"].rewrite(chinese)


def test_public_functions_are_documented() -> None:
    public = [
        method
        for name, method in inspect.getmembers(Task)
        if name[0] in string.ascii_lowercase and callable(method)
    ]
    assert all(inspect.getdoc(method) for method in public)
