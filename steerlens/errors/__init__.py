"""Errors: each is one sentence that says what was given, what was expected, and what to do.

All derive from `SteerlensError`, itself a `ValueError`, so one `except` catches everything that bad
input can cause. The command line prints the sentence and exits with code 2.
"""

import difflib
from collections.abc import Iterable

__all__ = [
    "ActivationError",
    "FileFormatError",
    "ModelError",
    "PairsError",
    "SteeringError",
    "SteerlensError",
    "SteerlensWarning",
    "UnknownNameError",
    "unknown_name",
]


class SteerlensError(ValueError):
    """Something the user gave cannot be used; the message says what and what to do instead."""


class SteerlensWarning(UserWarning):
    """Something that works but may mislead; the message says what, and how to check."""


class UnknownNameError(SteerlensError, KeyError):
    """A name (model, instruction, operation, …) that does not exist; near names are suggested."""

    # KeyError's own __str__ would show the sentence in quotes.
    __str__ = ValueError.__str__


class ModelError(SteerlensError):
    """A model cannot be found, read or used for what was asked."""


class PairsError(SteerlensError):
    """Contrast pairs are malformed; the message names the row and the field."""


class ActivationError(SteerlensError):
    """Activations cannot be cached or used (non-finite values, positions out of range, …)."""


class SteeringError(SteerlensError):
    """A vector or steering does not fit the model or the request."""


class FileFormatError(SteerlensError):
    """A file is truncated, foreign, or not what its name says."""


def unknown_name(kind: str, given: str, known: Iterable[str]) -> UnknownNameError:
    """The error for a name that is not among `known`, with the nearest ones suggested.

    >>> str(unknown_name("operation", "ad", ["add", "ablate"]))
    "unknown operation 'ad'; did you mean 'add'?"
    >>> str(unknown_name("scope", "xyz", ["all", "prompt"]))
    "unknown scope 'xyz'; choose one of 'all', 'prompt'"
    """
    names, given = list(known), str(given)  # None, 3: anything may arrive where a name should
    near = difflib.get_close_matches(given, names, n=3, cutoff=0.5)
    if not near and given.strip():
        # The last part of an id ("title") is too short a piece of it to count as close.
        near = [name for name in names if given.strip().lower() in name.lower()][:3]
    quoted = ", ".join(repr(name) for name in (near or names[:12]))
    if near:
        advice = f"did you mean {quoted}?"
    else:
        advice = f"choose one of {quoted}" + (", …" if len(names) > 12 else "")
    return UnknownNameError(f"unknown {kind} {given!r}; {advice}")


def first_line(error: BaseException) -> str:
    """The first line of another library's message, without its full stop, for use in a sentence.

    >>> first_line(ValueError("no such file.\\nTraceback …"))
    'no such file'
    >>> first_line(KeyError())
    'KeyError'
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
