"""Arguments checked where they arrive: numbers that are numbers, texts that are texts.

Python's own rules let through what nobody means: ``True`` is the layer 1, NaN passes every
comparison but the one that would catch it, and a string is a sequence of prompts. They also keep
out what is meant: numpy's integers, and the 12.0 that a layer becomes in a table with gaps.

>>> whole_number("layer", 12.0)
12
>>> whole_number("layer", True)
Traceback (most recent call last):
    ...
steerlens.errors.SteerlensError: layer must be a whole number; got True
>>> texts("prompts", (text for text in ("Hi.", "Why?")))
('Hi.', 'Why?')
"""

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

    Args:
        name: The argument's name.
        value: What was given.
        least: The smallest value allowed.
        error: The kind of error to raise.

    Raises:
        SteerlensError: "layer must be a whole number; got True", "… of at least 1; got 0".
    """
    found: int | None = None
    if not isinstance(value, bool | np.bool_) and "bool" not in str(getattr(value, "dtype", "")):
        try:
            found = operator.index(value)
        except (TypeError, RuntimeError):  # RuntimeError: a tensor of several numbers
            if isinstance(value, Real) and math.isfinite(value) and float(value).is_integer():
                found = int(float(value))
    if found is None or (least is not None and found < least):
        bound = "" if least is None else f" of at least {least}"
        raise error(f"{name} must be a whole number{bound}; got {_shown(value)}")
    return found


def finite_number(
    name: str,
    value: Any,
    least: float | None = None,
    error: type[SteerlensError] = SteerlensError,
) -> float:
    """The value as a float: any real number but NaN and infinity, no truth value and no text.

    Args:
        name: The argument's name.
        value: What was given.
        least: The smallest value allowed.
        error: The kind of error to raise.

    Raises:
        SteerlensError: "strength must be a finite number; got nan", "… of at least 0; got -1".
    """
    found = math.nan
    single = not isinstance(value, bool | np.bool_ | str | bytes) and getattr(value, "ndim", 0) == 0
    if single and "bool" not in str(getattr(value, "dtype", "")):
        try:
            found = float(value)
        except (TypeError, ValueError, OverflowError):
            found = math.nan
    if not math.isfinite(found) or (least is not None and found < least):
        bound = "" if least is None else f" of at least {least:g}"
        raise error(f"{name} must be a finite number{bound}; got {_shown(value)}")
    return found


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

    Args:
        name: The argument's name.
        values: What was given.
        error: The kind of error to raise.

    Raises:
        SteerlensError: one string instead of several, a dictionary or a list of them (a chat),
            anything that is no text; the message says which.
    """
    if isinstance(values, str):
        raise error(f"{name} is one string; give a list of strings")
    if isinstance(values, Mapping | bytes) or not isinstance(values, Iterable):
        raise error(_no_text(name, values, "a list of strings"))
    return tuple(text(f"entry {i} of {name}", value, error) for i, value in enumerate(values))


Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def arguments(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """A function whose plain arguments are what its annotations say, or are refused.

    ``int`` takes whole numbers of any kind; ``float`` refuses truth values and what is no number
    (bounds, NaN and infinity are the function's own matter, which knows what they would mean), and
    ``str`` what is no text. A ``Sequence`` of them takes any iterable, once. Everything else is
    passed on as it is.

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
    optional = {name for name in doors if _takes_none(signature.parameters[name].annotation)}

    @functools.wraps(function)
    def checked(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            if name in doors and not (value is None and name in optional):
                bound.arguments[name] = doors[name](name, value)
        return function(*bound.args, **bound.kwargs)

    return checked


def _takes_none(annotation: Any) -> bool:
    return type(None) in get_args(annotation)


def _without_none(annotation: Any) -> Any:
    """The annotation itself, or what it is beside None."""
    if not _takes_none(annotation):
        return annotation
    others = [one for one in get_args(annotation) if one is not type(None)]
    return others[0] if len(others) == 1 else annotation


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
        _real(f"every one of {name}", one) for one in _several(name, value)
    ),
    # One string may stand for a list of one; where it may not, the function says so.
    str(Sequence[str]): lambda name, value: value if isinstance(value, str) else texts(name, value),
}


def _no_text(name: str, value: Any, expected: str) -> str:
    one = value[0] if isinstance(value, list | tuple) and value else value
    if isinstance(one, Mapping) and "role" in one:
        return (
            f"{name} is a chat of messages with roles; give {expected}, the user's message alone, "
            "which is put into the model's chat template here"
        )
    return f"{name} is a value of type {type(value).__name__}; give {expected}"


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"a value of type {type(value).__name__}"
