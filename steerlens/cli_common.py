"""What the commands share: loading the model, reading ids, writing JSON."""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from steerlens.errors import SteerlensError, unknown_name

if TYPE_CHECKING:
    from steerlens.activations import ResidualCache
    from steerlens.pairs import ContrastSet

__all__ = [
    "EVIDENCE_HELP",
    "caches",
    "evidence_kinds",
    "finite",
    "instruction_ids",
    "load",
    "pair_sets",
    "print_json",
]

EVIDENCE_HELP = "comma-separated: separability, probes, null, dimension, causal, components; or all"


def load(arguments: argparse.Namespace) -> Any:
    """The model a command was given."""
    from steerlens.models import load_model

    return load_model(arguments.model, dtype=arguments.dtype, device=arguments.device)


def instruction_ids(arguments: argparse.Namespace) -> list[str]:
    """Ids asked for, checked against the catalogue before any model is loaded."""
    from steerlens.instructions import catalogue

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
    from steerlens.pairs import ContrastSet, contrast_pairs

    if arguments.pairs is not None:
        if arguments.instruction or arguments.all:
            raise SteerlensError("give either --pairs or --instruction, not both")
        read = (
            ContrastSet.from_csv
            if arguments.pairs.suffix.lower() == ".csv"
            else ContrastSet.from_jsonl
        )
        return [read(arguments.pairs)]
    return [
        contrast_pairs(name, n=arguments.n, seed=arguments.seed, split="fit")
        for name in instruction_ids(arguments)
    ]


def caches(
    arguments: argparse.Namespace, sets: "Sequence[ContrastSet]", model: Any = None
) -> "list[ResidualCache]":
    """Residuals of each set, on the model asked for unless one is given."""
    from steerlens.activations import cache_residuals

    position: Any = arguments.position
    if re.fullmatch(r"-?[0-9]+", position):
        position = int(position)
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
