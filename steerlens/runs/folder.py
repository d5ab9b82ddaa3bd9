"""`Run`: the folder of one long piece of work, opened by one process at a time."""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock

from steerlens.errors import SteerlensError
from steerlens.files.locations import place
from steerlens.runs.durable import sync_folder, write_lines
from steerlens.runs.manifest import MANIFEST, Manifest, now
from steerlens.runs.opening import (
    LOCK,
    PIECES,
    check_place,
    locked,
    remove_abandoned,
    start_or_continue,
    write_manifest,
)
from steerlens.runs.pieces import PieceLog
from steerlens.runs.plain import json_document, json_line
from steerlens.runs.remote import RemoteFolder

__all__ = ["Run"]


class Run:
    """A run folder, open and locked; use it in a ``with`` statement, which closes it.

    Leaving the block by an error or an interrupt leaves a run that can be resumed.

    Attributes:
        folder: The folder on this machine; of a run at a URL, gone when the run is closed.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        pieces: PieceLog,
        lock: FileLock,
        remote: RemoteFolder | None = None,
        made: bool = False,
    ) -> None:
        """Use `Run.open`."""
        self.folder = folder
        self._remote = remote
        self._manifest = manifest
        self._pieces = pieces
        self._lock = lock
        self._made = made
        self._open = True

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        kind: str,
        settings: Mapping[str, Any],
        resume: bool = False,
        added: Mapping[str, Any] | None = None,
    ) -> "Run":
        """Start a run in a new or empty folder, or continue the one that is there.

        Args:
            folder: The folder; made if it does not exist. Or the URL of one on a file system that
                `fsspec` knows; see `steerlens.runs.remote`.
            kind: What the run does (``"search"``, ``"evaluate"``).
            settings: Everything its results depend on: model and weights hash, prompts' hash, seed,
                lengths, … Plain JSON, finite numbers.
            resume: Continue a run of the same kind and settings; in an empty folder, start one.
            added: Settings that earlier versions had no name for, with the values they had: a
                folder that does not name them is continued when these are asked for.

        Raises:
            SteerlensError: "… holds a run already; add --resume …", "… was made with other settings
                (n: was 64, now 32) …", "… holds files but no run …", "another process is at work in
                …", "cannot write …", "cannot use …" (a URL).
            FileFormatError: The manifest that is there is damaged, foreign, or of another schema.
        """
        where = place(folder)
        manifest = Manifest.new(kind, settings)
        if isinstance(where, str):
            return cls._open_remote(where, manifest, resume, added)
        return cls._open_here(where, manifest, resume, added)

    @classmethod
    def _open_remote(
        cls, url: str, manifest: Manifest, resume: bool, added: Mapping[str, Any] | None
    ) -> "Run":
        remote = RemoteFolder(url)
        staging = Path(tempfile.mkdtemp(prefix="steerlens-run-"))
        try:
            remote.fetch_run(staging, MANIFEST, PIECES)
            run = cls._open_here(staging, manifest, resume, added)
            run._remote = remote
            try:
                remote.begin(staging / PIECES)
                remote.send(staging / MANIFEST, MANIFEST)
            except BaseException:
                run.close()
                raise
        except SteerlensError as error:
            shutil.rmtree(staging, ignore_errors=True)
            # The user knows the URL, not the folder that stands in for it.
            raise type(error)(str(error).replace(str(staging), url)) from error
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        return run

    @classmethod
    def _open_here(
        cls, path: Path, manifest: Manifest, resume: bool, added: Mapping[str, Any] | None
    ) -> "Run":
        check_place(path, resume)
        made = not path.exists()
        lock = locked(path)
        try:
            # Again: another process may have started a run here just before the lock was had.
            check_place(path, resume)
            remove_abandoned(path)
            pieces, manifest = start_or_continue(path, manifest, added)
        except BaseException:
            lock.release()
            raise
        return cls(path, manifest, pieces, lock, made=made)

    @property
    def manifest(self) -> Manifest:
        """What ``manifest.json`` says."""
        return self._manifest

    @property
    def names(self) -> tuple[str, ...]:
        """The finished pieces, in the order of finishing."""
        return self._pieces.names

    def finished(self, name: str) -> list[dict[str, Any]] | None:
        """The records of a finished piece, read from the disk; None when it is not finished."""
        return self._pieces.read(name)

    def finish(self, name: str, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Keep a piece's records; when this returns they are on the disk.

        Args:
            name: The piece; see `piece_name`.
            records: JSON objects; NaN and infinities become null, NumPy and torch scalars numbers.

        Returns:
            The records as a later process reads them: go on with these, not with those given. For
            a piece finished before, its first records.

        Raises:
            SteerlensError: "records of piece …[0].x is a ndarray …", "no space left for …; free
                some and resume with --resume".
        """
        self._check_open()
        kept = self._pieces.append(name, records)
        if self._remote is not None:
            self._remote.send_pieces(self.folder / PIECES)
        return kept

    def records(self, names: Iterable[str]) -> Iterator[dict[str, Any]]:
        """The records of these pieces in this order, with one piece at a time in memory.

        Raises:
            SteerlensError: "piece … is not finished".
        """
        for name in names:
            records = self.finished(name)
            if records is None:
                raise SteerlensError(f"piece {name} is not finished in {self.folder}")
            yield from records

    def path(self, name: str) -> Path:
        """Where the final file of this name stands, for example ``"vectors/title.safetensors"``.

        Raises:
            SteerlensError: The name leads out of the folder, or is one the run keeps for itself.
        """
        path = Path(name)
        if path.is_absolute() or not path.parts or ".." in path.parts:
            raise SteerlensError(f"{name!r} is no file inside the run's folder")
        if path.parts[0] in (MANIFEST, PIECES, LOCK):
            raise SteerlensError(f"{name!r} is kept by the run itself; choose another name")
        return self.folder / path

    def write_json(self, name: str, data: Any) -> Path:
        """Write a final file as JSON (`json_document`), whole or not at all.

        Raises:
            SteerlensError: The data is not plain JSON; "no space left …".
        """
        self._check_open()
        return self._sent(write_lines(self.path(name), [json_document(data, name)]))

    def write_jsonl(self, name: str, records: Iterable[Mapping[str, Any]]) -> Path:
        """Write a final file of one JSON object a line (`json_line`), whole or not at all.

        The records are taken one by one and never held together.

        Raises:
            SteerlensError: A record is not plain JSON; "no space left …".
        """
        self._check_open()
        lines = (json_line(r, f"{name}[{n}]") + "\n" for n, r in enumerate(records))
        return self._sent(write_lines(self.path(name), lines))

    def write_file(self, name: str, write: Callable[[Path], Any]) -> Path:
        """Have a final file written by a function that writes it whole or not at all.

        Args:
            name: As for `path`.
            write: Given the path; `SteeringVector.save` is one.
        """
        self._check_open()
        path = self.path(name)
        write(path)
        return self._sent(path)

    def retract(self, name: str) -> None:
        """Take a final file of an earlier conclusion away, before files it speaks of are written.

        A resumed run may come to other files (another date in a template). Killed in between, it
        must not leave the old list beside new files.
        """
        self._check_open()
        self.path(name).unlink(missing_ok=True)
        sync_folder(self.folder)
        if self._remote is not None and name in self._remote.names():
            self._remote.remove(name)

    def note_engine(self, record: Mapping[str, Any]) -> None:
        """Say in the manifest who, beside this process, computes pieces from now on.

        Args:
            record: Plain JSON: the engine's name and version, its workers.
        """
        self._check_open()
        entries = (*self._manifest.computed_by, {"time": now(), **record})
        self._manifest = replace(self._manifest, computed_by=entries)
        self._sent(write_manifest(self.folder, self._manifest))

    def note(self, record: Mapping[str, Any]) -> None:
        """Say in the manifest how something is that changes by itself, unless it says so already.

        Args:
            record: Plain JSON: what a resumption need not share with the run that it continues.
        """
        self._check_open()
        known = self._manifest.noted[-1] if self._manifest.noted else {}
        if {key: value for key, value in known.items() if key != "time"} == dict(record):
            return
        entries = (*self._manifest.noted, {"time": now(), **record})
        self._manifest = replace(self._manifest, noted=entries)
        self._sent(write_manifest(self.folder, self._manifest))

    def conclude(self) -> None:
        """Mark the run as complete, after its final files have been written."""
        self._check_open()
        self._manifest = replace(self._manifest, concluded=now())
        if self._remote is not None:
            # Before the manifest says that all is there.
            self._remote.send_all(self.folder, PIECES, left_out=(LOCK, MANIFEST))
        self._sent(write_manifest(self.folder, self._manifest))

    def withdraw(self) -> None:
        """Undo the opening of a run that is new and has finished nothing, and close it.

        For work that cannot begin after all: the folder is as it was before, and no ``--resume`` is
        needed to try again. A run that was resumed, or has a piece, is closed and left as it is.
        """
        self._check_open()
        new = not self._manifest.resumed and not self.names and not self._manifest.complete
        if not new:
            self.close()
            return
        self._pieces.close()
        for name in (MANIFEST, PIECES):
            (self.folder / name).unlink(missing_ok=True)
        try:
            if self._remote is not None:
                self._remote.remove(MANIFEST)
        finally:
            self.close()
            (self.folder / LOCK).unlink(missing_ok=True)
            if self._made:
                # Not empty: another process began a run there as soon as the lock was free.
                with suppress(OSError):
                    self.folder.rmdir()

    def close(self) -> None:
        """Release the folder; nothing can be written after it. Closing twice does nothing."""
        self._open = False
        try:
            self._pieces.close()
        finally:
            self._lock.release()
            if self._remote is not None:
                shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "complete" if self._manifest.complete else "unfinished"
        where = self.folder if self._remote is None else self._remote.url
        return f"Run({self._manifest.kind}, {len(self.names)} pieces, {state}, {where})"

    def _sent(self, path: Path) -> Path:
        """The file, sent to the run's URL if it has one."""
        if self._remote is not None:
            self._remote.send(path, path.relative_to(self.folder).as_posix())
        return path

    def _check_open(self) -> None:
        if not self._open:
            raise SteerlensError(f"the run in {self.folder} has been closed; open it again")
