"""Checks: whether a response shows a behaviour, written down without Python.

A check is a function of a response that gives a truth value or a score in [0, 1]. In a task file it
is a mapping with one key:

======================== =================================================================
``contains: text``       the response contains the text, in upper or lower case; of a list, all
``regex: pattern``       the pattern is found anywhere in the response (``re.search``)
``ifeval: id``           IFEval's check, its arguments beside it (``num_words: 50``)
``python: module:name``  the function, called with the response
``judge: {…}``           with ``model`` and ``question``: the probability that the model says yes
``all: [check, …]``      the lowest score of the checks
``any: [check, …]``      the highest score of the checks
``not: check``           one minus the score
======================== =================================================================

Scores combine as in fuzzy logic, so truth values combine as usual.

>>> check = check_from({"all": [{"contains": "arr"}, {"not": {"regex": "[0-9]"}}]})
>>> check("Arr, matey!"), check("Arr, 7 seas!")
(1.0, 0.0)
"""

import importlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from steerlens.errors import SteerlensError, first_line, unknown_name
from steerlens.tasks import ifeval

__all__ = ["PASS", "Check", "check_from", "function_named", "score_of"]

# The lowest score that counts as a pass.
PASS = 0.5

# How a check within 'all', 'any' or 'not' is named in messages.
_PART = "a part of the check"

Check = Callable[..., bool | float]

_KINDS = ("contains", "regex", "ifeval", "python", "judge", "all", "any", "not")


def check_from(spec: object, where: str = "check") -> Check:
    """The check that a mapping describes.

    Args:
        spec: As in the module's table.
        where: Where the mapping stands, for messages ("pirate.yaml: check").

    Raises:
        SteerlensError: The mapping has no known key or several, or its value cannot be used;
            `where` and the nearest names are given.
    """
    if not isinstance(spec, Mapping) or not spec:
        raise SteerlensError(
            f"{where} must be a mapping with one of {', '.join(_KINDS)}, but is {spec!r}"
        )
    kind = next(iter(spec))
    if kind not in _KINDS:
        raise SteerlensError(f"{where}: {unknown_name('kind of check', str(kind), _KINDS)}")
    value, more = spec[kind], {name: v for name, v in spec.items() if name != kind}
    if more and kind != "ifeval":
        raise SteerlensError(
            f"{where}: {kind!r} and {next(iter(more))!r} stand side by side; combine checks with "
            "'all' or 'any'"
        )
    if kind in ("all", "any"):
        if not isinstance(value, Sequence) or isinstance(value, str) or not value:
            raise SteerlensError(f"{where}: {kind!r} needs a list of checks, but has {value!r}")
        parts = [check_from(part, f"{where}: {kind}[{place}]") for place, part in enumerate(value)]
        return partial(_combined, min if kind == "all" else max, parts)
    if kind == "not":
        return partial(_negated, check_from(value, f"{where}: not"))
    if kind == "contains":
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, Sequence) or not texts or not all(_is_text(t) for t in texts):
            raise SteerlensError(f"{where}: 'contains' needs a text or texts, but has {value!r}")
        return partial(_contains, tuple(text.casefold() for text in texts))
    if kind == "regex":
        return partial(_matches, _pattern(value, where))
    if kind == "python":
        return function_named(value, where)
    if kind == "ifeval":
        return _ifeval(value, more, where)
    return _judge(value, where)


def score_of(verdict: object, check: str) -> float:
    """What a check returned, as a score in [0, 1].

    Raises:
        SteerlensError: It is neither a truth value nor a number in [0, 1].
    """
    try:
        number = getattr(verdict, "item", lambda: verdict)()  # numpy's and torch's scalars
    except (ValueError, RuntimeError):  # of an array
        number = None
    if isinstance(number, bool):
        return float(number)
    if isinstance(number, int | float) and math.isfinite(number) and 0 <= number <= 1:
        return float(number)
    raise SteerlensError(
        f"{check} returned {verdict!r}; it must return a truth value or a score from 0 to 1"
    )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _combined(
    best: Callable[[list[float]], float], parts: Sequence[Check], response: str, **kwargs: Any
) -> float:
    return best([score_of(part(response, **kwargs), _PART) for part in parts])


def _negated(part: Check, response: str, **kwargs: Any) -> float:
    return 1.0 - score_of(part(response, **kwargs), _PART)


def _contains(texts: Sequence[str], response: str, **_: Any) -> bool:
    folded = response.casefold()
    return all(text in folded for text in texts)


def _matches(pattern: re.Pattern[str], response: str, **_: Any) -> bool:
    return pattern.search(response) is not None


def _pattern(value: object, where: str) -> re.Pattern[str]:
    if not isinstance(value, str) or not value:
        raise SteerlensError(f"{where}: 'regex' needs a pattern, but has {value!r}")
    try:
        return re.compile(value)
    except re.error as error:
        raise SteerlensError(
            f"{where}: the pattern {value!r} is not a regular expression: {error}"
        ) from error


def function_named(value: object, where: str) -> Callable[..., Any]:
    """The function that "module:function" names.

    Raises:
        SteerlensError: The module cannot be imported, or has no such function.
    """
    module_name, _, name = str(value).partition(":")
    if not (isinstance(value, str) and module_name and name):
        raise SteerlensError(f"{where}: 'python' needs 'module:function', but has {value!r}")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise SteerlensError(
            f"{where}: the module {module_name!r} cannot be imported "
            f"({type(error).__name__}: {first_line(error)}); put its folder on PYTHONPATH"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, item in vars(module).items() if callable(item) and key[0] != "_"]
        raise SteerlensError(f"{where}: {unknown_name(f'function of {module_name}', name, known)}")
    return function  # type: ignore[no-any-return]


def _ifeval(value: object, kwargs: Mapping[str, Any], where: str) -> Check:
    known = ifeval.known_ifeval_ids()
    if value not in known:
        raise SteerlensError(f"{where}: {unknown_name('check of IFEval', str(value), known)}")
    identifier = str(value)
    lacking = [name for name in ifeval.required_kwargs(identifier) if name not in kwargs]
    if lacking:
        raise SteerlensError(f"{where}: the check {identifier!r} needs the argument {lacking[0]!r}")

    def check(response: str, **_: Any) -> bool:
        return ifeval.check(identifier, response, kwargs)

    check("A first call finds arguments that cannot be used.")
    return check


def _judge(value: object, where: str) -> Check:
    fields = ("model", "question")
    if not isinstance(value, Mapping) or not all(_is_text(value.get(name)) for name in fields):
        raise SteerlensError(f"{where}: 'judge' needs a model and a question, but has {value!r}")
    unknown = [name for name in value if name not in fields]
    if unknown:
        raise SteerlensError(f"{where}: {unknown_name('field of judge', str(unknown[0]), fields)}")
    # Found by name, since rooms import downwards and a judge runs a model.
    judges = importlib.import_module("steerlens.behaviour.judged_checks")
    return judges.judged_check(value["model"], value["question"])  # type: ignore[no-any-return]
