"""Pieces of a run computed in several processes, on this machine or many, through Ray.

``--engine ray`` (or `WorkerSettings`) gives `search` and `evaluate` workers, each a Ray actor that
holds the model, and the judge. The driver, the process that was started, cuts the work into pieces
as ever, keeps the run folder to itself, and fits vectors; what workers send back is written by the
driver alone.
A piece is the unit computed alike by both engines (`steerlens.behaviour.answers.answer_rows`): in
float32 the files are byte for byte those of ``--engine local``.

- Directions and prompts go through the object store once each (`steerlens.workers.packing`).
- Libraries are compared before a worker loads its model (`steerlens.workers.equality`).
- Workers that cannot be had leave no new run folder behind.
- A worker that dies costs the piece it was at: another takes its place, the piece is tried again,
  three times at most. A piece that fails each time is set aside and named at the end; the others
  are finished and kept.
- No Ray Data: its read tasks want a logical CPU beside the actors', and hang when there is none.

Ray is an extra (``pip install 'steerlens[ray]'``) and imported only when it is asked for.
"""

from steerlens.workers.settings import WorkerSettings

__all__ = ["WorkerSettings"]
