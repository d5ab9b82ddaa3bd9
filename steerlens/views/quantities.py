"""What a token can be shaded by: one of `QUANTITIES`, or any numeric column; and how strongly.

>>> kl = quantity_of("kl", [{"kl": 0.5}])
>>> kl.value({"kl": 0.5}), kl.name, kl.signed
(0.5, 'KL(steered‖baseline)', False)
>>> quantity_of("my_score", [{"my_score": -1.0}]).signed
True
>>> level(0.25, 1.0), level(-1.0, 1.0), level(None, 1.0)
(4, -8, 0)
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from steerlens.errors import SteerlensError, unknown_name
from steerlens.views.numbers import finite
from steerlens.views.tables import Rows

__all__ = [
    "LEVELS",
    "QUANTITIES",
    "Quantity",
    "Token",
    "level",
    "limit_of",
    "quantity_of",
    "scale_decimals",
    "token_rows",
]

Token = Mapping[str, Any]
LEVELS = 8


@dataclass(frozen=True)
class Quantity:
    """Something a token has a number for: `value` gives it, `None` where it is missing.

    `name` and `unit` are for legends, `signed` quantities have two directions from zero, and a row
    needs `columns`.
    """

    value: Callable[[Token], float | None]
    name: str
    unit: str
    signed: bool
    columns: tuple[str, ...]


def _plain(column: str, name: str, unit: str, signed: bool) -> Quantity:
    return Quantity(lambda token: finite(token.get(column)), name, unit, signed, (column,))


def _change(before: str, after: str, name: str, unit: str) -> Quantity:
    def difference(token: Token) -> float | None:
        start, end = finite(token.get(before)), finite(token.get(after))
        return None if start is None or end is None else end - start

    return Quantity(difference, name, unit, True, (before, after))


_STREAM = "residual units"
QUANTITIES: Mapping[str, Quantity] = {
    "kl": _plain("kl", "KL(steered‖baseline)", "nats", False),
    "logprob_change": _change(
        "logprob_baseline", "logprob_steered", "change of log-probability", "nats"
    ),
    "projection_change": _change(
        "projection_before", "projection_after", "change of projection", _STREAM
    ),
    "entropy_change": _plain("entropy_change", "change of entropy", "nats", True),
    "surprisal": _plain("surprisal", "surprisal", "nats", False),
    "entropy": _plain("entropy", "entropy of the next token", "nats", False),
    "projection": _plain("projection", "projection on the direction", _STREAM, True),
    "contribution": _plain("contribution", "contribution to log-probability", "nats", True),
}


def quantity_of(name: str, rows: Sequence[Token]) -> Quantity:
    """A quantity by name: one of `QUANTITIES`, or a column that every row has.

    Raises:
        UnknownNameError: Neither.
    """
    if name in QUANTITIES:
        return QUANTITIES[name]
    if not rows or any(name not in row for row in rows):
        raise unknown_name("quantity", name, QUANTITIES)
    signed = any((finite(row[name]) or 0.0) < 0 for row in rows)
    return _plain(name, name.replace("_", " "), "", signed)


def token_rows(tokens: Rows, quantity: str) -> tuple[list[dict[str, Any]], Quantity]:
    """The rows as mappings, and the quantity; a row without its text or value is refused.

    Raises:
        SteerlensError: A row without its text or its value.
        UnknownNameError: A quantity that does not exist.
    """
    if isinstance(tokens, pd.DataFrame):
        rows = [{str(k): v for k, v in row.items()} for row in tokens.to_dict("records")]
    else:
        rows = [dict(row) for row in tokens]
    shaded = quantity_of(quantity, rows)
    for index, row in enumerate(rows):
        for key in ("token", *shaded.columns):
            if key not in row:
                raise SteerlensError(f"token {index} of the strip has no {key!r}")
        if not isinstance(row["token"], str):
            raise SteerlensError(f"token {index} of the strip is {row['token']!r}, not text")
    return rows, shaded


def limit_of(rows: Sequence[Token], quantity: Quantity, limit: float | None = None) -> float:
    """|value| of the strongest shade: the limit given, or the largest |value|, at least 1e-6.

    Raises:
        SteerlensError: A limit that is not a number above zero.
    """
    if limit is None:
        return max([1e-6, *(abs(quantity.value(token) or 0.0) for token in rows)])
    if not (math.isfinite(limit) and limit > 0):
        raise SteerlensError(f"limit must be a number above zero, not {limit!r}")
    return limit


def level(value: float | None, limit: float) -> int:
    """0 (nothing, or unknown) to `LEVELS`, negative below zero."""
    if value is None:
        return 0
    steps = math.ceil(LEVELS * math.sqrt(min(abs(value) / limit, 1.0)) - 0.5)
    return int(math.copysign(steps, value))


def scale_decimals(limit: float) -> int:
    """Decimals that show two significant digits of `limit`, at least two."""
    return max(2, 1 - math.floor(math.log10(limit)))
