"""Who computes the pieces of a run: this process, or workers that are handed in.

Functions that take `workers` know only this protocol; `steerlens.workers` has Ray actors.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol, runtime_checkable

from transformer_lens.model_bridge import TransformerBridge

from steerlens.runs.store import Run

__all__ = ["Workers", "check_workers", "executor"]


@runtime_checkable
class Workers(Protocol):
    """How many workers, and what each may use; no result depends on it."""

    @property
    def workers(self) -> int:
        """Number of workers."""

    def check(self) -> None:
        """Refuse, before anything is written, workers that cannot be had."""

    def pool(self, model: TransformerBridge, judge: Any = None) -> AbstractContextManager[Any]:
        """Workers that hold the model and the judge, ready, while the context lasts."""


def check_workers(workers: Workers | None) -> None:
    """Refuse, before anything is written, workers that cannot be had.

    Raises:
        SteerlensError: With what to do instead.
    """
    if workers is not None:
        workers.check()


@contextmanager
def executor(
    model: TransformerBridge, workers: Workers | None, run: Run | None = None, judge: Any = None
) -> Iterator[Any]:
    """A pool of workers as a context, or None: everything is computed in this process.

    Args:
        model: The driver's model; workers load the same.
        workers: How many, with what, where.
        run: Its manifest records the workers. A new run is withdrawn when they cannot be had.
        judge: The driver's judge; workers load the same.

    Raises:
        SteerlensError: Workers that cannot be had.
    """
    with ExitStack() as stack:
        pool = None
        if workers is not None:
            try:
                pool = stack.enter_context(workers.pool(model, judge))
            except BaseException:
                if run is not None:
                    run.withdraw()
                raise
            if run is not None:
                run.note_workers(pool.described)
        yield pool
