"""Pieces of a run computed in several processes, on this machine or many, through Ray.

``--engine ray`` (or `WorkerSettings`) gives `search` and `evaluate` workers, each a Ray actor that
holds the model, and the judge. The driver, the process that was started, cuts the work into pieces
as ever, keeps the run folder to itself, and fits vectors; what workers send back is written by the
driver alone.
A piece is the unit computed alike by both engines (`steerlens.answers.answer_rows`): in float32 the
files are byte for byte those of ``--engine local``.

- Directions and prompts go through the object store once each (`steerlens.workers.packing`).
- Libraries are compared before a worker loads its model (`steerlens.workers.equality`).
- Workers that cannot be had leave no new run folder behind.
- A worker that dies costs the piece it was at: another takes its place, the piece is tried again,
  three times at most. A piece that fails each time is set aside and named at the end; the others
  are finished and kept.
- No Ray Data: its read tasks want a logical CPU beside the actors', and hang when there is none.

Ray is an extra (``pip install 'steerlens[ray]'``) and imported only when it is asked for.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from transformer_lens.model_bridge import TransformerBridge

from steerlens.workers.settings import WorkerSettings

if TYPE_CHECKING:
    from steerlens.evaluation.judge import Judge
    from steerlens.runs import Run

__all__ = ["WorkerSettings", "check_workers", "elsewhere"]


def check_workers(settings: WorkerSettings | None) -> None:
    """Refuse, before anything is written, workers that cannot be had.

    Raises:
        SteerlensError: See `steerlens.workers.cluster.check_available`.
    """
    if settings is not None:
        from steerlens.workers.cluster import check_available

        check_available(settings)


@contextmanager
def elsewhere(
    model: TransformerBridge,
    settings: WorkerSettings | None,
    run: "Run | None" = None,
    judge: "Judge | None" = None,
) -> Iterator[Any]:
    """The pool of workers of a run as a context; without settings, nothing (computed here).

    Args:
        model: The driver's model; workers load the same.
        settings: How many, with what, where.
        run: Its manifest says who the workers are: machines, versions, devices. A new one is
            withdrawn when there are no workers to be had.
        judge: The driver's judge; workers load the same.

    Raises:
        SteerlensError: See `steerlens.workers.pool.worker_pool`.
    """
    if settings is None:
        yield None
        return
    from steerlens.workers.pool import worker_pool

    with ExitStack() as stack:
        try:
            pool = stack.enter_context(worker_pool(model, settings, judge))
        except BaseException:
            if run is not None:
                run.withdraw()
            raise
        if run is not None:
            run.note_engine(pool.described)
        yield pool
