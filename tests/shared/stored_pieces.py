"""The finished pieces of a run folder, read past the package, also while a process is at work."""

import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path


def stored_pieces(folder: Path) -> dict[str, bytes]:
    """The records of each finished piece, in the order of finishing; nothing before the start."""
    try:
        with closing(sqlite3.connect(f"file:{folder / 'run.sqlite'}?mode=ro", uri=True)) as store:
            return dict(store.execute("SELECT name, records FROM pieces ORDER BY rowid"))
    except sqlite3.OperationalError:
        return {}


def wait_for_pieces(process: subprocess.Popen, folder: Path, n: int) -> None:
    """Wait until a process has finished so many pieces in its folder."""
    deadline = time.monotonic() + 900
    while len(stored_pieces(folder)) < n:
        assert process.poll() is None, "the process ended before it could be killed"
        assert time.monotonic() < deadline, f"{n} pieces were not finished in time"
        time.sleep(0.01)
