"""Fields that people write: misspelt ones are refused with their line, foreign ones are told of."""

import json
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steerlens.behaviour.evaluation import read_prompts
from steerlens.behaviour.evaluation.prompts import FOREIGN
from steerlens.errors import FileFormatError, PairsError, SteerlensWarning
from steerlens.files.fields import Foreign, misspelt_field
from steerlens.tasks.pairs import OPTIONAL, ContrastSet

PAIR = {"instructed": "Why? No commas.", "uninstructed": "Why?"}
ROW = {
    "key": 1,
    "prompt": "Plan. Use no commas.",
    "instruction_id_list": ["punctuation:no_comma"],
    "kwargs": [{}],
}


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


@st.composite
def misspellings(draw, names=OPTIONAL):
    """An optional field with one slip of the keyboard, and the field."""
    name = draw(st.sampled_from(names))
    place = draw(st.integers(0, len(name) - 2))
    before, one, two, after = name[:place], name[place], name[place + 1], name[place + 2 :]
    slips = [before + two + after, before + one + one + two + after, before + two + one + after]
    slips += [before + "x" + two + after, name.upper(), name.replace("_", "-"), name + "s"]
    return draw(st.sampled_from([slip for slip in slips if slip != name] or [name + "s"])), name


@given(misspellings())
def test_every_slip_in_an_optional_field_is_seen(slip):
    written, meant = slip
    found = misspelt_field({**PAIR, written: "a"}, ("instructed", "uninstructed", *OPTIONAL))
    assert found is not None
    assert found[0] == written
    assert meant in found[1]


@given(st.sets(st.sampled_from(OPTIONAL)))
def test_fields_that_are_right_are_never_taken_for_others(names):
    record = PAIR | dict.fromkeys(names, "a")
    assert misspelt_field(record, ("instructed", "uninstructed", *OPTIONAL)) is None


def test_a_misspelt_field_of_a_pairs_file_is_refused_with_its_line(tmp_path):
    path = write(tmp_path / "pairs.jsonl", [PAIR, {**PAIR, "instructed_reponse": "No."}])
    with pytest.raises(PairsError) as refused:
        ContrastSet.from_jsonl(path)
    assert str(refused.value).startswith(
        f"{path}, line 2: unknown field 'instructed_reponse'; did you mean 'instructed_response'"
    )


def test_and_of_a_table_and_of_a_dataset(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("instructed,uninstructed,Base-Query\na b,a,a\nc d,c,c\n", encoding="utf-8")
    with pytest.raises(
        PairsError, match="line 2: unknown field 'Base-Query'; did you mean 'base_q"
    ):
        ContrastSet.from_csv(path)
    with pytest.raises(PairsError, match="row 1: unknown field 'phrasings'; did you mean 'phrasin"):
        ContrastSet.from_dataset([{**PAIR, "phrasings": "a"}])


def test_a_comma_that_cuts_a_prompt_of_a_table_is_refused(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("instructed,uninstructed\na, b,a\nc d,c\n", encoding="utf-8")
    with pytest.raises(PairsError, match="line 2: more cells than the header has columns"):
        ContrastSet.from_csv(path)


def test_a_misspelt_field_of_an_evaluation_file_is_refused_with_its_line(tmp_path):
    rows = [ROW, {**ROW, "key": 2, "prompt_without_instructions": "Plan."}]
    with pytest.raises(FileFormatError, match="line 2: unknown field 'prompt_without_instructions"):
        read_prompts(write(tmp_path / "prompts.jsonl", rows))


def test_foreign_fields_are_told_of_once_a_file(tmp_path):
    rows = [{**PAIR, "source": "a", "id": 1}, {"instructed": "b c", "uninstructed": "b", "id": 2}]
    with pytest.warns(
        SteerlensWarning, match=r"pairs.jsonl has .* ignored: 'source', 'id'"
    ) as told:
        pairs = ContrastSet.from_jsonl(write(tmp_path / "pairs.jsonl", rows))
    assert len(told) == 1
    assert len(pairs) == 2


def test_fields_of_files_made_of_ifeval_are_known(tmp_path):
    row = {**ROW, "prompt_without_instruction": "Plan.", **dict.fromkeys(FOREIGN, "a")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        file = read_prompts(write(tmp_path / "prompts.jsonl", [row]))
    assert file.prompts[0].prompt_without_instruction == "Plan."


def test_a_field_close_to_one_that_is_there_is_another_field():
    fields = Foreign(("key", "prompt"))
    fields.check({"key": 1, "prompt": "a", "prompt_id": 3}, "line 1", FileFormatError)
    assert list(fields.ignored) == ["prompt_id"]
