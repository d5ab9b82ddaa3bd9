"""Files on disk: written whole or not at all, read as data only.

Everything this package keeps (activations, vectors) is one safetensors file whose header carries a
JSON record under the key ``steerlens``; the record's ``kind`` says what the file holds. safetensors
holds numbers and text and nothing that runs, so a file from elsewhere can be opened without trust.

`write_atomically` writes to a temporary sibling and renames it, so a killed process leaves either
the old file or the new one. `read_tensors` turns every way such a file can be broken into one
sentence (`steerlens.errors.FileFormatError`).
"""

import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from steerlens.errors import FileFormatError, SteerlensError

__all__ = [
    "check_writable",
    "library_versions",
    "local_path",
    "read_tensors",
    "without_nan",
    "write_atomically",
    "write_lines",
    "write_tensors",
    "write_text",
]

HEADER_KEY = "steerlens"
REPORT_SCHEMA = "steerlens-report/1"
# A quota or a limit on the size of files ends a run as a full disk does.
FULL_DISK = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


def library_versions() -> dict[str, str]:
    """Versions of the libraries a result depends on, for its provenance record."""
    names = ("steerlens", "torch", "transformer-lens", "transformers", "numpy")
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a source tree that was never installed
            found[name] = "not installed"
    return found


def without_nan(value: Any) -> Any:
    """Plain data for JSON, which has no NaN and no infinity: such numbers become None."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {name: without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return value


def local_path(path: str | Path) -> Path:
    """The path of a file or folder of this machine.

    Raises:
        SteerlensError: "s3://… is a URL …".
    """
    if "://" in str(path):
        raise SteerlensError(
            f"{path} is a URL; give a folder of this machine, and copy it there afterwards "
            "(for example with 'aws s3 sync' or 'gcloud storage rsync')"
        )
    return Path(path)


def check_writable(path: str | Path) -> None:
    """Refuse, before a long run, a place where nothing could be written after it.

    Raises:
        SteerlensError: "cannot write …" when the nearest folder above is none, or read-only.
    """
    path = Path(path)
    nearest = next((folder for folder in path.absolute().parents if folder.exists()), Path("/"))
    if not nearest.is_dir():
        raise SteerlensError(f"cannot write {path}: {nearest} is a file; choose another place")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise SteerlensError(f"cannot write {path}: {nearest} is read-only; choose another place")


def write_atomically(path: str | Path, write: Callable[[Path], None]) -> Path:
    """Call `write` on a temporary sibling of `path`, then rename it to `path`.

    Args:
        path: Where the file shall stand; missing parent folders are made.
        write: Writes the whole content to the path it is given.

    Returns:
        The path.

    Raises:
        SteerlensError: "cannot write …" when the folder is read-only, missing rights or full.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        # mkstemp makes private files; results are meant to be shared like any other file.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        # safetensors reports a full disk as an error of its own.
        reason = getattr(error, "strerror", None) or str(error)
        if getattr(error, "errno", None) in FULL_DISK:
            raise SteerlensError(
                f"no space left for {path} ({reason}); free some, or choose another place"
            ) from error
        raise SteerlensError(f"cannot write {path}: {reason}; choose another place") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Write UTF-8 text atomically; see `write_atomically`."""
    return write_lines(path, [text])


def write_lines(path: str | Path, lines: Iterable[str]) -> Path:
    """Write pieces of UTF-8 text atomically, one at a time, and bring them to the disk."""

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())

    return write_atomically(path, write)


def write_tensors(
    path: str | Path, kind: str, tensors: Mapping[str, torch.Tensor], record: Mapping[str, Any]
) -> Path:
    """Write tensors and their record as one safetensors file, atomically.

    Args:
        path: The file.
        kind: What the file holds, for example ``"steering-vector"``; checked on reading.
        tensors: Named tensors on any device.
        record: JSON-serialisable provenance.
    """
    header = {HEADER_KEY: json.dumps({"kind": kind, **record}, sort_keys=True)}
    dense = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return write_atomically(path, lambda temporary: save_file(dense, temporary, metadata=header))


def read_tensors(path: str | Path, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Returns:
        The tensors by name (on the CPU) and the record.

    Raises:
        FileFormatError: The file is missing, truncated, not safetensors, or holds another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise FileFormatError(f"no file at {path}; expected a {kind} written by steerlens")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise FileFormatError(
            f"{path} is not a readable safetensors file (truncated or foreign): {error}"
        ) from error
    try:
        record = json.loads(metadata[HEADER_KEY])
    except (KeyError, ValueError, RecursionError):  # brackets nested thousands deep
        record = None
    if not isinstance(record, dict):
        raise FileFormatError(
            f"{path} is a safetensors file without a steerlens record; expected a {kind}"
        )
    found = record.pop("kind", None)
    if found != kind:
        raise FileFormatError(f"{path} holds {found!r}, expected {kind!r}")
    return tensors, record
