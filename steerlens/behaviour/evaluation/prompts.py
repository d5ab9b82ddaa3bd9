"""Prompts to evaluate on, and reading them from an IFEval-shaped file.

An evaluation file has one JSON object per line with IFEval's fields (Zhou et al., arXiv
2311.07911):

    {"key": 1001, "prompt": "Plan a trip. Use no commas.",
     "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}],
     "prompt_without_instruction": "Plan a trip."}

`prompt_without_instruction` is optional; without it a prompt has no *uninstructed* condition. Both
may be a conversation (``[{"role": …, "content": …}, …]``, with a system message of its own, and
ended by an assistant's message to go on with) or token ids. A check reads what the model adds. A
field that seems to be one of these misspelt is refused; others are ignored, with a warning unless
they are known from files made of IFEval (`FOREIGN`).

`kwargs` has one object per instruction, in order; entries that are null count as absent (IFEval's
rows list every argument of every check). Ids are IFEval's or the catalogue's ("length:brief");
arguments are tried on their checks here, so that a row that could not be scored is refused before
anything is generated for it.

**Keys.** Files derived from IFEval repeat a key where one prompt became several, each with another
word to include. `EvaluationPrompt.row` tells such rows apart ("1265", "1265#2"). The same key with
the same prompt twice is refused as a mistake.

`steerlens.behaviour.evaluation.drawing` makes the same records from the catalogue.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steerlens.behaviour.unchecked import measure_of
from steerlens.errors import FileFormatError, ModelError, SteerlensError, UnknownNameError
from steerlens.files.fields import Foreign
from steerlens.files.records import jsonl_records, read_text
from steerlens.models.conversations import Prompt, asked_text, prompt_of, shown
from steerlens.tasks import Task
from steerlens.tasks.checks import is_known, verdict

__all__ = [
    "ANSWERS",
    "EvaluationPrompt",
    "PromptFile",
    "check_prompts",
    "read_prompts",
    "unknown_ids",
]

REQUIRED = ("key", "prompt", "instruction_id_list", "kwargs")
OPTIONAL = ("prompt_without_instruction",)
# Fields of the files of Stolfo et al. 2025, and of responses beside their prompts, as IFEval's own
# scorer writes them.
FOREIGN = (
    "instruction_id_list_for_eval",
    "removed",
    "question",
    "likely_words",
    "unlikely_words",
    "response",
    "follow_all_instructions",
    "follow_instruction_list",
)


# Arguments of a prompt with choices: what it may be answered with.
ANSWERS = ("answer_matching_behavior", "answer_not_matching_behavior")


@dataclass(frozen=True)
class EvaluationPrompt:
    """One prompt with its instructions and their arguments.

    Attributes:
        key: The row's key, as in the file.
        prompt: The prompt with its instructions: a text, a conversation or token ids.
        prompt_without_instruction: The same request without them, where known.
        instruction_ids: What is asked for; at least one.
        kwargs: The arguments of each instruction's check, in the same order, nulls left out.
        line: The line of the file, counted from 1; None for a prompt from the catalogue.
        row: A name no other prompt of the file has: the key, with "#2" for its second row.
        tasks: Tasks of one's own among those asked for, by id.
    """

    key: str | int
    prompt: Prompt
    prompt_without_instruction: Prompt | None
    instruction_ids: tuple[str, ...]
    kwargs: tuple[Mapping[str, Any], ...] = field(hash=False)
    line: int | None = None
    row: str = ""
    tasks: Mapping[str, Task] = field(default_factory=dict, hash=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("prompt", *OPTIONAL):
            value = getattr(self, name)
            if value is not None:
                name_in_messages = f"{name} of row {self.row or self.key!r}"
                object.__setattr__(self, name, prompt_of(value, name_in_messages))
        if not self.row:
            object.__setattr__(self, "row", str(self.key))

    @property
    def unchecked(self) -> Task | None:
        """The task whose behaviour is measured without a check; ``None`` where answers are."""
        if len(self.instruction_ids) != 1:
            return None
        task = self.tasks.get(self.instruction_ids[0])
        return None if task is None or measure_of(task) == "rate" else task


@dataclass(frozen=True)
class PromptFile:
    """What an evaluation file holds.

    Attributes:
        prompts: Its rows in order, without those left out.
        path: The file.
        data_hash: ``"sha256:…"`` of the file's bytes.
        left_out: Unknown instruction id -> how many rows were left out because of it.
    """

    prompts: tuple[EvaluationPrompt, ...]
    path: str
    data_hash: str
    left_out: Mapping[str, int] = field(default_factory=dict, hash=False)


def read_prompts(path: str | os.PathLike[str], skip_unknown: bool = False) -> PromptFile:
    """Read an IFEval-shaped JSONL file; blank lines are skipped.

    Args:
        path: The file.
        skip_unknown: Leave out rows with an instruction that no check knows, and report them in
            the result, instead of refusing the file.

    Raises:
        FileFormatError: The file cannot be read or holds no prompt; or "FILE, line 3, field
            'kwargs': …" for a malformed row, arguments its check cannot use, or a repeated row;
            "FILE, line 3: unknown field … did you mean …?" for a misspelt field.
        UnknownNameError: "FILE asks for 2 instructions that are not known: 'x:y' (3 rows), …".
    """
    file = Path(path)
    fields = Foreign((*REQUIRED, *OPTIONAL), FOREIGN)
    records = jsonl_records(file, read_text(file, "prompts", FileFormatError), FileFormatError)
    rows = [(line, _row(f"{file}, line {line}", record, fields)) for line, record in records]
    fields.warn(str(file))
    if not rows:
        raise FileFormatError(f"{file} holds no prompt; give one JSON object a line")
    unknown = unknown_ids(row["instruction_id_list"] for _, row in rows)
    if unknown and not skip_unknown:
        raise UnknownNameError(_unknown_sentence(f"{file} asks for", unknown))
    known = [(line, row) for line, row in rows if not unknown.keys() & row["instruction_id_list"]]
    if not known:
        raise FileFormatError(
            f"{file} has no row left: every one of its {len(rows)} asks for an unknown instruction"
        )
    for line, row in known:
        try:
            asked = asked_text(row["prompt"])
            verdict("A response.", row["instruction_id_list"], row["kwargs"], asked)
        except SteerlensError as error:
            raise _fault(f"{file}, line {line}", "kwargs", str(error)) from error
    return PromptFile(
        prompts=_named(file, known),
        path=str(file),
        data_hash=f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}",
        left_out=dict(sorted(unknown.items())),
    )


def unknown_ids(asked: Iterable[Sequence[str]]) -> Counter[str]:
    """Ids that no check knows, and how many rows ask for each."""
    return Counter(i for ids in asked for i in set(ids) if not is_known(i))


def check_prompts(prompts: Sequence[EvaluationPrompt]) -> None:
    """Refuse prompts whose responses could not be scored, before anything is answered.

    Raises:
        UnknownNameError: "the prompts ask for an instruction that is not known: 'x:y' (3 rows); …".
        SteerlensError: "prompt 'a/3': …" for arguments that a check cannot use, no instruction, a
            blank text, or a name that another prompt has as well.
    """
    unknown = unknown_ids(
        [name for name in prompt.instruction_ids if name not in prompt.tasks] for prompt in prompts
    )
    if unknown:
        raise UnknownNameError(_unknown_sentence("the prompts ask for", unknown))
    taken: set[str] = set()
    tried: set[str] = set()
    for prompt in prompts:
        name = f"prompt {prompt.row!r}"
        # Conditions are compared row by row, and rows are told apart by this name.
        if prompt.row in taken:
            raise SteerlensError(f"{name} comes twice; give each prompt a row of its own")
        taken.add(prompt.row)
        without = prompt.prompt_without_instruction
        if any(isinstance(text, str) and not text.strip() for text in (prompt.prompt, without)):
            raise SteerlensError(f"{name} has a text that is blank; give a text or leave it out")
        if prompt.unchecked is not None and without is None:
            raise SteerlensError(
                f"{name} has no prompt without the instruction, so without a check nothing can be "
                "measured; give `prompt_without_instruction`"
            )
        # A judge reads what it is asked about: each check is tried once for the same arguments.
        arguments = repr((prompt.instruction_ids, prompt.kwargs))
        if prompt.unchecked is not None or arguments in tried:
            continue
        tried.add(arguments)
        try:
            asked = asked_text(prompt.prompt)
            verdict("A response.", prompt.instruction_ids, prompt.kwargs, asked, prompt.tasks)
        except SteerlensError as error:
            raise SteerlensError(f"{name}: {error}") from error


def _row(where: str, row: object, fields: Foreign) -> dict[str, Any]:
    """One row with its fields validated; ids may still be unknown."""
    if not isinstance(row, dict):
        raise FileFormatError(f"{where}: {type(row).__name__} is not a JSON object")
    for name in REQUIRED:
        if row.get(name) is None:
            raise _fault(where, name, "is missing")
    fields.check(row, where, FileFormatError)
    if isinstance(row["key"], bool) or not isinstance(row["key"], int | str):
        raise _fault(where, "key", f"must be a number or a text; got {row['key']!r}")
    for name in ("prompt", *OPTIONAL):
        if row.get(name) is not None:
            row[name] = _prompt(where, name, row[name])
    ids, kwargs = row["instruction_id_list"], row["kwargs"]
    if not isinstance(ids, list) or not ids or not all(isinstance(i, str) for i in ids):
        raise _fault(where, "instruction_id_list", f"must be a list of ids; got {ids!r}")
    if not isinstance(kwargs, list) or not all(isinstance(one, dict) for one in kwargs):
        raise _fault(where, "kwargs", f"must be a list of objects; got {kwargs!r}")
    if len(kwargs) != len(ids):
        raise _fault(where, "kwargs", f"has {len(kwargs)} objects for {len(ids)} instructions")
    # IFEval drops nulls when it reads a row.
    row["kwargs"] = [{k: v for k, v in one.items() if v is not None} for one in kwargs]
    return row


def _prompt(where: str, name: str, value: object) -> Prompt:
    if not isinstance(value, list) and not (isinstance(value, str) and value.strip()):
        raise _fault(
            where,
            name,
            f"must be a text that is not blank, a list of messages or of token ids; got {value!r}",
        )
    try:
        prompt = prompt_of(value, name)
        shown(prompt).encode("utf-8")
    except ModelError as error:
        raise _fault(where, name, str(error)) from error
    except UnicodeEncodeError as error:
        raise _fault(where, name, "holds half a character (a surrogate)") from error
    return prompt


def _named(file: Path, rows: Sequence[tuple[int, dict[str, Any]]]) -> tuple[EvaluationPrompt, ...]:
    """The rows as prompts; rows that share a key are told apart by `row`."""
    first_line: dict[str, int] = {}
    times: Counter[str] = Counter()
    taken = {str(row["key"]) for _, row in rows}
    prompts = []
    for line, row in rows:
        key = str(row["key"])
        content = json.dumps([key, row["prompt"], row["instruction_id_list"], row["kwargs"]])
        if first_line.setdefault(content, line) != line:
            repeated = f"{row['key']!r} repeats the row of line {first_line[content]}"
            raise _fault(f"{file}, line {line}", "key", repeated)
        name = key
        times[key] += 1
        while times[key] > 1 and (name := f"{key}#{times[key]}") in taken:
            times[key] += 1
        taken.add(name)
        prompts.append(
            EvaluationPrompt(
                key=row["key"],
                prompt=row["prompt"],
                prompt_without_instruction=row.get("prompt_without_instruction"),
                instruction_ids=tuple(row["instruction_id_list"]),
                kwargs=tuple(row["kwargs"]),
                line=line,
                row=name,
            )
        )
    return tuple(prompts)


def _fault(where: str, name: str, what: str) -> FileFormatError:
    return FileFormatError(f"{where}, field {name!r}: {what}")


def _unknown_sentence(who: str, unknown: Mapping[str, int]) -> str:
    listed = ", ".join(
        f"{name!r} ({n} {'row' if n == 1 else 'rows'})" for name, n in sorted(unknown.items())
    )
    which = "an instruction that is" if len(unknown) == 1 else "instructions that are"
    return (
        f"{who} {which} not known: {listed}; leave those rows out with --skip-unknown "
        "(skip_unknown=True)"
    )
