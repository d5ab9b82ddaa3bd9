"""What the commands share: loading the model, reading ids, writing JSON."""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerlens.errors import SteerlensError, unknown_name

if TYPE_CHECKING:
    from steerlens.activations.cache import ResidualCache
    from steerlens.tasks.pairs import ContrastSet

__all__ = [
    "DEFAULT_PAIRS",
    "EVIDENCE_HELP",
    "add_placement",
    "caches",
    "device_map_of",
    "evidence_kinds",
    "finite",
    "instruction_ids",
    "load",
    "local_path",
    "max_memory_of",
    "pair_sets",
    "position_of",
    "positive",
    "print_json",
    "refuse",
    "remark",
    "seed_of",
]

DEFAULT_PAIRS = 64
EVIDENCE_HELP = "comma-separated: separability, probes, null, dimension, causal, components; or all"


def add_placement(parser: argparse.ArgumentParser) -> None:
    """Options for models too large for one device."""
    large = parser.add_argument_group("large models")
    large.add_argument(
        "--device-map",
        metavar="MAP",
        help="spread layers over devices: auto, balanced, sequential, or a JSON object",
    )
    large.add_argument(
        "--max-memory",
        metavar="SIZES",
        help="with --device-map: room on each device, such as 0=70GiB,cpu=200GiB",
    )
    large.add_argument(
        "--quantize",
        metavar="HOW",
        help="bitsandbytes-8bit, bitsandbytes-4bit, or a JSON object with quant_method",
    )


def local_path(said: str) -> Path:
    """A path of this machine."""
    if "://" in said:
        raise argparse.ArgumentTypeError(
            f"{said} is a URL; give a path of this machine, and copy what is written there "
            "afterwards (for example with 'aws s3 sync')"
        )
    return Path(said)


def positive(said: str) -> int:
    """A count: a whole number of at least 1."""
    if not re.fullmatch(r"[0-9]+", said) or int(said) < 1:
        raise argparse.ArgumentTypeError(f"{said} is not a whole number of at least 1")
    return int(said)


def refuse(arguments: argparse.Namespace, options: Sequence[str], because: str) -> None:
    """Refuse options that would have no effect beside the others.

    Args:
        arguments: The parsed command; an option that was not given is None, False or empty.
        options: As they are written, such as ``--n``.
        because: Goes on from the option's name: what it is for, or what takes its place.

    Raises:
        SteerlensError: "--n draws pairs of an instruction, …; leave it out".
    """
    for option in options:
        value = getattr(arguments, option[2:].replace("-", "_"))
        if value is not None and value is not False and value != []:
            raise SteerlensError(f"{option} {because}; leave it out")


def remark(sentence: str) -> None:
    """Something worth knowing that stops nothing, on standard error."""
    print(f"steerlens: note: {sentence}", file=sys.stderr)


def seed_of(arguments: argparse.Namespace, unused: str | None = None) -> int:
    """The seed asked for, 0 by default; where nothing is drawn with it, that is said.

    Args:
        arguments: The parsed command.
        unused: Why nothing is drawn, where nothing is: goes on from "--seed has no effect".
    """
    if arguments.seed is not None and unused is not None:
        remark(f"--seed has no effect {unused}")
    return 0 if arguments.seed is None else int(arguments.seed)


def load(arguments: argparse.Namespace) -> Any:
    """The model a command was given."""
    from steerlens.models.loading import load_model

    return load_model(
        arguments.model,
        dtype=arguments.dtype,
        device=arguments.device,
        device_map=device_map_of("--device-map", arguments.device_map),
        max_memory=max_memory_of("--max-memory", arguments.max_memory),
        quantization_config=_quantization_of(arguments.quantize),
    )


def device_map_of(option: str, said: str | None) -> Any:
    """A device map as `load_model` takes it; `SteerlensError` for JSON that is no object."""
    return _json_object(option, said) if said is not None and said.startswith("{") else said


def max_memory_of(option: str, said: str | None) -> dict[int | str, int | str] | None:
    """Sizes by device.

    >>> max_memory_of("--max-memory", "0=70GiB, cpu=200GiB")
    {0: '70GiB', 'cpu': '200GiB'}

    Raises:
        SteerlensError: "--max-memory '70GiB' …; give sizes such as …".
    """
    if said is None:
        return None
    room: dict[int | str, int | str] = {}
    for part in said.split(","):
        device, equals, size = (one.strip() for one in part.partition("="))
        if not (device and equals and size):
            raise SteerlensError(
                f"{option} {said!r} has a part that is no size of a device; give sizes such as "
                "0=70GiB,cpu=200GiB"
            )
        room[int(device) if device.isdecimal() else device] = (
            int(size) if size.isdecimal() else size
        )
    return room


def _quantization_of(said: str | None) -> Any:
    if said is None or said.startswith("{"):
        return None if said is None else _json_object("--quantize", said)
    known = {
        f"bitsandbytes-{bits}bit": {"quant_method": "bitsandbytes", f"load_in_{bits}bit": True}
        for bits in (4, 8)
    }
    if said not in known:
        raise unknown_name("--quantize", said, known)
    return known[said]


def _json_object(option: str, said: str) -> dict[str, Any]:
    try:
        found = json.loads(said)
    except ValueError as error:
        raise SteerlensError(f"{option} {said!r} is no JSON object: {error}") from error
    return dict(found)


def instruction_ids(arguments: argparse.Namespace) -> list[str]:
    """Ids asked for, checked against the catalogue before any model is loaded."""
    from steerlens.tasks import catalogue

    if arguments.all:
        if arguments.instruction:
            raise SteerlensError("give either --all or --instruction, not both")
        return list(catalogue)
    if not arguments.instruction:
        raise SteerlensError("give --instruction ID (it repeats), or --all for the catalogue")
    return [catalogue[name].id for name in dict.fromkeys(arguments.instruction)]


def evidence_kinds(said: str) -> tuple[str, ...]:
    """The kinds of evidence asked for, checked before any model is loaded."""
    from steerlens.attribution.evidence import ALL_EVIDENCE

    if said == "all":
        return ALL_EVIDENCE
    names = tuple(name.strip() for name in said.split(","))
    for name in names:
        if name not in ALL_EVIDENCE:
            raise unknown_name("kind of evidence", name, ALL_EVIDENCE)
    return names


def pair_sets(arguments: argparse.Namespace) -> "list[ContrastSet]":
    """Contrast pairs of the file, or of each instruction asked for."""
    from steerlens.tasks.pairs import ContrastSet, contrast_pairs

    position_of(arguments)
    if arguments.pairs is not None:
        if arguments.instruction or arguments.all:
            raise SteerlensError("give either --pairs or --instruction, not both")
        refuse(
            arguments,
            ["--n"],
            "is how many pairs of an instruction are drawn, and all pairs of --pairs FILE are used",
        )
        read = (
            ContrastSet.from_csv
            if arguments.pairs.suffix.lower() == ".csv"
            else ContrastSet.from_jsonl
        )
        return [read(arguments.pairs)]
    return [
        contrast_pairs(
            name,
            n=DEFAULT_PAIRS if arguments.n is None else arguments.n,
            seed=seed_of(arguments),
            split="fit",
        )
        for name in instruction_ids(arguments)
    ]


def caches(
    arguments: argparse.Namespace, sets: "Sequence[ContrastSet]", model: Any = None
) -> "list[ResidualCache]":
    """Residuals of each set, on the model asked for unless one is given."""
    from steerlens.activations.cache import cache_residuals

    position = position_of(arguments)
    model = load(arguments) if model is None else model
    return [
        cache_residuals(
            model,
            pairs,
            position=position,
            batch_size=arguments.batch_size,
            chat_format=arguments.chat_format,
        )
        for pairs in sets
    ]


def position_of(arguments: argparse.Namespace) -> int | str:
    """Where residuals are read: a name, or the number of a token; checked before the model loads.

    Raises:
        UnknownNameError: A name that is no position.
    """
    said: str = arguments.position
    if re.fullmatch(r"-?[0-9]+", said):
        return int(said)
    from steerlens.activations.cache import POSITIONS

    if said not in POSITIONS:
        raise unknown_name("position", said, POSITIONS)
    return said


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    json.dump(finite(value), sys.stdout, ensure_ascii=False, allow_nan=False)
    print()


def finite(value: Any) -> Any:
    """JSON has no NaN: undefined numbers become null."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {name: finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return value
