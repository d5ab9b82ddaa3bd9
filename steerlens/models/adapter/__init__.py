"""The only place that uses private names of other libraries, one file per library.

TransformerLens, transformers, torch, accelerate and lm-eval keep some things that steering needs
under names they may change in any release: where a bridge keeps the module it wraps, which
attention a Hugging Face model runs, where PyTorch keeps hooks. Each has one function here. When a
name is gone, the function raises a `SteerlensError` that names the library, its version and what is
missing, so an upgrade breaks in one place and says where. ``tests/models/test_adapter.py`` has one
test for each name.

>>> private("pandas", int, "_data")                                    # doctest: +ELLIPSIS
Traceback (most recent call last):
steerlens.errors.SteerlensError: pandas ... has no int._data, which steerlens needs; install ...
"""

import importlib.metadata
from types import ModuleType
from typing import Any

from steerlens.errors import SteerlensError

__all__ = ["missing", "private"]


def missing(library: str, name: str) -> SteerlensError:
    """The error for a private name that the installed release does not have."""
    try:
        version = importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        version = "(not installed)"
    return SteerlensError(
        f"{library} {version} has no {name}, which steerlens needs; "
        "install a release listed in constraints.txt"
    )


def private(library: str, owner: Any, name: str) -> Any:
    """An attribute under a private name; a sentence if it is gone."""
    try:
        return getattr(owner, name)
    except AttributeError as error:
        kind = owner if isinstance(owner, type | ModuleType) else type(owner)
        raise missing(library, f"{kind.__name__}.{name}") from error
