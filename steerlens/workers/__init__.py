"""Pieces of a run computed in several processes, on this machine or many, through Ray.

``--engine ray`` (or `WorkerSettings`) gives `search` and `evaluate` workers, each a Ray actor that
holds the model. The driver, the process that was started, cuts the work into pieces as ever, keeps
the run folder to itself, and fits vectors; what workers send back is written by the driver alone.
A piece is the unit computed alike by both engines (`steerlens.answers.answer_rows`): in float32 the
files are byte for byte those of ``--engine local``.

- Directions go through the object store once each (`steerlens.workers.packing`).
- A worker that dies costs the piece it was at: another takes its place, the piece is tried again,
  three times at most. A piece that fails each time is set aside and named at the end; the others
  are finished and kept.
- No Ray Data: its read tasks want a logical CPU beside the actors', and hang when there is none.

Ray is an extra (``pip install 'steerlens[ray]'``) and imported only when it is asked for.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from steerlens.workers.settings import WorkerSettings

__all__ = ["WorkerSettings", "elsewhere"]


def elsewhere(
    model: TransformerBridge, settings: WorkerSettings | None
) -> AbstractContextManager[Any]:
    """The pool of workers of a run as a context; without settings, nothing (computed here).

    Raises:
        SteerlensError: See `steerlens.workers.pool.worker_pool`.
    """
    if settings is None:
        return nullcontext()
    from steerlens.workers.pool import worker_pool

    return worker_pool(model, settings)
