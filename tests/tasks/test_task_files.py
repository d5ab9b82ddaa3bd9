"""Task files: checks written in YAML, and one sentence for every fault."""

import json
from pathlib import Path

import pytest

from steerlens.cli.main import main
from steerlens.errors import FileFormatError, SteerlensError, UnknownNameError
from steerlens.tasks import catalogue
from steerlens.tasks.task_files import load_task
from steerlens.tasks.written_checks import check_from

EXAMPLES = Path(__file__).parent
while not (EXAMPLES / "examples").exists():
    EXAMPLES = EXAMPLES.parent
EXAMPLES /= "examples"
TASK = "id: pirate\nphrasings: [Talk like a pirate., Be a pirate., Use pirate speech.]\n"


@pytest.fixture
def written(tmp_path):
    def write(text: str, name: str = "pirate.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    ("spec", "passing", "failing"),
    [
        ({"contains": "Arr"}, "harr!", "ahoy"),
        ({"contains": ["arr", "ye"]}, "Arr, ye!", "arr"),
        ({"regex": r"\bye\b"}, "ye", "yes"),
        ({"ifeval": "punctuation:no_comma"}, "one two", "one, two"),
        ({"ifeval": "keywords:existence", "keywords": ["sea"]}, "the sea", "the lake"),
        ({"python": "operator:truth"}, "x", ""),
        ({"not": {"contains": "no"}}, "yes", "no"),
        ({"all": [{"contains": "a"}, {"not": {"contains": "b"}}]}, "a", "ab"),
        ({"any": [{"contains": "a"}, {"contains": "b"}]}, "b", "c"),
    ],
)
def test_a_written_check_passes_what_it_says(spec, passing, failing):
    check = check_from(spec)
    assert float(check(passing)) == 1
    assert float(check(failing)) == 0


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("arr", "must be a mapping with one of contains, regex"),
        ({}, "must be a mapping"),
        ({"contain": "arr"}, "did you mean 'contains'"),
        ({"contains": ""}, "needs a text or texts"),
        ({"regex": "("}, "is not a regular expression"),
        ({"contains": "a", "regex": "b"}, "combine checks with 'all' or 'any'"),
        ({"any": []}, "needs a list of checks"),
        ({"ifeval": "punctuation:no_coma"}, "did you mean 'punctuation:no_comma'"),
        ({"ifeval": "keywords:existence"}, "needs the argument 'keywords'"),
        ({"python": "operator"}, "needs 'module:function'"),
        ({"python": "no_such_module:check"}, "cannot be imported"),
        ({"python": "operator:truthy"}, "did you mean 'truth'"),
        ({"judge": {"model": "m"}}, "needs a model and a question"),
        ({"all": [{"contains": "a"}, {"regexp": "b"}]}, r"all\[1\].*did you mean 'regex'"),
    ],
)
def test_a_faulty_check_is_one_sentence(spec, sentence):
    with pytest.raises(SteerlensError, match=sentence):
        check_from(spec)


def test_a_task_file_makes_the_task_it_describes(written):
    text = TASK + "check: {contains: arr}\nsamples: [Arr!]\nqueries: ['Why?', 'How?', 'Who?']\n"
    task = load_task(written(text))
    assert (task.id, len(task.phrasings), task.samples) == ("pirate", 3, ("Arr!",))
    assert task.check("Arr!")
    assert not task.check("Hello.")
    assert task.definition["check"] == {"contains": "arr"}


def test_the_name_of_the_file_is_the_id_if_none_is_given(written):
    assert load_task(written("phrasings: [Talk like a pirate.]")).id == "pirate"


def test_an_id_is_a_task_of_the_catalogue_and_a_task_is_itself():
    title = catalogue["detectable_format:title"]
    assert load_task("detectable_format:title") is title
    assert load_task(title) is title
    with pytest.raises(UnknownNameError, match="did you mean 'detectable_format:title'"):
        load_task("detectable_format:titel")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("phrasing: [a]", "did you mean 'phrasings'"),
        ("id: pirate", "exactly one of phrasings, pairs, choices, but has none"),
        (TASK + "pairs: x.jsonl", "but has phrasings and pairs"),
        ("[a, b]", "must hold a mapping"),
        ("phrasings: [a", r"line 1: not YAML"),
        ("phrasings: !!python/object/apply:os.system [ls]", "tag that is not allowed"),
        (TASK + "check: {contain: a}", "pirate.yaml: .*did you mean 'contains'"),
        (TASK + "arguments: {word: sea}", "a list of values for each name"),
        (TASK + "samples: Arr", "'samples' must be a list of texts"),
        ("pairs: missing.jsonl", "missing.jsonl cannot be read"),
        ("choices: missing.jsonl", "missing.jsonl cannot be read"),
        ("pairs: missing.jsonl\nqueries: [a]", "'queries' goes with phrasings"),
        ("phrasings: [a, a]", "was given twice"),
    ],
)
def test_a_faulty_task_file_is_one_sentence_with_its_name(written, text, sentence):
    with pytest.raises(SteerlensError, match=sentence):
        load_task(written(text))


def test_another_file_is_refused(written, tmp_path):
    with pytest.raises(FileFormatError, match=r"ends in \.yaml, \.jsonl or \.csv"):
        load_task(written("x", "pirate.txt"))
    with pytest.raises(FileFormatError, match="cannot be read"):
        load_task(tmp_path / "none.yaml")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_makes_a_task_whose_splits_are_filled(path, capsys):
    assert main(["tasks", "--check", str(path), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert all(sizes["pairs"] >= 2 for sizes in record["splits"].values())
    assert record["example"]


def test_a_file_of_records_is_a_task_of_pairs_or_of_choices():
    assert load_task(EXAMPLES / "refusal.jsonl").group == "pairs"
    assert load_task(EXAMPLES / "cheerful-reviews.jsonl").group == "choices"


def test_the_command_says_what_a_task_lacks(written, capsys):
    assert main(["tasks", "--check", str(written("phrasings: [Talk like a pirate.]"))]) == 0
    out = capsys.readouterr().out
    assert "too few phrasings to keep any back" in out
    assert "no check" in out
    assert main(["tasks", "--check", str(written("phrasing: [a]"))]) == 2
    assert "did you mean 'phrasings'" in capsys.readouterr().err
