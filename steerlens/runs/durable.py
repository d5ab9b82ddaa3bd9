"""Files of a run, on the disk before anything says that they are there."""

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from steerlens.errors import SteerlensError
from steerlens.files import write_atomically
from steerlens.runs.pieces import storage_error

__all__ = ["sync_folder", "write_lines"]


def write_lines(path: Path, lines: Iterable[str]) -> Path:
    """Write text atomically and bring it to the disk before it takes its name."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            for line in lines:
                file.write(line.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())

    try:
        write_atomically(path, write)
    except SteerlensError as error:
        if isinstance(error.__cause__, OSError):
            raise storage_error(path, error.__cause__) from error.__cause__
        raise
    sync_folder(path.parent)
    return path


def sync_folder(folder: Path) -> None:
    """Bring the folder's list of names to the disk; Windows does so by itself."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (
            errno.EINVAL,
            errno.ENOTSUP,
        ):  # file systems that cannot, or need not
            raise storage_error(folder, error) from error
    finally:
        os.close(handle)
