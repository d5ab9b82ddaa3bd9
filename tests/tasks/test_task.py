"""A task of one's own: its texts are divided, its check is asked, its definition is hashed."""

import functools
import random
import subprocess
import sys

import pytest

from steerlens.errors import PairsError, SteerlensError, UnknownNameError
from steerlens.tasks import SPLITS, Task, base_queries, catalogue
from steerlens.tasks.drawing import contrast_pairs
from steerlens.tasks.pairs import ContrastSet
from steerlens.tasks.splits import divide

PHRASINGS = [f"Answer as person number {n} would." for n in range(8)]
WORDS = ("tea", "rain", "snow", "bread", "light", "glass", "moss", "chalk")
QUERIES = [f"What is {word}?" for word in WORDS]


def arr(response: str) -> bool:
    return "arr" in response.lower()


def pirate(**changes) -> Task:
    return Task(**({"id": "pirate", "phrasings": PHRASINGS, "check": arr} | changes))


def test_phrasings_and_queries_are_divided_and_no_text_is_in_two_splits():
    task = pirate(queries=QUERIES)
    phrasings = [text for split in SPLITS for text in task.phrasings_for(split)]
    queries = [query.text for split in SPLITS for query in task.queries(split)]
    assert sorted(phrasings) == sorted(PHRASINGS)
    assert sorted(queries) == sorted(QUERIES)
    assert [len(task.phrasings_for(split)) for split in SPLITS] == [4, 2, 2]


def test_the_division_does_not_depend_on_the_order_of_the_texts():
    shuffled = random.Random(1).sample(QUERIES, len(QUERIES))
    first, second = divide(QUERIES), divide(shuffled)
    for split in SPLITS:
        assert {QUERIES[i] for i in first[split]} == {shuffled[i] for i in second[split]}


def test_near_duplicates_are_never_divided():
    texts = [*QUERIES, *(f"{query.lower()}!" for query in QUERIES)]
    parts = divide(texts)
    for i in range(len(QUERIES)):
        assert any({i, i + len(QUERIES)} <= set(parts[split]) for split in SPLITS)


def test_without_queries_of_its_own_a_task_has_the_packages():
    task = pirate()
    assert [task.queries(split) for split in SPLITS] == [base_queries(split) for split in SPLITS]


def test_pairs_are_a_query_with_and_without_a_phrasing_of_the_same_split():
    task = pirate(queries=QUERIES)
    for split in SPLITS:
        for pair in contrast_pairs(task, n=task.n_pairs(split), split=split):
            assert pair.uninstructed in {query.text for query in task.queries(split)}
            assert pair.instructed == f"{pair.uninstructed} {pair.phrasing}"
            assert pair.phrasing in task.phrasings_for(split)


def test_arguments_are_drawn_into_the_phrasing_and_go_to_the_check():
    task = Task(
        "word",
        [f"Use the word {{word}} {n} times." for n in ["once", "twice", "thrice", "often"]],
        check=lambda text, word: word in text,
        arguments={"word": ["sea", "light"]},
    )
    pairs = contrast_pairs(task, n=16)
    assert {pair.kwargs["word"] for pair in pairs} == {"sea", "light"}
    assert all(pair.kwargs["word"] in pair.instructed for pair in pairs)
    assert task.check("the sea", word="sea")
    assert not task.check("the sea", word="light")
    assert task.wording({"word": "sea"}) == {"word": "sea"}


@pytest.mark.parametrize(("returned", "score", "passes"), [
    (True, 1.0, True), (False, 0.0, False), (0.5, 0.5, True), (0.49, 0.49, False), (1, 1.0, True),
])  # fmt: skip
def test_a_check_returns_a_truth_value_or_a_score_that_passes_from_one_half(
    returned, score, passes
):
    task = pirate(check=lambda text: returned)
    assert task.score("x") == score
    assert task.check("x") is passes


@pytest.mark.parametrize("returned", [None, "yes", 1.5, -0.1, float("nan"), [True]])
def test_a_check_that_returns_anything_else_is_an_error_that_names_it(returned):
    with pytest.raises(SteerlensError, match=r"task 'pirate' returned .*truth value or a score"):
        pirate(check=lambda text: returned).score("x")


def test_a_check_that_raises_is_an_error_with_the_response():
    with pytest.raises(SteerlensError, match=r"'pirate' raised ZeroDivisionError.*'x'"):
        pirate(check=lambda text: 1 / 0).score("x")


def test_a_blank_response_never_passes():
    assert pirate(check=lambda text: True).score(" \n") == 0


def test_a_rewrite_is_checked():
    task = pirate(rewrite=lambda text: f"Arr! {text}")
    assert task.rewrite("Hello.") == "Arr! Hello."
    assert task.rewrite("Harr.") == "Harr."
    with pytest.raises(SteerlensError, match="cannot be made to follow 'pirate'"):
        pirate(rewrite=lambda text: text).rewrite("Hello.")
    with pytest.raises(SteerlensError, match="has no rewrite"):
        pirate().rewrite("Hello.")


def test_too_few_phrasings_are_used_in_every_split_and_this_is_said():
    task = pirate(phrasings=["Answer like a pirate."])
    assert all(task.phrasings_for(split) == ("Answer like a pirate.",) for split in SPLITS)
    assert "too few phrasings to keep any back" in task.notices[0]


def test_too_few_queries_leave_splits_empty_and_this_is_said():
    task = pirate(queries=QUERIES[:2], phrasings=["Answer like a pirate."])
    assert any("'report' split" in notice for notice in task.notices)
    with pytest.raises(PairsError, match="'report' split of 'pirate'"):
        contrast_pairs(task, n=2, split="report")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"id": " "}, "short name"),
        ({"phrasings": []}, "at least one phrasing"),
        ({"phrasings": "Answer."}, "a list of texts"),
        ({"phrasings": ["a", "a"]}, "given twice"),
        ({"phrasings": ["a", ""]}, "phrasing 2 must be a text"),
        ({"queries": []}, "at least one query"),
    ],
)
def test_what_makes_no_task_is_refused_in_a_sentence(changes, sentence):
    with pytest.raises(SteerlensError, match=sentence):
        pirate(**changes)


def test_the_hash_changes_with_every_part_of_the_definition_and_with_nothing_else():
    task = pirate()
    assert task.hash == pirate(description="Other words for it.").hash
    changed = [
        pirate(id="other"),
        pirate(phrasings=PHRASINGS[1:]),
        pirate(queries=QUERIES),
        pirate(check=lambda text: "ahoy" in text),
        pirate(rewrite=lambda text: f"Arr! {text}"),
    ]
    assert len({task.hash, *(other.hash for other in changed)}) == 6


def holds(word: str):
    return lambda text: word in text


class Holds:
    def __init__(self, word: str) -> None:
        self.word = word

    def __call__(self, text: str) -> bool:
        return self.word in text


def test_what_a_function_holds_is_part_of_the_definition():
    def contains(text: str, word: str) -> bool:
        return word in text

    for make in (holds, Holds, lambda word: functools.partial(contains, word=word)):
        assert pirate(check=make("a")).hash == pirate(check=make("a")).hash
        assert pirate(check=make("a")).hash != pirate(check=make("b")).hash


def test_a_check_that_calls_or_holds_itself_has_a_hash():
    def depth(text: str) -> int:
        return 1 + depth(text[1:]) if text else 0

    class Holder:
        def __init__(self) -> None:
            self.check = self.passes

        def passes(self, text: str) -> bool:
            return depth(text) > 3

    assert pirate(check=lambda text: depth(text) > 3).hash.startswith("sha256:")
    assert pirate(check=Holder().check).hash == pirate(check=Holder().check).hash


def test_the_hash_is_the_same_in_another_process():
    program = (
        "import functools; from steerlens.tasks import Task, catalogue\n"
        "def f(text, word): return any(word in part for part in text.split())\n"
        "print(Task('a', ['b'], check=functools.partial(f, word='c')).hash)\n"
        "print(catalogue['detectable_format:title'].hash)"
    )
    done = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert done[0].stdout == done[1].stdout


def test_an_id_that_would_leave_a_folder_is_refused():
    for name in ("../x", "a/b", "a\\b"):
        with pytest.raises(SteerlensError, match="names files"):
            pirate(id=name)


def test_a_task_from_pairs_draws_them_by_split():
    pairs = ContrastSet.from_prompts([f"{query} Arr." for query in QUERIES], QUERIES)
    task = Task.from_pairs(pairs, id="arr")
    drawn = {split: contrast_pairs(task, task.n_pairs(split), split=split) for split in SPLITS}
    assert sorted(pair.uninstructed for some in drawn.values() for pair in some) == sorted(QUERIES)
    assert not task.has_check
    with pytest.raises(SteerlensError, match="has no check"):
        task.check("x")


def test_an_unknown_split_is_named():
    with pytest.raises(UnknownNameError, match="did you mean 'report'"):
        pirate().queries("reports")


def test_every_instruction_of_the_catalogue_is_a_task():
    assert all(isinstance(task, Task) and task.has_check for task in catalogue.values())
    assert len({task.hash for task in catalogue.values()}) == len(catalogue)
