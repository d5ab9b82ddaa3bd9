"""Pieces of a run computed by Ray actors, on this machine or on many.

``--engine ray`` (or `WorkerSettings`) gives `search` and `evaluate` workers, each of which holds
the model and the judge. The driver, the process that was started, cuts the work into pieces, fits
vectors, and alone writes the run folder. A piece is computed by the same function in both engines
(`steerlens.behaviour.answers.answer_rows`): in float32 the files are byte for byte those of
``--engine local``.

A worker compares its libraries with the driver's before it loads the model, and the model's hash
before it computes. Workers that cannot be had leave no new run folder behind. A worker that dies
costs the piece it was computing: another takes its place, and the piece is tried three times at
most. A piece that fails each time is named at the end; the others are finished and kept.

Ray is an extra (``pip install 'steerlens[ray]'``) and imported only when it is asked for.
"""

from steerlens.workers.settings import WorkerSettings

__all__ = ["WorkerSettings"]
