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
    if function is None:
        return None
    if hasattr(function, "definition"):
        return function.definition
    if isinstance(function, functools.partial):
        keywords = {name: _value(value) for name, value in function.keywords.items()}
        return [described(function.func), [_value(value) for value in function.args], keywords]
    if isinstance(function, types.MethodType):
        return [described(function.__func__), _value(vars(function.__self__))]
    if isinstance(function, types.FunctionType):
        cells = [cell.cell_contents for cell in function.__closure__ or ()]
        defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        return [_source(function), [_value(v) for v in cells], [_value(v) for v in defaults]]
    if isinstance(function, types.BuiltinFunctionType | type):
        return f"{function.__module__}.{function.__qualname__}"
    return [_source(type(function)), _value(getattr(function, "__dict__", {}))]


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


def _value(value: Any) -> Any:
    """A value that a function holds; of what has no plain form, the type."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_value(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    if callable(value):
        return described(value)
    text = repr(value)
    return type(value).__qualname__ if " at 0x" in text else text
