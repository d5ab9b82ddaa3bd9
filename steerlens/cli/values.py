"""Single options and their values: what is read from them, what is refused, and JSON output."""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from steerlens.errors import SteerlensError, unknown_name

__all__ = [
    "Evidence",
    "Ids",
    "Json",
    "Seed",
    "count",
    "evidence_kinds",
    "given",
    "local_path",
    "option",
    "parse_device_map",
    "parse_quantization",
    "parse_sizes",
    "print_json",
    "refuse_unused",
    "seed_of",
]


def option(text: str, *names: str, **settings: Any) -> Any:
    """A typer option with its help."""
    return typer.Option(*names, help=text, **settings)


def _positive(value: str | int) -> int:
    if not re.fullmatch(r"[0-9]+", str(value)) or int(value) < 1:
        raise typer.BadParameter(f"{value} is not a whole number of at least 1")
    return int(value)


def _path_here(value: str | Path) -> Path:
    if "://" in str(value):
        raise typer.BadParameter(
            f"{value} is a URL; give a path on this machine, and copy what is written there "
            "afterwards (for example with 'aws s3 sync')"
        )
    return Path(value)


def count(text: str) -> Any:
    """An option that takes a whole number of at least 1."""
    return option(text, parser=_positive, metavar="N")


def local_path(text: str) -> Any:
    """An option that takes a path on this machine; URLs are refused."""
    return option(text, parser=_path_here, metavar="PATH")


Ids = option(
    "a task: an id of the catalogue, a file (.yaml, or pairs or choices as .jsonl), or a folder of "
    "them; repeat it for several (--instruction is its older spelling)",
    "--task",
    "--instruction",
    metavar="ID|FILE",
)
Json = Annotated[bool, option("print machine-readable JSON", "--json")]
Seed = Annotated[int, option("seed of everything that is drawn")]
Evidence = option(
    "comma-separated: separability, probes, null, dimension, generalisation, causal, components, "
    "specificity, other_task, geometry, vocabulary, reading, patching, ceiling; or all, without "
    "ceiling (for rank also: choices)"
)


def given(**values: Any) -> dict[str, Any]:
    """The arguments that were given; the others keep the default of the function called."""
    return {name: value for name, value in values.items() if value is not None}


def refuse_unused(options: Mapping[str, Any], reason: str) -> None:
    """Refuse options that would have no effect beside the others.

    Raises:
        SteerlensError: "--n is how many pairs of a task are drawn, …; leave it out".
    """
    for name, value in options.items():
        if value is not None:
            raise SteerlensError(f"{name} {reason}; leave it out")


def seed_of(seed: int | None, unused: str | None = None) -> int:
    """The seed, 0 by default. If it was given and nothing is drawn, a note says why not."""
    if seed is not None and unused is not None:
        print(f"steerlens: note: --seed has no effect {unused}", file=sys.stderr)
    return seed or 0


def evidence_kinds(names: str) -> tuple[str, ...]:
    """The kinds of evidence asked for, checked before any model is loaded."""
    from steerlens.attribution.evidence import ALL_EVIDENCE, EVIDENCE_KINDS

    if names == "all":
        return ALL_EVIDENCE
    kinds = tuple(name.strip() for name in names.split(","))
    for kind in kinds:
        if kind not in EVIDENCE_KINDS:
            raise unknown_name("kind of evidence", kind, EVIDENCE_KINDS)
    return kinds


def parse_token_ids(value: str) -> list[int]:
    """Token ids from one text.

    >>> parse_token_ids("1, 9690")
    [1, 9690]
    """
    try:
        ids = [int(part) for part in value.split(",")]
    except ValueError:
        ids = []
    if not ids or min(ids) < 0:
        raise SteerlensError(
            f"--token-ids takes whole numbers of at least 0, separated by commas; got {value!r}"
        )
    return ids


def parse_device_map(name: str, value: str | None) -> Any:
    """A strategy by name, or devices by module as JSON."""
    return _json_object(name, value) if value is not None and value.startswith("{") else value


def parse_sizes(name: str, value: str | None) -> dict[int | str, int | str] | None:
    """Sizes by device.

    >>> parse_sizes("--max-memory", "0=70GiB, cpu=200GiB")
    {0: '70GiB', 'cpu': '200GiB'}
    """
    if value is None:
        return None
    room: dict[int | str, int | str] = {}
    for part in value.split(","):
        device, _, size = (text.strip() for text in part.partition("="))
        if not (device and size):
            raise SteerlensError(
                f"{name} {value!r} has a part that is no size of a device; give sizes such as "
                "0=70GiB,cpu=200GiB"
            )
        key = int(device) if device.isdecimal() else device
        room[key] = int(size) if size.isdecimal() else size
    return room


def parse_quantization(value: str | None) -> Any:
    """A method by its short name, or a configuration as JSON."""
    if value is None or value.startswith("{"):
        return None if value is None else _json_object("--quantize", value)
    known = {
        f"bitsandbytes-{bits}bit": {"quant_method": "bitsandbytes", f"load_in_{bits}bit": True}
        for bits in (4, 8)
    }
    if value not in known:
        raise unknown_name("--quantize", value, known)
    return known[value]


def _json_object(name: str, value: str) -> dict[str, Any]:
    try:
        return dict(json.loads(value))
    except (ValueError, TypeError) as error:
        raise SteerlensError(f"{name} {value!r} is no JSON object: {error}") from error


# --- output ---


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    from steerlens.files import without_nan

    json.dump(without_nan(value), sys.stdout, ensure_ascii=False, allow_nan=False)
    print()
