"""Reading IFEval-shaped files: what is kept, what is refused, and how it is said."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from steerlens.behaviour.evaluation import run as run_module
from steerlens.behaviour.evaluation.prompts import EvaluationPrompt, read_prompts
from steerlens.errors import FileFormatError, SteerlensError, UnknownNameError
from steerlens.models.loading import tokenize_prompts

ROW: dict[str, Any] = {
    "key": 1001,
    "prompt": "Plan a trip. Use no commas. Write 20 words at most.",
    "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
    "kwargs": [
        {"relation": None, "num_words": None},
        {"relation": "less than", "num_words": 21, "keywords": None},
    ],
    "prompt_without_instruction": "Plan a trip.",
    "instruction_id_list_for_eval": ["ignored"],
}


def write(path: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_row_is_read_as_ifeval_reads_it(tmp_path: Path) -> None:
    # given: nulls as IFEval's rows have them, blank lines, a line separator inside a text
    other = {**ROW, "key": "b", "prompt": "One\u2028two", "prompt_without_instruction": None}
    file = write(tmp_path / "rows.jsonl", ROW, "", other)
    # when
    found = read_prompts(file)
    # then
    assert found.prompts == (
        EvaluationPrompt(
            key=1001,
            prompt=ROW["prompt"],
            prompt_without_instruction="Plan a trip.",
            instruction_ids=("punctuation:no_comma", "length_constraints:number_words"),
            kwargs=({}, {"relation": "less than", "num_words": 21}),
            line=1,
            row="1001",
        ),
        EvaluationPrompt(
            key="b",
            prompt="One\u2028two",
            prompt_without_instruction=None,
            instruction_ids=("punctuation:no_comma", "length_constraints:number_words"),
            kwargs=({}, {"relation": "less than", "num_words": 21}),
            line=3,
            row="b",
        ),
    )
    assert found.data_hash == f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    assert found.left_out == {}


def test_ids_of_the_catalogue_are_read_too(tmp_path: Path) -> None:
    row = {**ROW, "instruction_id_list": ["length:brief"], "kwargs": [{}]}
    assert read_prompts(write(tmp_path / "a", row)).prompts[0].instruction_ids == ("length:brief",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": None}, "line 2, field 'prompt': is missing"),
        ({"key": None}, "line 2, field 'key': is missing"),
        ({"key": 1.5}, "line 2, field 'key': must be a number or a text"),
        ({"key": True}, "line 2, field 'key': must be a number or a text"),
        ({"prompt": 3}, "line 2, field 'prompt': must be a text"),
        ({"prompt": "  "}, "line 2, field 'prompt': must be a text that is not blank"),
        ({"prompt": "half \ud800"}, "line 2, field 'prompt': holds half a character"),
        (
            {"prompt_without_instruction": ""},
            "line 2, field 'prompt_without_instruction': must be a text",
        ),
        ({"instruction_id_list": []}, "line 2, field 'instruction_id_list': must be a list of ids"),
        ({"instruction_id_list": "a:b"}, "line 2, field 'instruction_id_list': must be a list"),
        ({"instruction_id_list": [1, 2]}, "line 2, field 'instruction_id_list': must be a list"),
        ({"kwargs": {}}, "line 2, field 'kwargs': must be a list of objects"),
        ({"kwargs": [{}, None]}, "line 2, field 'kwargs': must be a list of objects"),
        ({"kwargs": [{}]}, "line 2, field 'kwargs': has 1 objects for 2 instructions"),
        ({"kwargs": [{}, {}]}, "line 2, field 'kwargs': .* lacks the argument"),
        (
            {"kwargs": [{}, {"relation": "more than", "num_words": 3}]},
            "line 2, field 'kwargs': .* cannot use the arguments",
        ),
        (
            {"kwargs": [{"num_words": 3}, {"relation": "less than", "num_words": 3}]},
            "line 2, field 'kwargs': .* does not know the argument 'num_words'",
        ),
    ],
)
def test_a_malformed_row_is_named_by_file_line_and_field(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    file = tmp_path / "rows.jsonl"
    lines = [json.dumps(ROW), json.dumps({**ROW, "key": 7, **change})]
    file.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(FileFormatError, match=message) as caught:
        read_prompts(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no prompt"),
        (b"\n \n", "holds no prompt"),
        (b'{"key": 1,', "line 1: not a JSON object"),
        (b'["key"]', "line 1: list is not a JSON object"),
        (b"[" * 100_000, "line 1: not a JSON object"),
        (b'{"key": "\xff"}', "line 1: not UTF-8"),
        (b"PK\x03\x04\x00\xff\xfe", "line 1: not UTF-8"),
    ],
)
def test_a_file_that_is_not_jsonl_gets_a_sentence(
    tmp_path: Path, content: bytes, message: str
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    with pytest.raises(FileFormatError, match=message):
        read_prompts(file)


def test_a_missing_file_and_a_folder_get_a_sentence(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(FileFormatError, match="cannot be read"):
            read_prompts(path)


def test_unknown_instructions_are_all_listed(tmp_path: Path) -> None:
    file = write(
        tmp_path / "rows.jsonl",
        ROW,
        {**ROW, "key": 2, "instruction_id_list": ["x:y", "punctuation:no_comma"]},
        {**ROW, "key": 3, "instruction_id_list": ["x:y", "a:b"]},
    )
    with pytest.raises(
        UnknownNameError, match=r"'a:b' \(1 row\), 'x:y' \(2 rows\); .* --skip-unknown"
    ):
        read_prompts(file)


def test_rows_with_unknown_instructions_are_left_out_on_request_and_reported(
    tmp_path: Path,
) -> None:
    unknown = {**ROW, "key": 2, "instruction_id_list": ["x:y", "punctuation:no_comma"]}
    found = read_prompts(write(tmp_path / "rows.jsonl", unknown, ROW), skip_unknown=True)
    assert [prompt.line for prompt in found.prompts] == [2]
    assert found.left_out == {"x:y": 1}
    with pytest.raises(FileFormatError, match="no row left"):
        read_prompts(write(tmp_path / "other.jsonl", unknown), skip_unknown=True)


def test_a_malformed_row_is_refused_even_when_unknown_ones_are_left_out(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", ROW, {**ROW, "key": 2, "kwargs": []})
    with pytest.raises(FileFormatError, match="line 2, field 'kwargs'"):
        read_prompts(file, skip_unknown=True)


def test_rows_that_share_a_key_are_told_apart(tmp_path: Path) -> None:
    # given: one prompt made into several, and a key that looks like the name of the second
    file = write(
        tmp_path / "rows.jsonl",
        {**ROW, "key": 5, "prompt": "with waste"},
        {**ROW, "key": "5#2", "prompt": "another"},
        {**ROW, "key": 5, "prompt": "with material"},
        {**ROW, "key": 5, "prompt": "with meal"},
    )
    found = read_prompts(file).prompts
    assert [prompt.key for prompt in found] == [5, "5#2", 5, 5]
    assert [prompt.row for prompt in found] == ["5", "5#2", "5#3", "5#4"]


def test_the_same_row_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", ROW, {**ROW, "key": 2}, {**ROW, "key": "1001"})
    with pytest.raises(FileFormatError, match=r"line 3, field 'key': '1001' repeats .* line 1"):
        read_prompts(file)


def prompt_with(**changes: Any) -> EvaluationPrompt:
    given: dict[str, Any] = {
        "key": "a",
        "prompt": "Plan a trip. Use no commas.",
        "prompt_without_instruction": "Plan a trip.",
        "instruction_ids": ("punctuation:no_comma",),
        "kwargs": ({},),
    }
    return EvaluationPrompt(**{**given, **changes})


BAD = [
    ({"instruction_ids": ("x:y",)}, r"not known: 'x:y' \(1 row\)"),
    (
        {"instruction_ids": ("length_constraints:number_words",)},
        "prompt 'b': the check 'length_constraints:number_words' lacks the argument",
    ),
    ({"kwargs": ({"colour": 1},)}, "prompt 'b': .*does not know the argument 'colour'"),
    ({"kwargs": ()}, "prompt 'b': each instruction needs its arguments"),
    ({"prompt": " "}, "prompt 'b' has a text that is blank"),
    ({"prompt_without_instruction": ""}, "prompt 'b' has a text that is blank"),
    ({"key": "a"}, "prompt 'a' comes twice"),
    ({"prompt": "Rome " * 60}, "row 'b': "),
]


@pytest.mark.parametrize(("change", "sentence"), BAD)
def test_what_cannot_be_scored_is_refused_before_anything_is_answered_or_written(
    change: dict[str, Any], sentence: str, tiny_model: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(run_module, "answering", None)  # nothing could be answered
    prompts = [prompt_with(), prompt_with(**{"key": "b", **change})]
    with pytest.raises(SteerlensError, match=sentence):
        run_module.evaluate(tiny_model, prompts, tmp_path / "e", show_progress=False)
    assert list(tmp_path.iterdir()) == []


def test_prompts_no_check_knows_are_left_out_and_counted_where_asked(
    tiny_model: Any, tmp_path: Path
) -> None:
    prompts = [prompt_with(), prompt_with(key="b", instruction_ids=("x:y",))]
    settings = run_module.EvaluationSettings(max_new_tokens=2, skip_unknown=True)
    found = run_module.evaluate(
        tiny_model, prompts, tmp_path / "e", settings=settings, show_progress=False
    )
    assert found.summary["data"]["left_out"] == {"x:y": 1}
    assert {row["row"] for row in found.responses} == {"a"}


def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused_first(
    tiny_model: Any, tmp_path: Path
) -> None:
    # given a prompt of exactly as many tokens as the context holds; bytes are tokens
    text = "x" * (128 - len(tokenize_prompts(tiny_model, ["x"])[0]) + 1)
    assert len(tokenize_prompts(tiny_model, [text])[0]) == 128
    for change in ({"prompt": text}, {"prompt_without_instruction": text}):
        prompts = [prompt_with(), prompt_with(**{"key": "b", **change})]
        with pytest.raises(SteerlensError, match="prompt 'b' fills the model's context of 128"):
            run_module.evaluate(tiny_model, prompts, tmp_path / "e", show_progress=False)
        assert list(tmp_path.iterdir()) == []
