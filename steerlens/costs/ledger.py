"""What a run took, part by part: wall time and tokens, measured where the work is done.

A `Ledger` is asked for a part in a ``with`` statement. Parts do not overlap: while an inner one is
open, the outer one's time stands still, so that the parts of one thread sum to what it worked.

>>> ledger = Ledger()
>>> with ledger.part("answers"):
...     ledger.count("answers", rows=2, tokens=30)
>>> ledger.to_json()["answers"]["tokens"]
30
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Ledger"]


class Ledger:
    """Seconds and counts by part; several threads may write to it."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self._seconds: dict[str, float] = {}
        self._counts: dict[str, dict[str, int]] = {}
        self._lock = threading.Lock()
        self._open = threading.local()

    @property
    def seconds(self) -> float:
        """Wall time since this ledger was made."""
        return time.perf_counter() - self.started

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """The block's time, less that of parts opened inside it, is written to `name`."""
        stack: list[float] = self._open.__dict__.setdefault("stack", [])
        started = time.perf_counter()
        stack.append(0.0)
        try:
            yield
        finally:
            whole = time.perf_counter() - started
            inside = stack.pop()
            if stack:
                stack[-1] += whole
            with self._lock:
                self._seconds[name] = self._seconds.get(name, 0.0) + whole - inside

    def count(self, name: str, **counts: int) -> None:
        """Add to the counts of a part."""
        with self._lock:
            own = self._counts.setdefault(name, {})
            for key, value in counts.items():
                own[key] = own.get(key, 0) + value

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Seconds and counts of each part."""
        with self._lock:
            names = sorted({*self._seconds, *self._counts})
            return {
                name: {
                    "seconds": round(self._seconds.get(name, 0.0), 3),
                    **self._counts.get(name, {}),
                }
                for name in names
            }
