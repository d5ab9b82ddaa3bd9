"""A thread that does the newest piece of work; older ones are cancelled.

Work looks by itself whether it was cancelled (`steerlens.errors.cancellation`): between the steps
of decoding, the blocks of a pass, and the layers of evidence. When `Worker.cancel` returns, the
older work tells nothing more, and what it showed can be cleared.

The first of several moves of a slider starts at once. Moves that follow it closely wait until they
stop coming, so that dragging does not begin a run for every value on the way.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from steerlens.errors import SteerlensError
from steerlens.errors.cancellation import CancelledError, cancelled_by, check_cancelled

__all__ = ["Worker"]

# Seconds within which starts belong to one movement, and what each of them then waits for the next.
_MOVEMENT, _PAUSE = 0.25, 0.08


class Worker:
    """Does the newest work.

    Args:
        on_error: Called with the sentence of what went wrong.
    """

    def __init__(self, on_error: Callable[[str], None]) -> None:
        self.on_error = on_error
        self._stop = threading.Event()
        self._kept: tuple[str, threading.Event] | None = None
        self._in_use = threading.Lock()
        # Entered again by a callback that cancels.
        self._telling = threading.RLock()
        self._thread: threading.Thread | None = None
        self._started = -_MOVEMENT

    def start(self, work: Callable[[], None], needs: Collection[str] = ()) -> None:
        """Begin some work, in place of what is under way.

        Args:
            work: What is done in the thread.
            needs: If the older work is inside `kept` with one of these keys, it comes to the end
                of that first.
        """
        self.cancel(but=needs)
        now = time.monotonic()
        pause = _PAUSE if now - self._started < _MOVEMENT else 0.0
        self._started, self._stop = now, threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(work, self._stop, pause), daemon=True
        )
        self._thread.start()

    def cancel(self, but: Collection[str] = ()) -> None:
        """Give up what is under way; it tells nothing more and ends soon."""
        with self._telling:
            self._stop.set()
            if self._kept is not None and self._kept[0] not in but:
                self._kept[1].set()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until the newest work has ended."""
        if self._thread is not None:
            self._thread.join(seconds)

    @property
    def is_running(self) -> bool:
        """Whether the newest work is under way."""
        return self._thread is not None and self._thread.is_alive()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """The model to oneself: waits until the work has ended, and holds back the next."""
        with self._in_use:
            yield

    @contextmanager
    def kept(self, key: str) -> Iterator[None]:
        """Within the block, newer work that needs the same does not cancel this one."""
        event = threading.Event()
        with self._telling:
            check_cancelled()
            self._kept = key, event
        try:
            with cancelled_by(event):
                yield
        finally:
            self._kept = None
        check_cancelled()

    def tell(self, callback: Callable[..., None], *told: Any) -> None:
        """Call back from the work, unless it was cancelled."""
        with self._telling:
            check_cancelled()
            callback(*told)

    def _run(self, work: Callable[[], None], stop: threading.Event, pause: float) -> None:
        if stop.wait(pause):
            return
        with self._in_use, cancelled_by(stop):
            try:
                check_cancelled()
                work()
            except CancelledError:
                return
            except (SteerlensError, OSError) as error:
                self._tell_error(str(error), stop)
            except Exception as error:
                # Nothing waits for a worker: what is not told here leaves "answering" for ever.
                self._tell_error(f"{type(error).__name__}: {error}", stop)

    def _tell_error(self, sentence: str, stop: threading.Event) -> None:
        with self._telling:
            if not stop.is_set():
                self.on_error(sentence)
