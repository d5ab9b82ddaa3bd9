r"""JSON with one spelling for each value, for records, manifests and final files.

`json_value` turns a value into what reading it back would give. Tuples become lists; NaN and
infinities, which JSON does not have, become null; NumPy and torch scalars become numbers. Anything
else is refused, with the place where it stands.

>>> json_value({"loss": float("nan"), "span": (3, 4.0)})
{'loss': None, 'span': [3, 4.0]}
>>> json_line({"text": "Grüße\u2028"})
'{"text": "Grüße\\u2028"}'

A piece of work is named by its content. Neither the order of the keys matters, nor whether a whole
number is written as a float.

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

__all__ = ["canonical_json", "json_document", "json_line", "json_value", "piece_name"]

# 80 bits: among a million pieces, two have the same name with a chance of 4e-13.
NAME_DIGITS = 20
# Some readers also end a line at these; inside JSON they stand only in text, where an escape means
# the same.
LINE_ENDS = {"\u0085": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def json_value(value: Any, where: str = "value", *, finite: bool = False) -> Any:
    """The value made of JSON's types only; see the module's docstring.

    Args:
        value: JSON types, tuples, and NumPy or torch scalars.
        where: The value's name in messages.
        finite: Refuse NaN and infinities instead of making them null.

    Raises:
        SteerlensError: "records[2].scores is a ndarray; expected plain JSON, use .tolist()".
    """
    try:
        return _json_value(value, where, finite)
    except RecursionError:
        raise SteerlensError(f"{where} is nested too deep, or holds itself") from None


def _json_value(value: Any, where: str, finite: bool) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _encodable(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if finite and not math.isfinite(value):
            raise SteerlensError(f"{where} is {float(value)}; expected a finite number")
        return float(value) if math.isfinite(value) else None
    if isinstance(value, list | tuple):
        return [_json_value(item, f"{where}[{i}]", finite) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise SteerlensError(
                    f"{where} has the key {key!r}; JSON's keys are text, use str(…)"
                )
        return {
            _encodable(key): _json_value(item, f"{where}.{key}", finite)
            for key, item in value.items()
        }
    if isinstance(value, np.generic) or (isinstance(value, torch.Tensor) and value.ndim == 0):
        item = value.item()
        if isinstance(item, bool | int | float | str):
            return _json_value(item, where, finite)
    advice = "use .tolist()" if hasattr(value, "tolist") else "convert it first"
    raise SteerlensError(f"{where} is a {type(value).__name__}; expected plain JSON, {advice}")


def _encodable(text: str) -> str:
    """The text, with U+FFFD for halves of surrogate pairs, which no file can hold."""
    return str(text).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def json_document(value: Any, where: str = "value") -> str:
    """The text of a JSON file: sorted keys, so the order in which pieces came does not show."""
    checked = json_value(value, where)
    return json.dumps(checked, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def json_line(value: Any, where: str = "value") -> str:
    """One line of a JSON Lines file, without the newline; keys keep their order."""
    line = json.dumps(json_value(value, where), ensure_ascii=False)
    for end, escape in LINE_ENDS.items():
        line = line.replace(end, escape)
    return line


def canonical_json(value: Any, where: str = "value") -> str:
    """One text for all values that mean the same: sorted keys, ``1.0`` spelled ``1``; finite."""
    numbers = _whole_numbers(json_value(value, where, finite=True))
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
    """The name of a piece of work: the first 20 hexadecimal digits of its content's SHA-256.

    The content is everything that the piece's records depend on beside the run's settings.

    Raises:
        SteerlensError: Content that is not plain JSON, or NaN or an infinity in it.
    """
    text = canonical_json(content, "the piece's content")
    return hashlib.sha256(text.encode()).hexdigest()[:NAME_DIGITS]
