"""Long work in a folder: stopped anywhere, resumed, and the same files at the end.

A search or an evaluation is a list of independent pieces. Each is named by what it is
(`piece_name`: model, rows, intervention, seed), and a `Run` keeps what is finished::

    with Run.open("out", kind="search", settings=settings, resume=False) as run:
        for piece in pieces:
            name = piece_name(piece)
            records = run.finished(name)
            if records is None:
                records = run.finish(name, compute(piece))
        run.write_jsonl("responses.jsonl", run.records(names))
        run.conclude()

The folder holds

- ``run.sqlite``: the manifest and the records of finished pieces;
- ``manifest.json``: the manifest (kind, settings, library versions, state), for people;
- ``.lock``: locked by the process at work, freed by the operating system however that process ends;
- the final files, each written whole or not at all.

**The final files do not depend on interruptions.** They are made from the pieces' records in the
order of the plan. `Run.finish` returns what a later process would read (tuples are lists, NaN is
None), so a record is the same whether it was just computed or read.

**Caveat.** Pieces must be computed the same way each time: whatever draws random numbers takes its
seed from its piece. A batch whose rows depend on what is left to do changes results in the last
digits, so a piece is a whole batch. Only one process writes, also when others compute; the folder
must be on a file system with working locks.
"""

from steerlens.runs.json_text import json_document, json_line, json_value, piece_name
from steerlens.runs.manifest import Manifest
from steerlens.runs.store import Run, read_manifest

__all__ = [
    "Manifest",
    "Run",
    "json_document",
    "json_line",
    "json_value",
    "piece_name",
    "read_manifest",
]
