"""`Run`: the folder of one long piece of work, opened by one process at a time.

Finished pieces are rows of an SQLite database, each with a checksum. One `INSERT` is one
transaction, synchronised before `Run.finish` returns, so a killed process loses the piece it was
computing and nothing else. While a run is open the database keeps a write-ahead log where the file
system allows one; a closed run is a single file.
"""

import hashlib
import json
import logging
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from steerlens.errors import FileFormatError, SteerlensError, first_line
from steerlens.files import local_path, write_lines
from steerlens.runs.folder import (
    LOCK,
    MANIFEST,
    STORE,
    STORE_FILES,
    check_folder,
    locked,
    refuse_earlier_version,
    remove_abandoned,
)
from steerlens.runs.json_text import json_document, json_line
from steerlens.runs.manifest import RUN_SCHEMA, Manifest, utc_now

__all__ = ["Run", "read_manifest"]

TABLES = """
    CREATE TABLE IF NOT EXISTS manifest (id INTEGER PRIMARY KEY, record TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS pieces
        (name TEXT PRIMARY KEY, records BLOB NOT NULL, sha256 TEXT NOT NULL);
"""

logger = logging.getLogger(__name__)


class Run:
    """A run folder, open and locked; use it in a ``with`` statement, which closes it.

    Leaving the block by an error or an interrupt leaves a run that can be resumed.

    Attributes:
        folder: The folder.
        manifest: What the run says of itself.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, database: sqlite3.Connection, lock: FileLock
    ) -> None:
        """Use `Run.open`."""
        self.folder = folder
        self.manifest = manifest
        self._database: sqlite3.Connection | None = database
        self._lock = lock
        self._made_folder = False

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        kind: str,
        settings: Mapping[str, Any],
        resume: bool = False,
    ) -> "Run":
        """Start a run in a new or empty folder, or continue the run that is there.

        Args:
            folder: The folder; made if it does not exist.
            kind: What the run does (``"search"``, ``"evaluate"``).
            settings: Everything its results depend on: model and weights hash, prompts' hash, seed,
                lengths, … Plain JSON, finite numbers.
            resume: Continue a run of the same kind and settings; in an empty folder, start one.

        Raises:
            SteerlensError: "… holds a run already; add --resume …", "… was made with other settings
                (n: was 64, now 32) …", "… holds files but no run …", "another process is at work in
                …", "cannot write …", "… is a URL …".
            FileFormatError: A run of an earlier version, or a damaged one.
        """
        folder = local_path(folder)
        manifest = Manifest.new(kind, settings)
        check_folder(folder, resume)
        made_folder = not folder.exists()
        lock = locked(folder)
        try:
            # Again: another process may have started a run just before this one had the lock.
            check_folder(folder, resume)
            remove_abandoned(folder)
            run = cls(folder, manifest, _database(folder / STORE), lock)
        except BaseException:
            lock.release()
            raise
        run._made_folder = made_folder
        try:
            run._start_or_continue()
        except BaseException:
            run.close()
            raise
        return run

    def _start_or_continue(self) -> None:
        earlier = _stored_manifest(self._opened(), self.folder)
        if earlier is not None:
            self.manifest.check_continues(earlier, self.folder)
            entry = {
                "time": utc_now(),
                "versions": dict(self.manifest.versions),
                "pieces": len(self.names),
            }
            self.manifest = replace(earlier, concluded=None, resumed=(*earlier.resumed, entry))
        self._write_manifest()

    @property
    def names(self) -> tuple[str, ...]:
        """The finished pieces, in the order of finishing."""
        rows = self._execute("SELECT name FROM pieces ORDER BY rowid")
        return tuple(name for (name,) in rows)

    def finished(self, name: str) -> list[dict[str, Any]] | None:
        """The records of a finished piece, read from the disk; None when it is not finished."""
        row = next(self._execute("SELECT records, sha256 FROM pieces WHERE name = ?", name), None)
        if row is None:
            return None
        data, digest = row
        if hashlib.sha256(data).hexdigest() != digest:
            logger.warning("%s: piece %s is damaged and is computed again", self.folder, name)
            self._execute("DELETE FROM pieces WHERE name = ?", name)
            return None
        records: list[dict[str, Any]] = json.loads(data)
        return records

    def finish(self, name: str, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Keep a piece's records, JSON objects; when this returns they are on the disk.

        Returns:
            The records as a later process reads them (`json_value`). For a piece that was finished
            before, its first records.

        Raises:
            SteerlensError: "records of piece …[0].x is a ndarray …", "no space left for …; free
                some and resume with --resume".
        """
        objects = list(records) if isinstance(records, list | tuple) else [None]
        if not all(isinstance(record, Mapping) for record in objects):
            raise SteerlensError(f"the records of piece {name} must be a list of JSON objects")
        kept = self.finished(name)
        if kept is None:
            data = json_line(objects, f"records of piece {name}").encode()
            digest = hashlib.sha256(data).hexdigest()
            self._execute("INSERT OR IGNORE INTO pieces VALUES (?, ?, ?)", name, data, digest)
            kept = self.finished(name)
        return kept or []

    def records(self, names: Iterable[str]) -> Iterator[dict[str, Any]]:
        """The records of these pieces in this order, with one piece in memory at a time.

        Raises:
            SteerlensError: "piece … is not finished".
        """
        for name in names:
            records = self.finished(name)
            if records is None:
                raise SteerlensError(f"piece {name} is not finished in {self.folder}")
            yield from records

    def path(self, name: str) -> Path:
        """The path of a final file, for example ``"vectors/title.safetensors"``.

        Raises:
            SteerlensError: The name leads out of the folder, or is one the run keeps for itself.
        """
        path = Path(name)
        if path.is_absolute() or not path.parts or ".." in path.parts:
            raise SteerlensError(f"{name!r} is no file inside the run's folder")
        if path.parts[0] in (MANIFEST, LOCK, *STORE_FILES):
            raise SteerlensError(f"{name!r} is kept by the run itself; choose another name")
        return self.folder / path

    def write_json(self, name: str, data: Any) -> Path:
        """Write a final file as JSON (`json_document`), whole or not at all."""
        return self.write_file(name, lambda path: write_lines(path, [json_document(data, name)]))

    def write_jsonl(self, name: str, records: Iterable[Mapping[str, Any]]) -> Path:
        """Write a final file of one JSON object per line; records are never held together."""
        lines = (json_line(r, f"{name}[{n}]") + "\n" for n, r in enumerate(records))
        return self.write_file(name, lambda path: write_lines(path, lines))

    def write_file(self, name: str, write: Callable[[Path], Any]) -> Path:
        """Have a final file written by a function of its path, such as `SteeringVector.save`.

        Raises:
            SteerlensError: As `path`; data that is not plain JSON; "no space left …".
        """
        path = self.path(name)
        self._opened()
        write(path)
        return path

    def retract(self, name: str) -> None:
        """Delete a final file before files it names are written again by a resumed run."""
        self.path(name).unlink(missing_ok=True)

    def note_workers(self, record: Mapping[str, Any]) -> None:
        """Say in the manifest who else computes pieces from now on: plain JSON."""
        entry = {"time": utc_now(), **record}
        self._change_manifest(computed_by=(*self.manifest.computed_by, entry))

    def note(self, record: Mapping[str, Any]) -> None:
        """Say in the manifest what may differ between resumptions, unless it says so already."""
        noted = self.manifest.noted
        if not noted or {k: v for k, v in noted[-1].items() if k != "time"} != dict(record):
            self._change_manifest(noted=(*noted, {"time": utc_now(), **record}))

    def conclude(self) -> None:
        """Mark the run as complete, after its final files have been written."""
        self._change_manifest(concluded=utc_now())

    def withdraw(self) -> None:
        """Close the run; a new one that has finished nothing leaves the folder as it was before.

        For work that cannot begin after all: the next attempt needs no ``--resume``.
        """
        is_new = not (self.manifest.resumed or self.manifest.complete or self.names)
        self._close_database()
        if is_new:  # while the lock is held, so that nobody has begun a run in these files
            for name in (MANIFEST, *STORE_FILES):
                (self.folder / name).unlink(missing_ok=True)
        self._lock.release()
        if is_new:
            (self.folder / LOCK).unlink(missing_ok=True)
            if self._made_folder:
                with suppress(OSError):  # another process began a run there
                    self.folder.rmdir()

    def close(self) -> None:
        """Release the folder; nothing can be written after it. Closing twice does nothing."""
        try:
            self._close_database()
        finally:
            self._lock.release()

    def _close_database(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            with suppress(sqlite3.Error):
                database.execute("PRAGMA journal_mode = DELETE")
            database.close()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "complete" if self.manifest.complete else "unfinished"
        return f"Run({self.manifest.kind}, {state}, {self.folder})"

    def _opened(self) -> sqlite3.Connection:
        if self._database is None:
            raise SteerlensError(f"the run in {self.folder} has been closed; open it again")
        return self._database

    def _execute(self, statement: str, *values: Any) -> Iterator[Any]:
        """Run a statement as a transaction of its own."""
        path = self.folder / STORE
        connection = self._opened()
        try:
            return iter(connection.execute(statement, values).fetchall())
        except sqlite3.Error as error:
            raise _storage_error(path, error) from error

    def _change_manifest(self, **fields: Any) -> None:
        self.manifest = replace(self.manifest, **fields)
        self._write_manifest()

    def _write_manifest(self) -> None:
        record = json_document(self.manifest.to_json(), MANIFEST)
        self._execute("INSERT OR REPLACE INTO manifest VALUES (1, ?)", record)
        write_lines(self.folder / MANIFEST, [record])


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of the run in a folder, also while a process is at work there.

    Raises:
        FileFormatError: "no run in …", "… holds a run of an earlier version …", "… is damaged …".
    """
    folder = Path(folder)
    refuse_earlier_version(folder)
    path = folder / STORE
    if not path.is_file():
        raise FileFormatError(f"no run in {folder}: {STORE} is missing")
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            manifest = _stored_manifest(database, folder)
    except sqlite3.Error as error:
        raise _damaged(path, error) from error
    if manifest is None:
        raise FileFormatError(f"no run in {folder}: {STORE} holds none")
    return manifest


def _stored_manifest(database: sqlite3.Connection, folder: Path) -> Manifest | None:
    """The manifest in an open store; None where the process that made the store was killed."""
    try:
        row = database.execute("SELECT record FROM manifest").fetchone()
        if row is None:
            return None
        record = json.loads(row[0])
        if record["schema"] == RUN_SCHEMA:
            return Manifest.from_json(record)
    except (sqlite3.Error, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder / STORE, error) from error
    raise FileFormatError(
        f"{folder} has the run schema {record['schema']!r}, this steerlens reads {RUN_SCHEMA!r}; "
        "choose another folder"
    )


def _database(path: Path) -> sqlite3.Connection:
    """The store, made if it does not exist; what a killed process was writing is rolled back."""
    try:
        # Without an isolation level, each statement is a transaction.
        database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            with suppress(sqlite3.OperationalError):  # network file systems have no shared memory
                database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            database.executescript(TABLES)
        except BaseException:
            database.close()
            raise
    except sqlite3.Error as error:
        raise _storage_error(path, error) from error
    return database


def _storage_error(path: Path, error: sqlite3.Error) -> SteerlensError:
    """What to tell the user when the store could not be read or written."""
    code = getattr(error, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_FULL:
        return SteerlensError(
            f"no space left for {path} ({error}); free some and resume with --resume"
        )
    if not isinstance(error, sqlite3.OperationalError):
        return _damaged(path, error)
    return SteerlensError(
        f"cannot write {path}: {error} (is there space left?); what is finished is kept, continue "
        "with --resume"
    )


def _damaged(path: Path, error: Exception) -> FileFormatError:
    return FileFormatError(
        f"{path} is damaged or no store of a run ({first_line(error)}); choose another folder"
    )
