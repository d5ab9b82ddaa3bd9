"""Contrast pairs: drawn deterministically, read back as written, refused with row and field."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steerlens.errors import PairsError, SteerlensError, UnknownNameError
from steerlens.tasks import SPLITS, base_queries, catalogue
from steerlens.tasks.drawing import contrast_pairs
from steerlens.tasks.pairs import ContrastPair, ContrastSet

IDS = list(catalogue)
TWO = [{"instructed": "a, loudly", "uninstructed": "a"}, {"instructed": "b!", "uninstructed": "b"}]

PINNED = [
    "What do you think about graffiti? Keep your answer to 60 words or fewer.",
    "What is the Odyssey about? Please do not go over 80 words.",
]

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda t: t.strip())
pairs_strategy = st.builds(
    ContrastPair,
    instructed=texts,
    uninstructed=texts,
    base_query=st.just("") | texts,
    phrasing=st.none() | texts,
    kwargs=st.dictionaries(texts, st.integers() | texts | st.lists(texts), max_size=3),
    instructed_response=st.none() | st.text(st.characters(exclude_categories=["Cs"])),
)


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


# Drawing from the catalogue


@settings(deadline=None, max_examples=40)
# The smallest split holds 40 pairs; the test draws five more than n.
@given(st.sampled_from(IDS), st.integers(2, 35), st.integers(), st.sampled_from(SPLITS))
def test_drawing_is_deterministic_and_a_smaller_set_is_a_prefix(
    instruction_id: str, n: int, seed: int, split: str
) -> None:
    larger = contrast_pairs(instruction_id, n=n + 5, seed=seed, split=split)
    again = contrast_pairs(catalogue[instruction_id], n=n, seed=seed, split=split)
    assert larger[:n] == again
    assert larger[:n].data_hash == again.data_hash


def test_drawing_gives_the_same_pairs_on_every_machine_and_in_every_process() -> None:
    # Pinned: a change here means that published vectors can no longer be reproduced.
    pairs = contrast_pairs("length_constraints:number_words_at_most", n=2, seed=0)
    assert [pair.instructed for pair in pairs] == PINNED


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(IDS), st.integers(0, 10**6), st.sampled_from(SPLITS))
def test_queries_and_phrasings_come_from_the_split(
    instruction_id: str, seed: int, split: str
) -> None:
    task = catalogue[instruction_id]
    queries = {query.text: query for query in base_queries(split)}
    for pair in contrast_pairs(task, n=30, seed=seed, split=split):
        assert pair.phrasing in task.phrasings_for(split)
        assert pair.uninstructed == pair.base_query
        assert pair.instructed == task.instruct(pair.base_query, pair.phrasing, pair.kwargs)
        if task.query_kinds is not None:
            assert queries[pair.base_query].kind in task.query_kinds
        else:
            assert pair.base_query in queries


def test_each_query_is_used_once_before_one_returns_with_another_phrasing() -> None:
    n_queries = len(base_queries("select"))
    pairs = contrast_pairs("punctuation:no_comma", n=2 * n_queries, seed=1, split="select")
    assert len({pair.base_query for pair in pairs[:n_queries]}) == n_queries
    assert set(Counter(pair.base_query for pair in pairs).values()) == {2}
    assert len({(pair.base_query, pair.phrasing) for pair in pairs}) == len(pairs)


def test_phrasings_are_balanced() -> None:
    counts = Counter(pair.phrasing for pair in contrast_pairs("detectable_format:title", n=64))
    assert sorted(counts.values()) == [16, 16, 16, 16]


def test_instructions_see_the_same_queries_in_the_same_order() -> None:
    one = contrast_pairs("punctuation:no_comma", n=40, seed=3)
    other = contrast_pairs("length_constraints:number_words_at_most", n=40, seed=3)
    assert [pair.base_query for pair in one] == [pair.base_query for pair in other]


def test_another_seed_gives_other_pairs() -> None:
    hashes = {contrast_pairs("startend:quotation", n=16, seed=seed).data_hash for seed in range(5)}
    assert len(hashes) == 5


def test_asking_for_more_pairs_than_there_are_names_the_maximum() -> None:
    maximum = 4 * len(base_queries("fit"))
    assert len(contrast_pairs("startend:quotation", n=maximum)) == maximum
    with pytest.raises(PairsError, match=f"gives 2 to {maximum} "):
        contrast_pairs("startend:quotation", n=maximum + 1)
    with pytest.raises(PairsError, match="1 contrast pairs were asked for"):
        contrast_pairs("startend:quotation", n=1)


def test_unknown_instructions_and_splits_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="startend:quotation"):
        contrast_pairs("startend:quotations")
    with pytest.raises(UnknownNameError, match="unknown split 'test'"):
        contrast_pairs("startend:quotation", split="test")


# The set itself


def test_a_set_is_a_sequence_whose_slices_keep_their_origin() -> None:
    pairs = contrast_pairs("startend:quotation", n=6, seed=9, split="report")
    part = pairs[2:5]
    assert isinstance(part, ContrastSet)
    assert (len(part), part.instruction_id, part.split, part.seed) == (
        3,
        "startend:quotation",
        "report",
        9,
    )
    assert list(part) == [pairs[2], pairs[3], pairs[4]]
    assert pairs[-1] in pairs


def test_the_hash_is_the_sha256_of_the_canonical_json() -> None:
    pairs = ContrastSet.from_prompts(["ä!", "b!"], ["ä", "b"])
    rows = [
        {
            "instructed": f"{text}!",
            "uninstructed": text,
            "base_query": text,
            "phrasing": None,
            "kwargs": {},
            "instructed_response": None,
            "uninstructed_response": None,
        }
        for text in ("ä", "b")
    ]
    canonical = json.dumps(rows, sort_keys=True, separators=(",", ":"))
    assert pairs.data_hash == f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"


def test_the_frame_has_a_row_a_pair_and_a_column_a_field() -> None:
    frame = contrast_pairs("length_constraints:number_words_at_most", n=5).table
    assert list(frame.columns) == [
        "instructed",
        "uninstructed",
        "base_query",
        "phrasing",
        "kwargs",
        "instructed_response",
        "uninstructed_response",
    ]
    assert len(frame) == 5
    assert frame.kwargs[0]["relation"] == "less than"


def test_a_missing_base_query_is_the_uninstructed_prompt() -> None:
    assert ContrastPair("Why? Be quick.", "Why?").base_query == "Why?"
    assert ContrastPair("Why? Be quick.", "Why?", "why").base_query == "why"


def test_a_pair_does_not_follow_changes_of_the_dictionary_it_was_given() -> None:
    kwargs = {"language": "de"}
    pair = ContrastPair("a", "b", kwargs=kwargs)
    kwargs["language"] = "fr"
    assert pair.kwargs == {"language": "de"}


@pytest.mark.parametrize(
    ("n", "message"), [(0, "no contrast pair was given"), (1, "1 contrast pair was given")]
)
def test_fewer_than_two_pairs_are_refused(n: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(PairsError, match=message):
        ContrastSet.from_prompts(["a"] * n, ["b"] * n)
    path = write(tmp_path / "few.jsonl", *TWO[:n])
    with pytest.raises(PairsError, match=rf"{message}.*few\.jsonl"):
        ContrastSet.from_jsonl(path)


# Prompts and data sets


def test_unequal_sides_are_refused_with_both_lengths() -> None:
    with pytest.raises(PairsError, match="3 'instructed' and 2 'uninstructed'"):
        ContrastSet.from_prompts(["a", "b", "c"], ["a", "b"])
    with pytest.raises(PairsError, match="2 'instructed' and 1 'base_query'"):
        ContrastSet.from_prompts(["a", "b"], ["a", "b"], ["q"])


def test_one_text_in_place_of_a_list_is_refused() -> None:
    with pytest.raises(PairsError, match="'instructed' must be a list of prompts"):
        ContrastSet.from_prompts("ab", "cd")


def test_an_empty_prompt_is_refused_with_its_row() -> None:
    with pytest.raises(PairsError, match="row 2: the field 'uninstructed' is empty"):
        ContrastSet.from_prompts(["a", "b"], ["a", " \n"])


def test_a_dataset_is_any_iterable_of_mappings_and_other_columns_are_ignored() -> None:
    rows = ({**row, "source": 7, "phrasing": None} for row in TWO)
    pairs = ContrastSet.from_dataset(rows)
    assert [pair.instructed for pair in pairs] == ["a, loudly", "b!"]
    assert pairs[0].phrasing is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instructed": "a"}, r"row 2: the field 'uninstructed' is missing \(fields given: 'inst"),
        ({"instructed": "a", "uninstructed": None}, "row 2: the field 'uninstructed' is missing"),
        ({"instructed": "", "uninstructed": "a"}, "row 2: the field 'instructed' is empty"),
        ({"instructed": 3, "uninstructed": "a"}, "row 2: .*'instructed' must be a text.*type int"),
        ({**TWO[1], "phrasing": 5}, "row 2: the field 'phrasing' must be a text"),
        ({**TWO[1], "kwargs": [1]}, "row 2: the field 'kwargs' must be an object.*type list"),
        ({**TWO[1], "kwargs": {"a": {1}}}, "row 2: the field 'kwargs' must hold JSON values only"),
        ({**TWO[1], "kwargs": {"a": float("nan")}}, "row 2: the field 'kwargs' must hold JSON"),
        ({**TWO[1], "instructed": "\ud800"}, "row 2: the field 'instructed' holds half a char"),
        ("instructed", "row 2: a value of type str was given"),
    ],
)
def test_a_malformed_row_is_named_with_its_field(row: object, message: str) -> None:
    # An iterator, which the run-time type checks of the tests do not look into.
    with pytest.raises(PairsError, match=message):
        ContrastSet.from_dataset(iter([TWO[0], row]))


# Files


@settings(deadline=None, max_examples=50)
@given(st.lists(pairs_strategy, min_size=2, max_size=5))
def test_what_is_written_as_jsonl_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[ContrastPair]
) -> None:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    original = ContrastSet(tuple(pairs))
    original.to_jsonl(path)
    assert ContrastSet.from_jsonl(path).pairs == original.pairs
    assert ContrastSet.from_jsonl(str(path)).data_hash == original.data_hash


def test_a_jsonl_file_may_have_a_byte_order_mark_blank_lines_and_odd_separators(
    tmp_path: Path,
) -> None:
    path = tmp_path / "odd.jsonl"
    odd = json.dumps({"instructed": "x\u2028y", "uninstructed": "z"}, ensure_ascii=False)
    path.write_bytes(f"\ufeff{json.dumps(TWO[0])}\r\n\n  \n{odd}\n".encode())
    assert [pair.instructed for pair in ContrastSet.from_jsonl(path)] == ["a, loudly", "x\u2028y"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"instructed": "a", "uninstructed": "b"}\n\n{"instructed"', "line 3: not a JSON object"),
        (b'["a", "b"]', "line 1: a value of type list was given"),
        (b'{"instructed": "a", "uninstructed": "b"}\n{"instructed": "a"}', "line 2: .*missing"),
        (b'{"instructed": "a", "uninstructed": "b"}\n{"instr\xff', "line 2: not UTF-8"),
        (b"[" * 100_000, "line 1: not a JSON object"),
    ],
)
def test_a_bad_jsonl_line_is_named_with_its_file(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(PairsError, match=rf"bad\.jsonl, {message}"):
        ContrastSet.from_jsonl(path)


def test_missing_files_and_folders_are_refused_in_a_sentence(tmp_path: Path) -> None:
    for read in (ContrastSet.from_jsonl, ContrastSet.from_csv):
        with pytest.raises(PairsError, match="none cannot be read: No such file"):
            read(tmp_path / "none")
        with pytest.raises(PairsError, match="cannot be read"):
            read(tmp_path)
    with pytest.raises(SteerlensError, match=r"cannot write .*File exists"):
        (tmp_path / "file").touch()
        ContrastSet.from_dataset(TWO).to_jsonl(tmp_path / "file" / "pairs.jsonl")


def test_writing_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("old", encoding="utf-8")
    ContrastSet.from_dataset(TWO).to_jsonl(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["pairs.jsonl"]
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2


def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given: a disk that fills up at the last step
    path = tmp_path / "pairs.jsonl"
    path.write_text("old", encoding="utf-8")

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)

    # when / then
    with pytest.raises(SteerlensError, match="No space left"):
        ContrastSet.from_dataset(TWO).to_jsonl(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["pairs.jsonl"]
    assert path.read_text(encoding="utf-8") == "old"


def test_a_csv_file_names_its_fields_in_the_header(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(
        "uninstructed,instructed,kwargs,note\n"
        'Why?,"Why? In ""quotes"", please.","{""num_words"": 3}",x\n'
        '"Two\nlines","Two\nlines, loudly",,\n',
        encoding="utf-8",
    )
    pairs = ContrastSet.from_csv(path)
    assert [pair.instructed for pair in pairs] == [
        'Why? In "quotes", please.',
        "Two\nlines, loudly",
    ]
    assert [pair.kwargs for pair in pairs] == [{"num_words": 3}, {}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1: the column 'instructed' is missing; the header has no columns"),
        ("instructed,b\nx,y\n", "line 1: the column 'uninstructed' is missing.*'instructed', 'b'"),
        ("instructed,uninstructed\nx,y\nx,\n", "line 3: the field 'uninstructed' is missing"),
        ("instructed,uninstructed\nx,y\n  ,y\n", "line 3: the field 'instructed' is empty"),
        ("instructed,uninstructed,kwargs\nx,y,{\n", "line 2: the field 'kwargs' is not JSON"),
        ('instructed,uninstructed\n"x,y\n', "not CSV"),
    ],
)
def test_a_bad_csv_line_is_named_with_its_file(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(PairsError, match=rf"bad\.csv, (line \d: )?{message}"):
        ContrastSet.from_csv(path)


def test_a_number_too_long_to_read_is_named_by_its_line(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(
        '{"instructed": "a b", "uninstructed": "a", "kwargs": {"n": %s}}' % ("9" * 5000)
    )

    with pytest.raises(PairsError, match=r"line 1: not a JSON object \(a number is too long\)"):
        ContrastSet.from_jsonl(file)
