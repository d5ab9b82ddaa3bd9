"""Whether a run may begin or go on in a folder, its lock, and what killed processes left there."""

import re
from pathlib import Path

from filelock import FileLock, Timeout

from steerlens.errors import FileFormatError, SteerlensError
from steerlens.files import check_writable

__all__ = [
    "LOCK",
    "MANIFEST",
    "STORE",
    "STORE_FILES",
    "check_folder",
    "locked",
    "refuse_earlier_version",
    "remove_abandoned",
]

STORE = "run.sqlite"
MANIFEST = "manifest.json"
LOCK = ".lock"
# The database, and the files that SQLite keeps beside an open or a killed one.
STORE_FILES = (STORE, f"{STORE}-wal", f"{STORE}-shm", f"{STORE}-journal")
# The name under which `steerlens.files.write_atomically` writes a file before it is renamed.
TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.tmp")


def check_folder(folder: Path, resume: bool) -> None:
    """Refuse a folder that holds other files, and a run unless it is to be resumed."""
    check_writable(folder / MANIFEST)
    if not folder.exists():
        return
    refuse_earlier_version(folder)
    if (folder / STORE).exists():
        if not resume:
            raise SteerlensError(
                f"{folder} holds a run already; add --resume to continue it, or choose another "
                "folder"
            )
        return
    # A process that was killed while it started leaves its lock.
    others = sorted(path.name for path in folder.iterdir() if path.name != LOCK)
    if others:
        raise SteerlensError(
            f"{folder} holds files but no run ({others[0]}{', …' if others[1:] else ''}); choose "
            "an empty or a new folder"
        )


def refuse_earlier_version(folder: Path) -> None:
    """Refuse a folder whose pieces stand in the files of an earlier version."""
    if (folder / MANIFEST).exists() and not (folder / STORE).exists():
        raise FileFormatError(
            f"{folder} holds a {MANIFEST} but no {STORE}: earlier versions of steerlens kept "
            "pieces in other files, which this one cannot continue. Its plan or its responses can "
            "still be read; to compute them anew, run the command with another folder"
        )


def locked(folder: Path) -> FileLock:
    """The folder's lock, held."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, thread_local=False)
        lock.acquire(timeout=0)
    except Timeout:
        raise SteerlensError(
            f"another process is at work in {folder}; wait for its end, or choose another folder"
        ) from None
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SteerlensError(
            f"cannot lock {folder}: {reason}; choose a folder on a local disk"
        ) from error
    return lock


def remove_abandoned(folder: Path) -> None:
    """Delete what killed processes left half written; the lock says that none is at work."""
    for path in folder.rglob(".*.tmp"):
        if TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)
