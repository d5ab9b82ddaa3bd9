"""Files of records that people write: JSON lines and CSV, read line by line.

Errors name the file and the line, and are of the kind that the caller gives.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from steerlens.errors import SteerlensError

__all__ = ["csv_records", "jsonl_records", "read_text"]

Records = Iterator[tuple[int, object]]


def read_text(file: Path, what: str, error: type[SteerlensError]) -> str:
    """The file's text.

    Raises:
        SteerlensError: "the pairs file … cannot be read", "…, line 3: not UTF-8 text".
    """
    try:
        data = file.read_bytes()
    except OSError as fault:
        raise error(f"the {what} file {file} cannot be read: {fault.strerror}") from fault
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line = data.count(b"\n", 0, fault.start) + 1
        raise error(f"{file}, line {line}: not UTF-8 text; save the file as UTF-8") from fault


def jsonl_records(file: Path, text: str, error: type[SteerlensError]) -> Records:
    """The number of each line that is not blank, and its JSON value."""
    # Not str.splitlines: JSON strings may hold other line separators, such as U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, _json(line, f"{file}, line {number}: not a JSON object", error)


def csv_records(
    file: Path, text: str, required: Sequence[str], error: type[SteerlensError]
) -> Records:
    """The last line of each row, and its cells by column; empty cells are left out.

    A column ``kwargs`` holds JSON.
    """
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        header = reader.fieldnames or []
        for name in required:
            if name not in header:
                raise error(
                    f"{file}, line 1: the column {name!r} is missing; the header has "
                    + (", ".join(map(repr, header)) or "no columns")
                )
        for row in reader:
            where = f"{file}, line {reader.line_num}"
            if None in row:
                raise error(
                    f"{where}: more cells than the header has columns; put quotation marks around "
                    "prompts that hold commas"
                )
            record: dict[str, object] = {k: v for k, v in row.items() if v != ""}
            if "kwargs" in record:
                fault = f"{where}: the field 'kwargs' is not JSON"
                record["kwargs"] = _json(str(record["kwargs"]), fault, error)
            yield reader.line_num, record
    except csv.Error as fault:
        raise error(f"{file}, line {reader.line_num}: not CSV ({fault})") from fault


def _json(text: str, otherwise: str, error: type[SteerlensError]) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as fault:
        raise error(f"{otherwise} ({fault.msg})") from fault
    except RecursionError as fault:
        raise error(f"{otherwise} (nested too deeply)") from fault
    except ValueError as fault:  # Python refuses to read integers of thousands of digits
        raise error(f"{otherwise} (a number is too long)") from fault
