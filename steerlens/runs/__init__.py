"""Long work in a folder: stopped anywhere, resumed, and the same files at the end.

A search or an evaluation is a list of independent pieces, each named by what it is
(`piece_name`: model, rows, intervention, seed). A `Run` keeps what is finished::

    with Run.open("out", kind="search", settings=settings, resume=False) as run:
        for piece in pieces:
            name = piece_name(piece)
            records = run.finished(name)
            if records is None:
                records = run.finish(name, compute(piece))
        run.write_jsonl("responses.jsonl", run.records(names))
        run.conclude()

The folder holds

- ``manifest.json``: the run's kind, settings, library versions and state; times stand only here;
- ``pieces.jsonl``: one line a finished piece, with a checksum, on the disk before `Run.finish`
  returns;
- ``.lock``: locked by the process at work; the operating system frees it when that process ends,
  however it ends;
- the final files, written whole or not at all.

**Why the final files do not depend on interruptions.** They are functions of the pieces' records,
taken in the order of the plan and not in the order of finishing. `Run.finish` gives back what a
later process would read (tuples are lists, NaN is None), so a record is the same whether it was
just computed or found; and `plain` has one spelling for each value.

**What is lost when.** A killed process loses the piece it was at. A last line that was not written
whole is cut off; a line that no longer fits its checksum is dropped with a warning, and its piece
is computed again. A piece that is finished twice (a retry, a late worker) keeps its first records.

**Caveat.** Pieces must be computed the same way each time: what draws random numbers takes its seed
from its piece. Batches whose make-up depends on what is left to do change results in the last
floating-point digits, so a piece is a whole batch. The lock holds between processes that see the
same file system with working `flock`; one process writes, also when others compute.
"""

from steerlens.runs.folder import Run
from steerlens.runs.manifest import Manifest, read_manifest
from steerlens.runs.pieces import PieceLog
from steerlens.runs.plain import json_document, json_line, piece_name, plain

__all__ = [
    "Manifest",
    "PieceLog",
    "Run",
    "json_document",
    "json_line",
    "piece_name",
    "plain",
    "read_manifest",
]
