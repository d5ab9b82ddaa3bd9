"""The log of finished pieces: one checked line each, appended and on the disk before the next.

A line is a JSON object that begins with the SHA-256 of all that follows in it::

    {"sha256": "…", "piece": "9c1f…", "records": [{…}, …]}

Opening reads the file once, line by line, and keeps only where each piece stands; records are read
when they are asked for. Measured on 100,000 pieces of 2.2 kB: opened in 1.5 s, 22 MB of memory.

Opening also repairs. What follows the last whole line is cut off: it is what a killed process or a
full disk leaves. A line before it that does not fit its checksum is overwritten with spaces, which
moves no other line, and its piece counts as not finished. A second line of the same piece is
passed over.

The log knows nothing of what pieces are; it is the only part of a run that appends.
"""

import errno
import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from steerlens.errors import FileFormatError, SteerlensError
from steerlens.runs.plain import json_line

__all__ = ["PieceLog", "storage_error"]

NAME = re.compile(r"[\w.:+=@-]{1,120}", re.ASCII)
LINE = re.compile(rb'\{"sha256": "([0-9a-f]{64})", ("piece": "([\w.:+=@-]{1,120})", "records": .*)')
# A file-size limit (ulimit -f) and a quota end a run as a full disk does, and are cured alike.
FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}

logger = logging.getLogger(__name__)


def storage_error(path: Path, error: OSError) -> SteerlensError:
    """What to tell the user when `path` could not be written during a run."""
    reason = error.strerror or str(error)
    if error.errno in FULL:
        return SteerlensError(
            f"no space left for {path} ({reason}); free some and resume with --resume"
        )
    return SteerlensError(
        f"cannot write {path}: {reason}; what is finished is kept, continue with --resume"
    )


class PieceLog:
    """Finished pieces by name, in a file; only one may be open on a file (see `Run`'s lock).

    Attributes:
        path: The file.
        damaged: How many whole lines did not fit their checksum on opening and were dropped.
    """

    def __init__(self, path: Path) -> None:
        """Open the log, made if it does not exist, and repair it.

        Raises:
            SteerlensError: "cannot write …", "no space left …".
        """
        self.path = path
        self.damaged = 0
        self._places: dict[str, tuple[int, int]] = {}
        self._end = 0
        try:
            # Unbuffered: a line is on its way to the disk or it is not, and a failed one leaves
            # nothing behind that a later flush would write.
            self._file = path.open("ab", buffering=0)
            try:
                with path.open("r+b") as file:
                    self._read(file)
            except BaseException:
                self._file.close()
                raise
        except OSError as error:
            raise storage_error(path, error) from error
        if self.damaged:
            logger.warning(
                "%s: %d damaged %s dropped; what stood there is computed again",
                path,
                self.damaged,
                "line was" if self.damaged == 1 else "lines were",
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The finished pieces, in the order of finishing."""
        return tuple(self._places)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def read(self, name: str) -> list[dict[str, Any]] | None:
        """The records of a finished piece, from the file; None when it is not finished.

        Raises:
            FileFormatError: "… has been changed since it was opened", "… cannot be read".
        """
        if name not in self._places:
            return None
        offset, length = self._places[name]
        # Opened each time: a buffer kept open could hold what a failed append left for a moment.
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                line = file.read(length)
        except OSError as error:
            raise FileFormatError(f"{self.path} cannot be read: {error.strerror}") from error
        if _checked_name(line) != name:
            raise FileFormatError(
                f"{self.path} has been changed since it was opened; continue with --resume, which "
                "checks it anew"
            )
        records: list[dict[str, Any]] = json.loads(line)["records"]
        return records

    def append(self, name: str, records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Add a piece; when this returns, it is on the disk.

        Returns:
            The records as `read` gives them. Of a piece that is there already, those from before.

        Raises:
            SteerlensError: "records of piece …[2].x is a ndarray …", "no space left …"; the log is
                then as it was before, and usable.
        """
        if not NAME.fullmatch(name):
            raise SteerlensError(
                f"{name!r} cannot name a piece; expected letters, digits and any of _ . : + = @ -, "
                "as piece_name gives"
            )
        before = self.read(name)
        if before is not None:
            return before
        if not isinstance(records, list | tuple) or not all(
            isinstance(r, Mapping) for r in records
        ):
            raise SteerlensError(f"the records of piece {name} must be a list of JSON objects")
        text = json_line(list(records), f"records of piece {name}")
        body = f'"piece": "{name}", "records": {text}}}'.encode()
        line = b'{"sha256": "%s", %s\n' % (hashlib.sha256(body).hexdigest().encode(), body)
        self._write(line)
        offset = self._end
        # In this order: an interrupt between the two leaves a line that may be repeated later.
        self._end += len(line)
        self._places[name] = (offset, len(line))
        written: list[dict[str, Any]] = json.loads(text)
        return written

    def close(self) -> None:
        """Close the file; nothing can be appended after it."""
        self._file.close()

    def _write(self, line: bytes) -> None:
        """Append the line and bring it to the disk, or leave the file as it was."""
        try:
            # What an append that was interrupted twice (in its clean-up, too) may have left.
            if os.fstat(self._file.fileno()).st_size != self._end:
                self._file.truncate(self._end)
            rest = memoryview(line)
            while rest:  # a nearly full disk takes a part of the line first
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except BaseException as error:
            # Best effort: what stays is cut off by the next append or opening.
            with suppress(OSError, ValueError):
                self._file.truncate(self._end)
            if isinstance(error, OSError):
                raise storage_error(self.path, error) from error
            raise

    def _read(self, file: BinaryIO) -> None:
        """Find the pieces in the file; repair what is damaged."""
        damaged: list[tuple[int, int]] = []
        offset = 0
        for line in file:
            name = _checked_name(line)
            if name is not None:
                self._places.setdefault(name, (offset, len(line)))
                self._end = offset + len(line)
            elif line.endswith(b"\n") and line.strip(b" \n"):
                damaged.append((offset, len(line)))
            offset += len(line)
        self.damaged = len(damaged)
        for start, length in damaged:
            if start < self._end:
                file.seek(start)
                file.write(b" " * (length - 1))
        if offset > self._end:
            file.truncate(self._end)
        if damaged or offset > self._end:
            file.flush()
            os.fsync(file.fileno())


def _checked_name(line: bytes) -> str | None:
    """The piece a whole line holds; None when the line is torn or does not fit its checksum."""
    found = LINE.fullmatch(line.removesuffix(b"\n"))
    if found is None or not line.endswith(b"\n"):
        return None
    if hashlib.sha256(found[2]).hexdigest().encode() != found[1]:
        return None
    return found[3].decode()
