"""Run folders elsewhere: on an object store, or any other file system that `fsspec` knows.

A run at a URL (``s3://bucket/plan``, ``gs://…``, ``memory://…``) works in a folder of this machine
and keeps its counterpart at the URL up to date:

- a finished piece goes up before `Run.finish` returns, as an object of its own
  (``pieces/….jsonl``): object stores cannot append;
- final files go up when they are written, the rest (vectors) when the run is concluded. Then the
  URL holds what a folder would, ``pieces.jsonl`` in one file;
- a resumed run begins by fetching manifest and pieces.

Only the driver reads and writes the URL, so workers need no access to it. ``file://`` and plain
paths, a network file system's among them, are folders and do not come here.

**Caveat.** Object stores have no locks: two drivers at one URL are not kept apart. They compute the
same pieces twice and write the same files, so nothing is lost but time.
"""

import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from steerlens.errors import FileFormatError, SteerlensError, first_line
from steerlens.files import write_text
from steerlens.files.locations import place

__all__ = ["RemoteFolder", "fetched", "keep_text"]

_PARTS = "pieces"


class RemoteFolder:
    """A folder at a URL.

    Args:
        url: With a protocol that `fsspec` knows.

    Raises:
        SteerlensError: "cannot use …": an unknown protocol, a missing library, no access.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url
        # Two sessions never write the same part.
        self._session = uuid.uuid4().hex[:8]
        self._sent = 0
        self._up: dict[str, tuple[int, int]] = {}
        self._parts: list[str] = []
        with self._reported():
            self._fs, self._root = fsspec.core.url_to_fs(url)
            # What another process wrote since is to be seen.
            self._fs.invalidate_cache()

    def names(self) -> list[str]:
        """Files of the folder, by their paths inside it."""
        with self._reported():
            if not self._fs.exists(self._root):
                return []
            found = self._fs.find(self._root)
        start = len(self._root.rstrip("/")) + 1
        return sorted(str(one)[start:] for one in found)

    def fetch(self, name: str, target: Path) -> Path:
        """Copy a file of the folder to this machine."""
        with self._reported():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(self._fs.cat_file(self._join(name)))
        return target

    def fetch_run(self, folder: Path, manifest: str, pieces: str) -> None:
        """Copy what a run resumes from: its manifest, and all its pieces in one file."""
        names = self.names()
        if manifest not in names:
            if names:
                raise SteerlensError(
                    f"{self.url} holds files but no run ({names[0]}{', …' if names[1:] else ''}); "
                    "choose an empty or a new folder"
                )
            return
        self.fetch(manifest, folder / manifest)
        log = folder / pieces
        if pieces in names:
            self.fetch(pieces, log)
        self._parts = [name for name in names if name.startswith(f"{_PARTS}/")]
        with log.open("ab") as file:
            for name in self._parts:
                with self._reported():
                    file.write(self._fs.cat_file(self._join(name)))

    def begin(self, log: Path) -> None:
        """What stands in the log now is there, or was dropped as damaged; what comes is sent."""
        self._sent = log.stat().st_size

    def send(self, path: Path, name: str) -> None:
        """Copy a file of this machine there, whole."""
        with self._reported():
            self._put(name, path.read_bytes())
        self._up[name] = _state(path)

    def remove(self, name: str) -> None:
        """Take a file away from there."""
        with self._reported():
            self._fs.rm_file(self._join(name))
        self._up.pop(name, None)

    def send_pieces(self, log: Path) -> None:
        """Send the pieces that are not there yet, as an object of their own."""
        with log.open("rb") as file:
            file.seek(self._sent)
            new = file.read()
        if not new:
            return
        # By name they sort in the order in which they were finished, of earlier sessions too.
        name = f"{_PARTS}/{len(self._parts):06d}-{self._session}.jsonl"
        with self._reported():
            self._put(name, new)
        self._parts.append(name)
        self._sent += len(new)

    def send_all(self, folder: Path, pieces: str, left_out: tuple[str, ...]) -> None:
        """Send every file that changed since it was sent, then the pieces as one file."""
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if not path.is_file() or name in left_out or name == pieces:
                continue
            if self._up.get(name) != _state(path):
                self.send(path, name)
        self.send(folder / pieces, pieces)
        with self._reported():
            for name in self._parts:
                self._fs.rm_file(self._join(name))
        self._parts.clear()

    def _put(self, name: str, content: bytes) -> None:
        target = self._join(name)
        self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
        self._fs.pipe_file(target, content)

    def _join(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Whatever a file system's library raises, as one sentence."""
        try:
            yield
        except SteerlensError:
            raise
        except Exception as error:  # each implementation has kinds of its own
            raise SteerlensError(
                f"cannot use {self.url}: {first_line(error)}; give a folder, or a URL whose fsspec "
                "implementation is installed and may write there"
            ) from error


@contextmanager
def fetched(said: str | Path) -> Iterator[Path]:
    """A finished run's folder on this machine: itself, or for a URL a copy for this block.

    Raises:
        FileFormatError: "nothing at …".
        SteerlensError: As `RemoteFolder`.
    """
    where = place(said)
    if isinstance(where, Path):
        yield where
        return
    remote = RemoteFolder(where)
    names = [name for name in remote.names() if not name.startswith(f"{_PARTS}/")]
    if not names:
        raise FileFormatError(f"nothing at {where}; expected a folder that steerlens wrote")
    with tempfile.TemporaryDirectory(prefix="steerlens-") as folder:
        for name in names:
            remote.fetch(name, Path(folder) / name)
        yield Path(folder)


def keep_text(folder: str | Path, name: str, text: str) -> str:
    """Write a text beside a run's files, here or elsewhere; says where it stands."""
    where = place(folder)
    if isinstance(where, Path):
        return str(write_text(where / name, text))
    with tempfile.TemporaryDirectory(prefix="steerlens-") as here:
        RemoteFolder(where).send(write_text(Path(here) / name, text), name)
    return f"{where}/{name}"


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
