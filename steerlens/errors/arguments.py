"""Checks of arguments where they arrive: numbers that are numbers, texts that are texts.

Python lets through values nobody means: ``True`` is layer 1, NaN passes most comparisons, and a
string is a sequence of prompts. It also refuses values that are meant: numpy's integers, and the
12.0 that a layer becomes in a table with gaps.

>>> whole_number("layer", 12.0)
12
>>> whole_number("layer", True)
Traceback (most recent call last):
    ...
steerlens.errors.SteerlensError: layer must be a whole number; got True
>>> texts("prompts", (text for text in ("Hi.", "Why?")))
('Hi.', 'Why?')
"""

import contextlib
import functools
import inspect
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, ParamSpec, TypeVar, get_args

import numpy as np
from torch import Tensor

from steerlens.errors import SteerlensError

__all__ = [
    "UNIT_TOLERANCE",
    "arguments",
    "finite_number",
    "layer_numbers",
    "text",
    "texts",
    "unit_direction",
    "whole_number",
]

# Unit vectors kept in half precision have norms within 2e-3 of 1.
UNIT_TOLERANCE = 1e-2


def whole_number(
    name: str,
    value: Any,
    least: int | None = None,
    error: type[SteerlensError] = SteerlensError,
) -> int:
    """The value as an int: Python's and numpy's integers, and floats that are whole.

    Raises:
        SteerlensError: "layer must be a whole number; got True", "… of at least 1; got 0".
    """
    number: int | None = None
    if not _is_truth_value(value):
        try:
            number = operator.index(value)
        except (TypeError, RuntimeError):  # RuntimeError: a tensor of several numbers
            if isinstance(value, Real) and math.isfinite(value) and float(value).is_integer():
                number = int(float(value))
    if number is None or (least is not None and number < least):
        raise error(_out_of_bounds(name, "whole", value, least))
    return number


def finite_number(
    name: str,
    value: Any,
    least: float | None = None,
    error: type[SteerlensError] = SteerlensError,
) -> float:
    """The value as a float: any real number but NaN and infinity, no truth value and no text.

    Raises:
        SteerlensError: "strength must be a finite number; got nan", "… of at least 0; got -1".
    """
    number = math.nan
    is_single = not isinstance(value, str | bytes) and getattr(value, "ndim", 0) == 0
    if is_single and not _is_truth_value(value):
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            number = float(value)
    if not math.isfinite(number) or (least is not None and number < least):
        raise error(_out_of_bounds(name, "finite", value, least))
    return number


def _is_truth_value(value: Any) -> bool:
    return isinstance(value, bool | np.bool_) or "bool" in str(getattr(value, "dtype", ""))


def _out_of_bounds(name: str, kind: str, value: Any, least: float | int | None) -> str:
    bound = "" if least is None else f" of at least {least:g}"
    return f"{name} must be a {kind} number{bound}; got {_shown(value)}"


def unit_direction(name: str, direction: Any, error: type[SteerlensError] = SteerlensError) -> None:
    """Refuse what is no unit vector: another shape, NaN, zero, or another length.

    Raises:
        SteerlensError: "… must be a unit vector of shape [d_model]; got …", with what to do.
    """
    if not isinstance(direction, Tensor) or direction.ndim != 1 or not direction.numel():
        shape = list(direction.shape) if isinstance(direction, Tensor) else type(direction).__name__
        raise error(f"{name} must be a tensor of shape [d_model]; got {shape}")
    # In the float32 it is applied in, where a large float64 is infinite.
    stored = direction.detach().float()
    if not bool(stored.isfinite().all()):
        raise error(f"{name} holds NaN, infinity or numbers that do not fit float32")
    norm = float(stored.double().norm())
    if abs(norm - 1) > UNIT_TOLERANCE:
        way = "" if norm == 0 else "; divide it by its norm, and keep the norm as gap for 'add'"
        raise error(f"{name} must be a unit vector; got one of norm {norm:.3g}{way}")


def layer_numbers(
    layers: Any, name: str = "layers", error: type[SteerlensError] = SteerlensError
) -> tuple[int, ...]:
    """Layer numbers from any iterable of whole numbers: a list, a range, a column of a table.

    Raises:
        SteerlensError: "layers must be whole numbers; got …".
    """
    if isinstance(layers, str | bytes | Mapping) or not isinstance(layers, Iterable):
        raise error(f"{name} must be a list of whole numbers; got {_shown(layers)}")
    return tuple(whole_number(f"every one of {name}", layer, error=error) for layer in layers)


def text(name: str, value: Any, error: type[SteerlensError] = SteerlensError) -> str:
    """The value as a plain string; subclasses of ``str``, such as numpy's, count.

    Raises:
        SteerlensError: "prompt is a chat of messages with roles; …", "prompt is a value of …".
    """
    if not isinstance(value, str):
        raise error(_no_text(name, value, "a string"))
    return str.__str__(value)


def texts(name: str, values: Any, error: type[SteerlensError] = SteerlensError) -> tuple[str, ...]:
    """Texts from any iterable of them, read once: a list, an array, a column, a generator.

    Raises:
        SteerlensError: One string instead of several, a chat of messages, or no text at all.
    """
    if isinstance(values, str):
        raise error(f"{name} is one string; give a list of strings")
    if isinstance(values, Mapping | bytes) or not isinstance(values, Iterable):
        raise error(_no_text(name, values, "a list of strings"))
    return tuple(text(f"entry {i} of {name}", value, error) for i, value in enumerate(values))


Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def arguments(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Check a function's plain arguments against its annotations.

    ``int`` takes whole numbers of any kind. ``float`` refuses truth values and anything that is no
    number; bounds, NaN and infinity are left to the function, which knows what they would mean.
    ``str`` refuses anything that is no text. A ``Sequence`` of them takes any iterable, once.
    Everything else is passed on unchanged.

    >>> @arguments
    ... def repeated(word: str, n: int = 1) -> str:
    ...     return word * n
    >>> repeated("a", np.int64(2))
    'aa'
    >>> repeated("a", n=2.5)
    Traceback (most recent call last):
        ...
    steerlens.errors.SteerlensError: n must be a whole number; got 2.5
    """
    signature = inspect.signature(function)
    doors = {
        name: door
        for name, parameter in signature.parameters.items()
        if (door := _DOORS.get(str(_without_none(parameter.annotation)))) is not None
    }
    optional = {
        name for name in doors if type(None) in get_args(signature.parameters[name].annotation)
    }

    @functools.wraps(function)
    def checked(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            if name in doors and not (value is None and name in optional):
                bound.arguments[name] = doors[name](name, value)
        return function(*bound.args, **bound.kwargs)

    return checked


def _without_none(annotation: Any) -> Any:
    """``T`` of ``T | None``; any other annotation unchanged."""
    others = [part for part in get_args(annotation) if part is not type(None)]
    return others[0] if len(others) == 1 and len(get_args(annotation)) == 2 else annotation


def _real(name: str, value: Any) -> Any:
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real | np.number | Tensor):
        raise SteerlensError(f"{name} must be a number; got {_shown(value)}")
    return value


def _several(name: str, value: Any) -> Iterable[Any]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise SteerlensError(f"{name} must be a list of numbers; got {_shown(value)}")
    return value


_DOORS: Mapping[str, Callable[[str, Any], Any]] = {
    str(int): whole_number,
    str(float): _real,
    str(str): text,
    str(Sequence[int]): lambda name, value: layer_numbers(value, name),
    str(Sequence[float]): lambda name, value: tuple(
        _real(f"every one of {name}", item) for item in _several(name, value)
    ),
    # One string may stand for a list of one; where it may not, the function says so.
    str(Sequence[str]): lambda name, value: value if isinstance(value, str) else texts(name, value),
}


def _no_text(name: str, value: Any, expected: str) -> str:
    first = value[0] if isinstance(value, list | tuple) and value else value
    if first is value and isinstance(value, Mapping) and "role" in value:
        return f"{name} is a message of a conversation; give a list of them, or {expected}"
    if isinstance(first, Mapping) and "role" in first:
        return (
            f"{name} is a chat of messages with roles; give {expected}, the user's message alone, "
            "which is put into the model's chat template here"
        )
    return f"{name} is a value of type {type(value).__name__}; give {expected}"


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"a value of type {type(value).__name__}"
