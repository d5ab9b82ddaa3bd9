"""What a report's data must hold: checked at the door, so a page is never half a page.

The shape is a mapping of keys to what they hold: a type, a nested shape, or a list of one shape.
Keys that are not named are allowed. Numbers may be missing (`None` or NaN).

>>> check({"schema": "steerlens-report/1"})
Traceback (most recent call last):
...
steerlens.errors.SteerlensError: report data: key 'model' is missing
"""

from collections.abc import Mapping, Sequence
from typing import Any

from steerlens.errors import SteerlensError
from steerlens.files import REPORT_SCHEMA
from steerlens.views.layers import LAYER_COLUMNS, RECOVERY_COLUMNS

__all__ = ["SCHEMA", "check"]

SCHEMA = REPORT_SCHEMA
"""The name and version of the report's JSON."""

_ANY = object
_RESPONSE = {"text": str, "passed": _ANY}
_STEERED = {**_RESPONSE, "tokens": [{"token": str, "kl": _ANY}], "parts_at": _ANY}
_INSTRUCTION = {
    "id": str,
    "group": str,
    "description": str,
    "n_pairs": int,
    "best_layer": int,
    "best_layer_rule": str,
    "layers": [{"layer": int, **dict.fromkeys(LAYER_COLUMNS, _ANY)}],
    "recovery": [{"layer": int, **dict.fromkeys(RECOVERY_COLUMNS, _ANY)}],
    "steering": {"layer": int, "operation": str, "strength": _ANY, "scope": str, "rule": str},
    "samples": [
        {
            "prompt": str,
            "kwargs": dict,
            "baseline": _RESPONSE,
            "steered": _STEERED,
            "placebo": _STEERED,
        }
    ],
}
_REPORT = {
    "schema": str,
    "model": {"reference": str, "n_layers": int, "d_model": int},
    "provenance": {"command": str, "created": str, "seed": int, "n_pairs": int},
    "instructions": [_INSTRUCTION],
    "cosines": {"layer": int, "ids": [str], "matrix": [[_ANY]]},
}


def check(data: Mapping[str, Any]) -> None:
    """Nothing, if `data` can be drawn as a report.

    Raises:
        SteerlensError: a key is missing or holds the wrong kind of thing (the sentence names it),
            the schema is another one, or there are no instructions.
    """
    _check(data, _REPORT, "")
    if data["schema"] != SCHEMA:
        raise SteerlensError(f"report data: schema is {data['schema']!r}, expected {SCHEMA!r}")
    if not data["instructions"]:
        raise SteerlensError("report data: 'instructions' is empty; a report needs at least one")


def _check(value: Any, shape: Any, where: str) -> None:
    if isinstance(shape, dict):
        if not isinstance(value, Mapping):
            raise _wrong(where, "a mapping", value)
        for key, inner in shape.items():
            path = f"{where}.{key}" if where else key
            if key not in value:
                raise SteerlensError(f"report data: key {path!r} is missing")
            _check(value[key], inner, path)
    elif isinstance(shape, list):
        if isinstance(value, str | bytes) or not isinstance(value, Sequence):
            raise _wrong(where, "a list", value)
        for index, item in enumerate(value):
            _check(item, shape[0], f"{where}[{index}]")
    elif shape is dict:
        if not isinstance(value, Mapping):
            raise _wrong(where, "a mapping", value)
    elif not isinstance(value, shape) or (shape is int and isinstance(value, bool)):
        raise _wrong(where, shape.__name__, value)


def _wrong(where: str, expected: str, value: Any) -> SteerlensError:
    given = repr(value)
    given = given if len(given) <= 60 else f"{given[:57]}…"
    what = f"{where!r} must be" if where else "must be"
    return SteerlensError(f"report data: {what} {expected}, not {given}")
