"""Files of contrast pairs: JSON lines and CSV, read record by record and written whole."""

import csv
import io
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from steerlens.errors import PairsError

__all__ = ["csv_records", "jsonl_records", "read_text", "write_whole"]


def read_text(file: Path) -> str:
    """The file's text; `PairsError` when it cannot be read or is not UTF-8."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise PairsError(f"the pairs file {file} cannot be read: {error.strerror}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PairsError(f"{file}, line {line}: not UTF-8 text; save the file as UTF-8") from error


def jsonl_records(file: Path, text: str) -> Iterator[tuple[str, object]]:
    """Where each object stands ("pairs.jsonl, line 3"), and the object."""
    # Not str.splitlines: JSON strings may hold other line separators, such as U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            yield where, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise PairsError(f"{where}: not a JSON object ({_json_fault(error)})") from error


def csv_records(file: Path, text: str, required: Sequence[str]) -> Iterator[tuple[str, object]]:
    """Where each row stands, and its cells by column, empty ones left out."""
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        header = reader.fieldnames or []
        for name in required:
            if name not in header:
                raise PairsError(
                    f"{file}, line 1: the column {name!r} is missing; the header has "
                    + (", ".join(map(repr, header)) or "no columns")
                )
        for row in reader:
            where = f"{file}, line {reader.line_num}"
            if None in row:
                raise PairsError(
                    f"{where}: more cells than the header has columns; put quotation marks around "
                    "prompts that hold commas"
                )
            record: dict[str, object] = {k: v for k, v in row.items() if v != ""}
            if "kwargs" in record:
                record["kwargs"] = _json_cell(where, str(record["kwargs"]))
            yield where, record
    except csv.Error as error:
        raise PairsError(f"{file}, line {reader.line_num}: not CSV ({error})") from error


def _json_cell(where: str, cell: str) -> object:
    try:
        return json.loads(cell)
    except (ValueError, RecursionError) as error:
        raise PairsError(
            f"{where}: the field 'kwargs' is not JSON ({_json_fault(error)})"
        ) from error


def _json_fault(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    # Python refuses to read integers of thousands of digits, as a plain ValueError.
    return "nested too deeply" if isinstance(error, RecursionError) else "a number is too long"


def write_whole(target: Path, text: str) -> None:
    """Write beside the target, then move over it; a failure leaves nothing behind."""
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        os.replace(temporary, target)
    except OSError as error:
        raise PairsError(f"the pairs file {target} cannot be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
