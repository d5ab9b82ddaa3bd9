"""A piece of long work for the tests of run folders; also a program that does it and is killed.

``python run_example.py FOLDER PAUSE`` works in the folder and prints the name of each piece when it
is finished. With ``--die-in-final-file`` it kills itself (SIGKILL) while it writes the last file.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from steerlens.runs import Run, piece_name

SETTINGS: dict[str, Any] = {"model": "tiny", "weights_hash": "sha256:00", "n": 12, "seed": 0}
PIECES = [{"layer": layer, "strength": layer / 3} for layer in range(12)]
NAMES = [piece_name(piece) for piece in PIECES]
FINAL_FILES = ("summary.json", "responses.jsonl")


def open_run(folder: Path, *, resume: bool = False, **changes: Any) -> Run:
    """The example's run, with some of its settings changed."""
    return Run.open(folder, kind="example", settings={**SETTINGS, **changes}, resume=resume)


def compute(piece: dict[str, Any]) -> list[dict[str, Any]]:
    """Some responses; a tuple and a NaN among them, which JSON does not bring back as they are."""
    layer = piece["layer"]
    return [
        {
            "key": f"{layer}-{row}",
            "response": f"Zeile {row}:\n„schräg“\u2028" + "x" * (37 * layer % 50),
            "perplexity": float("nan") if (layer + row) % 5 == 0 else (layer + 1) / (row + 3),
            "span": (row, layer),
        }
        for row in range(layer % 4)
    ]


def work(run: Run, after_each: Callable[[str], None] = lambda _: None) -> int:
    """Compute what is not there yet and write the final files.

    Returns:
        How many pieces were computed now.
    """
    computed = 0
    rows = []
    for name, piece in zip(NAMES, PIECES, strict=True):
        records = run.finished(name)
        if records is None:
            records = run.finish(name, compute(piece))
            computed += 1
            after_each(name)
        rows += records
    known = [row["perplexity"] for row in rows if row["perplexity"] is not None]
    run.write_json("summary.json", {"n": len(rows), "perplexity": sum(known) / len(known)})
    run.write_jsonl("responses.jsonl", run.records(NAMES))
    run.conclude()
    return computed


def whole_run(folder: Path) -> Path:
    """The folder, with a run in it that nothing interrupted."""
    with open_run(folder) as run:
        assert work(run) == len(PIECES)
    return folder


def half_run(folder: Path) -> Path:
    """The folder, with the first six pieces of a run in it."""
    with open_run(folder) as run:
        for name, piece in zip(NAMES[:6], PIECES, strict=False):
            run.finish(name, compute(piece))
    return folder


def final_bytes(folder: Path) -> list[bytes]:
    """The final files of a run."""
    return [(folder / name).read_bytes() for name in FINAL_FILES]


def _announce(name: str, pause: float) -> None:
    print(name, flush=True)
    time.sleep(pause)


def _killed_half_way(records: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for number, record in enumerate(records):
        if number == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        yield record


def main() -> None:
    folder, pause = Path(sys.argv[1]), float(sys.argv[2])
    with open_run(folder, resume=True) as run:
        if "--die-in-final-file" in sys.argv:
            work(run)
            run.write_jsonl("responses.jsonl", _killed_half_way(run.records(NAMES)))
        work(run, lambda name: _announce(name, pause))


if __name__ == "__main__":
    main()
