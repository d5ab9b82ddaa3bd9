"""Contrast pairs: the same request with and without an instruction.

A pair holds two prompts for one base query, *instructed* and *uninstructed*; steering vectors come
from the difference of a model's activations on the two. Pairs are drawn for a task
(`steerlens.contrast_pairs`) or brought along: two lists of prompts, a JSONL or CSV file, a Hugging
Face dataset. They are validated here, and an error names the row.

A pairs file has one JSON object per line. `instructed` and `uninstructed` are needed; the rest is
optional. Other fields are ignored with a warning, unless one seems to be an optional field
misspelt, which is refused:

    {"instructed": "Why is the sky blue? No commas.", "uninstructed": "Why is the sky blue?",
     "base_query": "…", "phrasing": "…", "kwargs": {}, "instructed_response": "…",
     "uninstructed_response": "…"}

A prompt is a text, a conversation (``[{"role": …, "content": …}, …]``) or token ids
(`steerlens.models.conversations`).

Drawing is deterministic: pair *i* for a seed is the same on every machine, and the pairs for n are
the first n of those for any larger n. Every base query of the split is used once before one is
repeated with another phrasing, and tasks that accept all kinds of query see the same queries in the
same order, so that their vectors differ by the instruction only.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import pandas as pd

from steerlens.errors import ModelError, PairsError
from steerlens.files import write_text
from steerlens.files.fields import Foreign
from steerlens.files.records import csv_records, jsonl_records, read_text
from steerlens.models.conversations import Prompt, prompt_of, shown, users_text
from steerlens.tasks.duplicates import near_duplicates

__all__ = ["ContrastPair", "ContrastSet"]

REQUIRED = ("instructed", "uninstructed")
OPTIONAL = ("base_query", "phrasing", "kwargs", "instructed_response", "uninstructed_response")


@dataclass(frozen=True)
class ContrastPair:
    """Two prompts for one base query, and answers to them if they are known.

    Attributes:
        instructed: The prompt with the instruction.
        uninstructed: The prompt without it.
        base_query: The query both share; by default what the user says in the uninstructed prompt.
        phrasing: The template the instruction was worded with.
        kwargs: The arguments of the instruction's check; JSON values.
        instructed_response: An answer that follows the instruction.
        uninstructed_response: An answer to the uninstructed prompt.

    Raises:
        PairsError: A prompt is empty or none, or another field has a wrong type.
    """

    instructed: Prompt
    uninstructed: Prompt
    base_query: str = ""
    phrasing: str | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)
    instructed_response: str | None = None
    uninstructed_response: str | None = None

    def __post_init__(self) -> None:
        for name, value in _validated(vars(self)).items():
            object.__setattr__(self, name, value)
        if not self.base_query:
            object.__setattr__(self, "base_query", users_text(self.uninstructed))
        # A copy: the caller's dictionary may change, a pair may not.
        object.__setattr__(self, "kwargs", dict(self.kwargs))


@dataclass(frozen=True)
class ContrastSet(Sequence[ContrastPair]):
    """At least two contrast pairs, in order, and where they come from.

    Attributes:
        pairs: The pairs.
        instruction_id: The task's id in the catalogue; None for pairs brought along.
        split: The split that queries and phrasings were drawn from, if any.
        seed: The seed they were drawn with, if any.
        contrast: What the uninstructed side carries; see `steerlens.tasks.contrasts`.

    Raises:
        PairsError: "… at least 2 are needed …".
    """

    pairs: tuple[ContrastPair, ...]
    instruction_id: str | None = None
    split: str | None = None
    seed: int | None = None
    contrast: str = "none"

    def __post_init__(self) -> None:
        object.__setattr__(self, "pairs", tuple(self.pairs))
        for row, pair in enumerate(self.pairs, start=1):
            if not isinstance(pair, ContrastPair):
                raise PairsError(f"row {row}: {_a(pair)} was given where a ContrastPair is needed")
        if len(self.pairs) < 2:
            given = "no contrast pair was" if not self.pairs else "1 contrast pair was"
            raise PairsError(
                f"{given} given; at least 2 are needed to tell the instruction from the query"
            )

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[ContrastPair]:
        return iter(self.pairs)

    @overload
    def __getitem__(self, index: int) -> ContrastPair: ...
    @overload
    def __getitem__(self, index: slice) -> "ContrastSet": ...
    def __getitem__(self, index: int | slice) -> "ContrastPair | ContrastSet":
        """One pair, or for a slice a `ContrastSet` of the same origin."""
        if isinstance(index, slice):
            return replace(self, pairs=self.pairs[index])
        return self.pairs[index]

    def __repr__(self) -> str:
        origin = f" for {self.instruction_id!r}" if self.instruction_id else ""
        drawn = f", split {self.split!r}, seed {self.seed}" if self.split else ""
        return f"<ContrastSet of {len(self)} pairs{origin}{drawn}>"

    @property
    def data_hash(self) -> str:
        """`"sha256:…"` of the pairs as canonical JSON; the origin does not enter."""
        rows = [asdict(pair) for pair in self.pairs]
        canonical = json.dumps(rows, sort_keys=True, separators=(",", ":"))
        return f"sha256:{hashlib.sha256(canonical.encode('ascii')).hexdigest()}"

    @property
    def same_prompts(self) -> bool:
        """Whether the two prompts of every pair are the same, so that only answers differ."""
        return all(pair.instructed == pair.uninstructed for pair in self.pairs)

    @cached_property
    def query_groups(self) -> tuple[int, ...]:
        """The group of each pair's base query; near-duplicates and repeated pairs share one.

        Cross-validation and resampling never split a group (`steerlens.tasks.duplicates`).
        """
        first: dict[tuple[Prompt, Prompt], str] = {}
        queries = [
            first.setdefault((pair.instructed, pair.uninstructed), pair.base_query)
            for pair in self.pairs
        ]
        return near_duplicates(queries)

    @property
    def table(self) -> pd.DataFrame:
        """One row per pair, one column per field of `ContrastPair`."""
        return pd.DataFrame([asdict(pair) for pair in self.pairs])

    def to_jsonl(self, path: str | os.PathLike[str]) -> None:
        """Write one JSON object per line; the file appears whole or not at all.

        Raises:
            SteerlensError: "cannot write …".
        """
        lines = (json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in self.pairs)
        write_text(Path(path), "".join(lines))

    @classmethod
    def from_prompts(
        cls,
        instructed: Iterable[Prompt],
        uninstructed: Iterable[Prompt],
        base_queries: Iterable[str] | None = None,
    ) -> "ContrastSet":
        """Pairs from two lists of prompts of equal length, and perhaps one of base queries.

        Raises:
            PairsError: The lists differ in length, or a prompt is empty or not a string.
        """
        columns: dict[str, Any] = {"instructed": instructed, "uninstructed": uninstructed}
        if base_queries is not None:
            columns["base_query"] = base_queries
        for name, column in columns.items():
            if isinstance(column, str | bytes | Mapping) or not isinstance(column, Iterable):
                raise PairsError(f"{name!r} must be a list of prompts, but is {_a(column)}")
            columns[name] = list(column)
        n_pairs = len(columns["instructed"])
        for name, prompts in columns.items():
            if len(prompts) != n_pairs:
                raise PairsError(
                    f"the sides differ in length: {n_pairs} 'instructed' and {len(prompts)} "
                    f"{name!r}; give one of each per pair"
                )
        rows = zip(*columns.values(), strict=True)
        return cls.from_dataset(dict(zip(columns, row, strict=True)) for row in rows)

    @classmethod
    def from_jsonl(cls, path: str | os.PathLike[str]) -> "ContrastSet":
        """Pairs from a file with one JSON object per line; blank lines are skipped.

        Raises:
            PairsError: The file cannot be read, or a pair is malformed; file and line are named.
        """
        file = Path(path)
        text = read_text(file, "pairs", PairsError)
        return cls._from_records(jsonl_records(file, text, PairsError), f"{file}, line", str(file))

    @classmethod
    def from_csv(cls, path: str | os.PathLike[str]) -> "ContrastSet":
        """Pairs from a CSV file whose header names the fields; an empty cell counts as absent.

        `kwargs` holds a JSON object.

        Raises:
            PairsError: As `from_jsonl`.
        """
        file = Path(path)
        records = csv_records(file, read_text(file, "pairs", PairsError), REQUIRED, PairsError)
        return cls._from_records(records, f"{file}, line", str(file))

    @classmethod
    def from_dataset(cls, dataset: Iterable[Mapping[str, Any]]) -> "ContrastSet":
        """Pairs from any iterable of mappings, such as one split of a Hugging Face dataset.

        Raises:
            PairsError: A pair is malformed; the row is named, counted from 1.
        """
        if isinstance(dataset, (str, bytes)) or not isinstance(dataset, Iterable):
            raise PairsError(f"a dataset must be an iterable of mappings, but is {_a(dataset)}")
        return cls._from_records(enumerate(dataset, 1), "row")

    @classmethod
    def _from_records(
        cls, records: Iterable[tuple[int, object]], place: str, source: str = ""
    ) -> "ContrastSet":
        """Pairs from numbered mappings; errors say where they stand ("pairs.jsonl, line 3")."""
        fields = Foreign((*REQUIRED, *OPTIONAL))
        pairs = tuple(_pair(f"{place} {number}", record, fields) for number, record in records)
        fields.warn(source or "what the pairs were made of")
        try:
            return cls(pairs)
        except PairsError as error:
            raise PairsError(f"{error} in {source}" if source else str(error)) from error


def _pair(where: str, record: object, fields: Foreign) -> ContrastPair:
    """One pair from a mapping; errors are prefixed with where it stands."""
    if not isinstance(record, Mapping):
        raise PairsError(
            f"{where}: {_a(record)} was given where an object with the fields 'instructed' and "
            "'uninstructed' is needed"
        )
    for name in REQUIRED:
        if record.get(name) is None:
            present = ", ".join(repr(str(key)) for key in record) or "none"
            raise PairsError(f"{where}: the field {name!r} is missing (fields given: {present})")
    fields.check(record, where, PairsError)
    names = (name for name in (*REQUIRED, *OPTIONAL) if record.get(name) is not None)
    known = {name: record[name] for name in names}
    try:
        return ContrastPair(**known)
    except PairsError as error:
        raise PairsError(f"{where}: {error}") from error


def _validated(fields: Mapping[str, object]) -> dict[str, Prompt]:
    """The two prompts as they are kept; every field is checked."""
    prompts: dict[str, Prompt] = {}
    for name, value in fields.items():
        if name == "kwargs":
            _validate_kwargs(value)
        elif name in REQUIRED:
            prompts[name] = _prompt(name, value)
        elif value is not None:
            _validate_text(name, value)
    return prompts


def _prompt(name: str, value: object) -> Prompt:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        _validate_text(name, value)
        return str(value)
    try:
        prompt = prompt_of(value, f"the field {name!r}")
    except ModelError as error:
        raise PairsError(str(error)) from error
    _validate_text(name, shown(prompt))
    return prompt


def _validate_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise PairsError(f"the field {name!r} must be a text, but is {_a(value)}")
    if name in REQUIRED and not value.strip():
        raise PairsError(f"the field {name!r} is empty; give a prompt")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PairsError(
            f"the field {name!r} holds half a character (an unpaired surrogate) at position "
            f"{error.start}; write it as proper UTF-8"
        ) from error


def _validate_kwargs(value: object) -> None:
    if not isinstance(value, Mapping):
        raise PairsError(f"the field 'kwargs' must be an object, but is {_a(value)}")
    try:
        json.dumps(dict(value), allow_nan=False, ensure_ascii=False, sort_keys=True).encode()
    except (TypeError, ValueError) as error:
        raise PairsError(f"the field 'kwargs' must hold JSON values only: {error}") from error


def _a(value: object) -> str:
    """How errors name what was given: a value of type int."""
    return f"a value of type {type(value).__name__}"
