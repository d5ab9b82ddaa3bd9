"""Work that another thread can end early.

Within `cancelled_by`, long computations look at an event between their parts (blocks of a forward
pass, steps of decoding, layers of evidence) and raise `CancelledError` once it is set. As with
Ctrl-C, everything is then put back; no `except Exception` on the way takes it for a fault.

>>> event = threading.Event()
>>> with cancelled_by(event):
...     check_cancelled()  # nothing happens
...     event.set()
...     try:
...         check_cancelled()
...     except CancelledError:
...         print("ended early")
ended early
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["CancelledError", "cancelled_by", "check_cancelled", "is_cancellable"]

_EVENT: ContextVar[threading.Event | None] = ContextVar("steerlens_cancellation", default=None)


class CancelledError(BaseException):
    """The work was cancelled by another thread."""


@contextmanager
def cancelled_by(event: threading.Event) -> Iterator[None]:
    """Within the block, this thread's work ends once the event is set."""
    token = _EVENT.set(event)
    try:
        yield
    finally:
        _EVENT.reset(token)


def is_cancellable() -> bool:
    """Whether this thread's work can be cancelled now."""
    return _EVENT.get() is not None


def check_cancelled() -> None:
    """Raise `CancelledError` where this thread's work has been cancelled."""
    event = _EVENT.get()
    if event is not None and event.is_set():
        raise CancelledError
