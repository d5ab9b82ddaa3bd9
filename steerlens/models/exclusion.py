"""One thread at a time on a model.

Running a model here rearranges it for a while: the fast path swaps modules and weights, the plain
path puts hooks on it. Two threads that did so at once would steer each other's rows, and could
leave weights behind as garbage. So whatever rearranges a model, or puts steering on it, holds that
model's lock (`exclusively`). Within one thread the lock can be taken again; a second thread waits,
and Ctrl-C ends the wait. Models have separate locks, so two models run in two threads side by side.

A wait that could never end is an error instead: when the thread that holds the lock has ended
without letting go, and when threads wait for each other's models in a circle.

The lock belongs to the underlying Hugging Face model, because two bridges may share one. A plain
call ``model(tokens)`` takes no lock. Begun in another thread while the model is rearranged, it
waits until the model is whole again (`bystanders_wait`); one that is under way already is not
protected.
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
# Seconds between looks at whether waiting still makes sense; Ctrl-C is answered within one of them.
_BETWEEN_LOOKS = 0.1


class ModelLock:
    """A lock one thread may take several times, which refuses waits that could never end.

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
        me = threading.current_thread()
        if not self._lock.acquire(blocking=False):
            setattr(me, _WAITS_FOR, self)
            try:
                while not self._lock.acquire(timeout=_BETWEEN_LOOKS):
                    self._refuse_hopeless(me)
            finally:
                delattr(me, _WAITS_FOR)
        self._depth += 1
        self.owner = me

    def release(self) -> None:
        """Let go; the lock is free once it has been released as often as it was taken."""
        self._depth -= 1
        if not self._depth:
            self.owner = None
        self._lock.release()

    def _refuse_hopeless(self, me: threading.Thread) -> None:
        holder = self.owner
        if holder is not None and not holder.is_alive():
            raise ModelError(
                f"the model is held by a thread that has ended ({holder.name}), so waiting for it "
                "would never end; leave `steering.applied(model)` in the thread that entered it, "
                "and load the model again"
            )
        seen: set[int] = set()
        while holder is not None and id(holder) not in seen:
            if holder is me:
                raise ModelError(
                    "two threads wait for each other's models, each while it steers its own; "
                    "leave `steering.applied(model)` before using the other model"
                )
            seen.add(id(holder))
            waited_for: ModelLock | None = getattr(holder, _WAITS_FOR, None)
            holder = waited_for.owner if waited_for is not None else None


def lock_of(root: nn.Module) -> ModelLock:
    """The lock of an underlying model, made at the first call."""
    # setdefault on a dictionary is atomic, so two threads get the same lock.
    lock: ModelLock = root.__dict__.setdefault(_LOCK, ModelLock())
    return lock


@contextmanager
def exclusively(model: TransformerBridge) -> Iterator[None]:
    """Hold the model's lock for a while.

    Raises:
        ModelError: See `ModelLock.acquire`.
    """
    lock = lock_of(model.original_model)
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def bystanders_wait(root: nn.Module) -> Iterator[None]:
    """While this is open, a forward pass of the model begun by another thread waits for its end.

    To be entered by the thread that holds the lock.
    """
    lock, mine = lock_of(root), threading.get_ident()

    def before(_module: nn.Module, _args: Any) -> None:
        if threading.get_ident() != mine:
            lock.acquire()
            lock.release()

    handle = root.register_forward_pre_hook(before, prepend=True)
    try:
        yield
    finally:
        handle.remove()


def to_its_end(function: Callable[[], None]) -> None:
    """Run something that Ctrl-C must not cut short; an interrupt meanwhile acts afterwards.

    Only the main thread is interrupted, so only there is anything to be done.
    """
    handler = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or not callable(handler):
        function()
        return
    waiting: list[tuple[int, Any]] = []
    signal.signal(signal.SIGINT, lambda number, frame: waiting.append((number, frame)))
    try:
        function()
    finally:
        signal.signal(signal.SIGINT, handler)
    if waiting:
        handler(*waiting[0])
