"""The same libraries on both sides, compared before a worker loads its model.

Files are promised to be those of the local engine, byte for byte. Another release of one of
`SAME_LIBRARIES` may compute other numbers, or not read what the driver sends (numpy arrays travel
pickled), so it is refused. Python and Ray are compared by Ray itself, when it connects.

>>> check_same("node-7", {"torch": "2.6.0"}, {"torch": "2.6.0"}, ("torch",))
>>> check_same("node-7", {"torch": "2.5.1"}, {"torch": "2.6.0"}, ("torch",))
Traceback (most recent call last):
    ...
steerlens.errors.SteerlensError: the worker on node-7 has torch 2.5.1, this process 2.6.0; install \
the same on every machine
"""

import platform
from collections.abc import Mapping, Sequence

from steerlens.errors import SteerlensError
from steerlens.files import library_versions

__all__ = ["SAME_LIBRARIES", "check_same", "own_versions"]

SAME_LIBRARIES = ("steerlens", "torch", "transformers", "transformer-lens", "numpy")


def own_versions() -> dict[str, str]:
    """Versions of Python and of the libraries results depend on, in this process."""
    return {"python": platform.python_version(), **library_versions()}


def check_same(
    machine: str,
    theirs: Mapping[str, str],
    own: Mapping[str, str],
    libraries: Sequence[str] = SAME_LIBRARIES,
) -> None:
    """Refuse a worker whose libraries are not the driver's.

    Args:
        machine: The worker's, for the sentence.
        theirs: What the worker says of `own_versions`.
        own: The driver's.
        libraries: Those that must be equal.

    Raises:
        SteerlensError: "the worker on node-7 has torch 2.5.1, this process 2.6.0; install …".
    """
    for name in libraries:
        there, here = theirs.get(name, "not installed"), own.get(name, "not installed")
        if there != here:
            raise SteerlensError(
                f"the worker on {machine} has {name} {there}, this process {here}; install the "
                "same on every machine"
            )
