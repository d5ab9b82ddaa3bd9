"""Task files: a behaviour of one's own in YAML, without Python.

::

    id: pirate
    description: The answer is in the speech of a pirate.
    phrasings:
      - Answer like a pirate.
      - Talk as a pirate would.
      - Use the speech of pirates.
    check: {any: [{contains: arr}, {regex: "\\\\b(ye|matey)\\\\b"}]}

=============== ===================================================================================
``id``          a short name; the file's by default
``description`` what a compliant response looks like
``phrasings``   sentences that ask for the behaviour, or else
``pairs``       a file of contrast pairs, or a list of them, or else
``choices``     a file of choices, or a list of them
``queries``     requests without the instruction; the package's by default
``arguments``   values for each ``{name}`` of the phrasings
``check``       whether a response shows the behaviour (`steerlens.tasks.written_checks`)
``rewrite``     ``module:function`` that makes a response compliant
``samples``     answers to see the check's scores of, by ``steerlens tasks --check FILE``
=============== ===================================================================================

Paths are relative to the task file. A ``.jsonl`` file is a task by itself: its first record tells
whether it holds pairs or choices. A ``.csv`` file holds pairs. YAML tags that would run code are
refused.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from steerlens.errors import FileFormatError, PairsError, SteerlensError, first_line, unknown_name
from steerlens.files.records import read_text
from steerlens.tasks import Task, catalogue
from steerlens.tasks.definitions import described
from steerlens.tasks.pairs import ContrastSet
from steerlens.tasks.written_checks import Check, check_from, function_named

__all__ = ["load_task", "unique_tasks", "written_check"]

_FIELDS = (
    "id",
    "description",
    "phrasings",
    "pairs",
    "choices",
    "queries",
    "arguments",
    "check",
    "rewrite",
    "samples",
)
_SOURCES = ("phrasings", "pairs", "choices")


def load_task(task: Task | str | os.PathLike[str]) -> Task:
    """A task from a file, or by its id in the catalogue; a task is returned as it is.

    Args:
        task: A ``.yaml`` file, a ``.jsonl`` or ``.csv`` file of pairs or choices, or an id.

    Raises:
        FileFormatError: The file cannot be read, is not YAML, or has a tag that would run code.
        SteerlensError: A field is unknown or has a wrong kind of value; file and field are named.
        UnknownNameError: Neither a file nor an id of the catalogue.
    """
    if isinstance(task, Task):
        return task
    if not isinstance(task, str | os.PathLike):
        raise PairsError(
            "task must be a Task, an id of the catalogue or a file, but is a value of type "
            f"{type(task).__name__}"
        )
    path = Path(task)
    if path.suffix in (".jsonl", ".csv"):
        return _from_records(path)
    if path.suffix in (".yaml", ".yml"):
        return _from_yaml(path)
    if path.exists() and str(task) not in catalogue:
        raise FileFormatError(
            f"{path} is not a task file; a task file ends in .yaml, .jsonl or .csv"
        )
    return catalogue[str(task)]


def _from_records(path: Path) -> Task:
    if path.suffix == ".jsonl":
        first = read_text(path, "task", FileFormatError).lstrip("\n").partition("\n")[0]
        try:
            record = json.loads(first)
        except (ValueError, RecursionError):
            record = None  # reading it as pairs says what is wrong, and where
        if isinstance(record, Mapping) and "question" in record:
            return Task.from_choices(path)
    return Task.from_pairs(path)


def written_check(text: str, where: str = "check") -> Check:
    """A check from one line: a mapping in YAML, or ``python:module:function``.

    >>> written_check("contains: arr")("Arr, matey!")
    True

    Raises:
        FileFormatError: Not YAML, or with a tag that would run code.
        SteerlensError: As `steerlens.tasks.written_checks.check_from`.
    """
    is_function = text.startswith("python:") and text[7:8] != " "
    spec = {"python": text.removeprefix("python:")} if is_function else _parsed(text, where)
    return WrittenCheck(spec, check_from(spec, where))


def _parsed(text: str, source: str) -> Any:
    """YAML without tags; the source is named in messages."""
    try:
        return yaml.safe_load(text)
    except yaml.constructor.ConstructorError as error:
        if "determine a constructor" not in str(error.problem):
            raise FileFormatError(f"{source}: not YAML ({error.problem})") from error
        raise FileFormatError(
            f"{source} has a YAML tag that is not allowed, because tags can run code "
            f"({error.problem}); use plain texts, lists and mappings"
        ) from error
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}, line {mark.line + 1}" if mark else source
        problem = getattr(error, "problem", None) or first_line(error)
        raise FileFormatError(f"{where}: not YAML ({problem})") from error


def _from_yaml(path: Path) -> Task:
    fields = _parsed(read_text(path, "task", FileFormatError), str(path))
    if not isinstance(fields, Mapping):
        raise SteerlensError(f"{path} must hold a mapping with {', '.join(_FIELDS)}")
    for name in fields:
        if name not in _FIELDS:
            raise SteerlensError(f"{path}: {unknown_name('field', str(name), _FIELDS)}")
    given = [name for name in _SOURCES if fields.get(name) is not None]
    if len(given) != 1:
        raise SteerlensError(
            f"{path} must have exactly one of {', '.join(_SOURCES)}, but has "
            + (" and ".join(given) or "none")
        )
    try:
        return _built(path, given[0], fields)
    except SteerlensError as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error


def _built(path: Path, source: str, fields: Mapping[str, Any]) -> Task:
    check = None
    if fields.get("check") is not None:
        check = WrittenCheck(fields["check"], check_from(fields["check"]))
    common = {
        "id": str(fields.get("id") or path.stem),
        "description": fields.get("description") or "",
    }
    unused = ("queries", "arguments", "rewrite", *(["samples"] if source == "choices" else []))
    for name in unused:
        if source != "phrasings" and fields.get(name) is not None:
            raise SteerlensError(f"{name!r} goes with phrasings, not with {source}")
    if source == "pairs":
        task = Task.from_pairs(_pairs(path, fields["pairs"]), check, **common)
        task.samples = tuple(_listed("samples", fields.get("samples")))
        return task
    if source == "choices":
        if check is not None:
            raise SteerlensError("choices are measured by log odds and take no check")
        value = fields["choices"]
        items = path.parent / value if isinstance(value, str) else value
        if not isinstance(items, Path | list):
            raise SteerlensError(f"'choices' must name a file or list choices, but is {value!r}")
        return Task.from_choices(items, **common)
    queries = fields.get("queries")
    if isinstance(queries, str):
        lines = read_text(path.parent / queries, "query", FileFormatError).splitlines()
        queries = [line for line in lines if line.strip()]
    rewrite = fields.get("rewrite")
    return Task(
        phrasings=fields["phrasings"],
        queries=queries,
        check=check,
        rewrite=None if rewrite is None else function_named(rewrite, f"{path}: rewrite"),
        arguments=_arguments(fields.get("arguments")),
        samples=_listed("samples", fields.get("samples")),
        **common,
    )


def _listed(name: str, texts: object) -> list[str]:
    if not isinstance(texts, list | None) or not all(isinstance(text, str) for text in texts or ()):
        raise SteerlensError(f"{name!r} must be a list of texts, but is {texts!r}")
    return list(texts or ())


def _pairs(path: Path, value: object) -> ContrastSet:
    if isinstance(value, str):
        file = path.parent / value
        return ContrastSet.from_csv(file) if file.suffix == ".csv" else ContrastSet.from_jsonl(file)
    return ContrastSet.from_dataset(value)  # type: ignore[arg-type]


def _arguments(value: object) -> Mapping[str, list[Any]]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(v, list) and v for v in value.values()):
        raise SteerlensError(f"'arguments' needs a list of values for each name, but is {value!r}")
    return value


def unique_tasks(tasks: Iterable[Task | str | os.PathLike[str]]) -> dict[str, Task]:
    """Tasks by id, each once.

    Raises:
        SteerlensError: Two different tasks have one id; or as `load_task`.
    """
    by_id: dict[str, Task] = {}
    for task in map(load_task, tasks):
        if by_id.setdefault(task.id, task) != task:
            raise SteerlensError(
                f"two different tasks have the id {task.id!r}; results are kept by id, so give "
                "each one of its own"
            )
    return by_id


class WrittenCheck:
    """A check together with the mapping that describes it, which defines the task."""

    def __init__(self, spec: Mapping[str, Any], check: Check) -> None:
        self.spec = spec
        self._check = check

    @property
    def definition(self) -> Any:
        """The mapping, and the code of the functions that it names."""
        code = [described(function_named(name, "check")) for name in _functions(self.spec)]
        return [self.spec, *code] if code else self.spec

    def __call__(self, response: str, **kwargs: Any) -> bool | float:
        """What the check says of a response."""
        return self._check(response, **kwargs)


def _functions(spec: object) -> Iterator[str]:
    """The functions that a written check names, at any depth."""
    if isinstance(spec, Mapping):
        for kind, value in spec.items():
            yield from [value] if kind == "python" else _functions(value)
    elif isinstance(spec, list):
        for part in spec:
            yield from _functions(part)
