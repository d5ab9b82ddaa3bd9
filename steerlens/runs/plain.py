r"""Plain JSON, one spelling for each value: what records, manifests and final files are made of.

`plain` turns a value into what reading it back would give: dictionaries with text as keys, lists,
text, whole numbers, floats, true, false and null. NaN and infinities, which JSON does not have,
become null; NumPy and torch scalars become numbers; anything else is refused with the place where
it stands.

>>> plain({"loss": float("nan"), "span": (3, 4.0)})
{'loss': None, 'span': [3, 4.0]}
>>> json_line({"text": "Grüße\u2028"})
'{"text": "Grüße\\u2028"}'

A piece is named by its content: the order of the keys does not matter, nor whether a whole number
is written as a float.

>>> piece_name({"layer": 24, "strength": 1}) == piece_name({"strength": 1.0, "layer": 24})
True
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from steerlens.errors import SteerlensError

__all__ = ["canonical", "json_document", "json_line", "piece_name", "plain"]

# 80 bits: among a million pieces, two of the same name have a chance of 4e-13.
NAME_DIGITS = 20
# Some readers of text end a line at these as well; inside JSON they can only stand in text, where
# their escapes mean the same.
LINE_ENDS = {"\u0085": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"}


class _NotPlainError(Exception):
    """Says why; the containers add on the way out where."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path: list[str] = []


def plain(value: Any, where: str = "value", *, finite: bool = False) -> Any:
    """The value as plain JSON types; see the module's page.

    Args:
        value: Anything made of JSON types, tuples, and NumPy or torch scalars.
        where: What the value is called in messages.
        finite: Refuse NaN and infinities instead of making them null (they cannot name anything).

    Raises:
        SteerlensError: "records[2].scores is a ndarray; expected plain JSON …".
    """
    try:
        return _plain(value, finite)
    except _NotPlainError as error:
        raise SteerlensError(where + "".join(reversed(error.path)) + " " + error.reason) from None
    except RecursionError:
        raise SteerlensError(f"{where} is nested too deep, or holds itself") from None


def _plain(value: Any, finite: bool) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _whole_text(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        if finite:
            raise _NotPlainError(f"is {float(value)}; expected a finite number")
        return None
    if isinstance(value, Mapping):
        return _plain_object(value, finite)
    if isinstance(value, list | tuple):
        return _plain_list(value, finite)
    if isinstance(value, np.generic) or (isinstance(value, torch.Tensor) and value.ndim == 0):
        item = value.item()
        if isinstance(item, bool | int | float | str):
            return _plain(item, finite)
    advice = "use .tolist()" if hasattr(value, "tolist") else "convert it first"
    raise _NotPlainError(f"is a {type(value).__name__}; expected plain JSON, {advice}")


def _plain_object(value: Mapping[Any, Any], finite: bool) -> dict[str, Any]:
    result = {}
    for key, item in value.items():
        if not isinstance(key, str):
            raise _NotPlainError(f"has the key {key!r}; JSON's keys are text, use str(…)")
        try:
            result[_whole_text(key)] = _plain(item, finite)
        except _NotPlainError as error:
            error.path.append(f".{key}")
            raise
    return result


def _plain_list(value: list[Any] | tuple[Any, ...], finite: bool) -> list[Any]:
    result = []
    for index, item in enumerate(value):
        try:
            result.append(_plain(item, finite))
        except _NotPlainError as error:
            error.path.append(f"[{index}]")
            raise
    return result


def _whole_text(text: str) -> str:
    """The text itself; halves of surrogate pairs, which no file can hold, become U+FFFD."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return str(text)


def json_document(value: Any, where: str = "value") -> str:
    """The value as the text of a JSON file: keys sorted, two spaces a level, a newline at the end.

    Sorted, because a document is put together from many pieces, and the order in which they came
    must not show.

    Raises:
        SteerlensError: The value is not plain JSON; see `plain`.
    """
    return (
        json.dumps(
            plain(value, where), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False
        )
        + "\n"
    )


def json_line(value: Any, where: str = "value") -> str:
    """The value as one line of a JSON Lines file, without the newline; keys keep their order.

    Raises:
        SteerlensError: The value is not plain JSON; see `plain`.
    """
    line = json.dumps(plain(value, where), ensure_ascii=False, allow_nan=False)
    for end, escape in LINE_ENDS.items():
        if end in line:
            line = line.replace(end, escape)
    return line


def canonical(value: Any, where: str = "value") -> str:
    """One text for everything that means the same: sorted keys, ``1.0`` spelled ``1``.

    Raises:
        SteerlensError: The value is not plain JSON, or holds NaN or an infinity.
    """
    numbers = _whole_numbers(plain(value, where, finite=True))
    return json.dumps(numbers, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _whole_numbers(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _whole_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole_numbers(item) for item in value]
    return value


def piece_name(content: Mapping[str, Any]) -> str:
    """The name of a piece of work: the beginning of the SHA-256 of what it consists of.

    Args:
        content: Everything its records depend on that is not in the run's settings.

    Returns:
        20 hexadecimal digits.

    Raises:
        SteerlensError: The content is not plain JSON, or holds NaN or an infinity.
    """
    text = canonical(content, "the piece's content")
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:NAME_DIGITS]
