"""What the commands share: loading the model, reading ids, writing JSON."""

import argparse
import json
import sys
from typing import Any

from steerlens.errors import SteerlensError

__all__ = ["finite", "instruction_ids", "load", "print_json"]


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
