"""What a function is, as plain data: two processes agree, and a changed function differs.

A task's check and rewrite are part of its definition. A function is described by its source, its
defaults and the values it closes over; by its byte code where no source is kept; a partial by its
parts; an object by the source of its class and its attributes. Globals that a function uses are not
followed.
"""

import functools
import hashlib
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["described"]


def described(function: Callable[..., Any] | None) -> Any:
    """A function as JSON."""
    return None if function is None else _described(function, ())


def _described(function: Any, within: tuple[int, ...]) -> Any:
    """A function that is held by those of these identities; what holds itself is named once."""
    if id(function) in within:
        return "itself"
    within = (*within, id(function))
    if hasattr(function, "definition"):
        return function.definition
    if isinstance(function, functools.partial):
        inner = _described(function.func, within)
        return [inner, _value(function.args, within), _value(function.keywords, within)]
    if isinstance(function, types.MethodType):
        inner = _described(function.__func__, within)
        return [inner, _value(getattr(function.__self__, "__dict__", {}), within)]
    if isinstance(function, types.FunctionType):
        cells = [_content(cell) for cell in function.__closure__ or ()]
        defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        return [_source(function), _value(cells, within), _value(defaults, within)]
    if isinstance(function, types.BuiltinFunctionType | type):
        return f"{function.__module__}.{function.__qualname__}"
    return [_source(type(function)), _value(getattr(function, "__dict__", {}), within)]


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that has no value yet
        return None


def _source(code: Any) -> str:
    try:
        return inspect.getsource(code)
    except (OSError, TypeError):
        name = getattr(code, "__qualname__", type(code).__name__)
        return f"{name} {_digest(code.__code__)}" if hasattr(code, "__code__") else name


def _digest(code: types.CodeType) -> str:
    """Of byte code, names and constants; nested code is followed."""
    constants = [
        _digest(constant) if isinstance(constant, types.CodeType) else repr(constant)
        for constant in code.co_consts
    ]
    text = f"{code.co_code.hex()} {code.co_names} {constants}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _value(value: Any, within: tuple[int, ...]) -> Any:
    """A value that a function holds; of what has no plain form, the type."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if id(value) in within:
        return "itself"
    if callable(value):
        return _described(value, within)
    within = (*within, id(value))
    if isinstance(value, Mapping):
        return {str(key): _value(item, within) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_value(item, within) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    text = repr(value)
    return type(value).__qualname__ if " at 0x" in text else text
