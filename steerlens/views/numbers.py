"""Numbers in pictures and text: rounded, and missing ones (`None`, NaN, infinite) never as zeros.

>>> show(0.98765), show(-1.5, signed=True), show(None), show(float("nan"))
('0.99', '−1.50', '–', '–')
>>> compact([0.123456, None, 12345.6])
[0.1235, None, 12350.0]
"""

import math
from collections.abc import Iterable
from numbers import Real

import pandas as pd

from steerlens.errors import SteerlensError

__all__ = ["MISSING", "compact", "finite", "show", "show_interval", "significant"]

MISSING = "–"


def finite(value: object) -> float | None:
    """`value` as a float, or `None` where it is missing (`None`, `pandas.NA`, NaN, infinite).

    Raises:
        SteerlensError: `value` is neither a real number nor missing.
    """
    if value is None or value is pd.NA:
        return None
    if isinstance(value, bool) or not isinstance(value, Real):
        raise SteerlensError(f"expected a number or None, got {value!r}")
    number = float(value)
    return number if math.isfinite(number) else None


def significant(value: object, digits: int = 4) -> float | None:
    """`value` rounded to `digits` significant digits (what a figure can show), or `None`."""
    number = finite(value)
    return None if number is None else float(f"{number:.{digits}g}")


def compact(values: Iterable[object], digits: int = 4) -> list[float | None]:
    """Each value by `significant`: plain lists keep a figure's JSON short and readable."""
    short = f".{digits}g"
    return [
        # Most values are plain floats, and a report has half a million: no call for those.
        float(format(value, short))
        if type(value) is float and math.isfinite(value)
        else significant(value, digits)
        for value in values
    ]


def show(value: object, decimals: int = 2, *, signed: bool = False) -> str:
    """`value` in a fixed number of decimals with a true minus sign; an en dash where missing."""
    number = finite(value)
    if number is None:
        return MISSING
    text = f"{number:+.{decimals}f}" if signed else f"{number:.{decimals}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def show_interval(value: object, low: object, high: object, decimals: int = 2) -> str:
    """`value [low, high]`; the brackets are left out where both ends are missing.

    >>> show_interval(0.5, 0.25, 0.75), show_interval(0.5, None, None)
    ('0.50 [0.25, 0.75]', '0.50')
    """
    centre = show(value, decimals)
    if finite(low) is None and finite(high) is None:
        return centre
    return f"{centre} [{show(low, decimals)}, {show(high, decimals)}]"
