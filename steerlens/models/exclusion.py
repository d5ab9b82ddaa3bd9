"""One thread at a time on a model.

Running a model rearranges it for a while: the fast path swaps modules and weights, the plain path
puts hooks on it. Two threads that did so at once would steer each other's rows and could leave
weights behind as garbage. So whatever rearranges or steers a model holds its lock (`exclusively`).
A thread may take the lock again; a second thread waits, and Ctrl-C ends the wait.

A wait that could never end is an error: when the thread that holds the lock has ended without
letting go, and when threads wait for each other's models in a circle.

The lock belongs to the Hugging Face model, because two bridges may share one. A plain call
``model(tokens)`` takes no lock; begun in another thread while the model is rearranged, it waits
(`bystanders_wait`). One that is already under way is not protected.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformer_lens.model_bridge import TransformerBridge

from steerlens.errors import ModelError

__all__ = ["ModelLock", "bystanders_wait", "exclusively", "lock_of", "to_its_end"]

_LOCK = "steerlens_lock"
_WAITS_FOR = "steerlens_waits_for"
# Seconds between looks at whether the wait can end; Ctrl-C is answered within that time.
_POLL_SECONDS = 0.1


class ModelLock:
    """A reentrant lock that refuses waits that could never end.

    Attributes:
        owner: The thread that holds it; ``None`` while it is free.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._depth = 0
        self.owner: threading.Thread | None = None

    def __reduce__(self) -> tuple[type["ModelLock"], tuple[()]]:
        """A copied or unpickled model has a free lock of its own."""
        return ModelLock, ()

    def acquire(self) -> None:
        """Take the lock, waiting for another thread if need be.

        Raises:
            ModelError: "the model is held by a thread that has ended …", "two threads wait for
                each other's models …".
        """
        thread = threading.current_thread()
        if not self._lock.acquire(blocking=False):
            setattr(thread, _WAITS_FOR, self)
            try:
                while not self._lock.acquire(timeout=_POLL_SECONDS):
                    self._refuse_endless_wait(thread)
            finally:
                delattr(thread, _WAITS_FOR)
        self._depth += 1
        self.owner = thread

    def release(self) -> None:
        """Let go once; the lock is free after as many releases as acquisitions."""
        self._depth -= 1
        if not self._depth:
            self.owner = None
        self._lock.release()

    def _refuse_endless_wait(self, thread: threading.Thread) -> None:
        holder = self.owner
        if holder is not None and not holder.is_alive():
            raise ModelError(
                f"the model is held by a thread that has ended ({holder.name}), so waiting for it "
                "would never end; leave `steering.applied(model)` in the thread that entered it, "
                "and load the model again"
            )
        seen: set[int] = set()
        while holder is not None and id(holder) not in seen:
            if holder is thread:
                raise ModelError(
                    "two threads wait for each other's models, each while it steers its own; "
                    "leave `steering.applied(model)` before using the other model"
                )
            seen.add(id(holder))
            awaited: ModelLock | None = getattr(holder, _WAITS_FOR, None)
            holder = None if awaited is None else awaited.owner


def lock_of(root: nn.Module) -> ModelLock:
    """The lock of a Hugging Face model, made at the first call."""
    # setdefault on a dictionary is atomic, so two threads get the same lock.
    lock: ModelLock = root.__dict__.setdefault(_LOCK, ModelLock())
    return lock


@contextmanager
def exclusively(model: TransformerBridge) -> Iterator[None]:
    """Within the block, this thread holds the model's lock.

    Raises:
        ModelError: As `ModelLock.acquire`.
    """
    lock = lock_of(model.original_model)
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def bystanders_wait(root: nn.Module) -> Iterator[None]:
    """Within the block, a forward pass that another thread begins waits for the block's end.

    The thread that enters it must hold the lock.
    """
    lock, holder = lock_of(root), threading.get_ident()

    def before(_module: nn.Module, _args: Any) -> None:
        if threading.get_ident() != holder:
            lock.acquire()
            lock.release()

    handle = root.register_forward_pre_hook(before, prepend=True)
    try:
        yield
    finally:
        handle.remove()


def to_its_end(function: Callable[[], None]) -> None:
    """Call a function that Ctrl-C must not cut short; an interrupt meanwhile acts afterwards."""
    handler = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or not callable(handler):  # only the main thread is interrupted
        function()
        return
    interrupts: list[tuple[int, Any]] = []
    signal.signal(signal.SIGINT, lambda number, frame: interrupts.append((number, frame)))
    try:
        function()
    finally:
        signal.signal(signal.SIGINT, handler)
    if interrupts:
        handler(*interrupts[0])
