"""Who computes the pieces of a run: this process, or workers that are handed in.

Functions that take `workers` know no more of them than this page. `steerlens.workers` has the one
kind there is, Ray actors.
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
        """How many."""

    def check(self) -> None:
        """Refuse, before anything is written, workers that cannot be had.

        Raises:
            SteerlensError: With what to do instead.
        """

    def pool(self, model: TransformerBridge, judge: Any = None) -> AbstractContextManager[Any]:
        """Workers that hold the model and the judge, ready, while the context lasts."""


def check_workers(workers: Workers | None) -> None:
    """Refuse, before anything is written, workers that cannot be had.

    Raises:
        SteerlensError: As `Workers.check`.
    """
    if workers is not None:
        workers.check()


@contextmanager
def executor(
    model: TransformerBridge,
    workers: Workers | None,
    run: Run | None = None,
    judge: Any = None,
) -> Iterator[Any]:
    """The pool of workers of a run as a context; without workers, nothing (computed here).

    Args:
        model: The driver's model; workers load the same.
        workers: How many, with what, where.
        run: Its manifest says who the workers are: machines, versions, devices. A new one is
            withdrawn when there are no workers to be had.
        judge: The driver's judge; workers load the same.

    Raises:
        SteerlensError: Workers that cannot be had.
    """
    if workers is None:
        yield None
        return
    with ExitStack() as stack:
        try:
            pool = stack.enter_context(workers.pool(model, judge))
        except BaseException:
            if run is not None:
                run.withdraw()
            raise
        if run is not None:
            run.note_workers(pool.described)
        yield pool
