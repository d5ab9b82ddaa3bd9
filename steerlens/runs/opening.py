"""Opening a run's folder: whether a run may begin or go on there, its lock, what was left there."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from steerlens.errors import SteerlensError
from steerlens.files import check_writable
from steerlens.runs.durable import sync_folder, write_lines
from steerlens.runs.manifest import MANIFEST, Manifest, now, read_manifest
from steerlens.runs.pieces import PieceLog
from steerlens.runs.plain import json_document

__all__ = [
    "LOCK",
    "PIECES",
    "check_place",
    "locked",
    "remove_abandoned",
    "start_or_continue",
    "write_manifest",
]

PIECES = "pieces.jsonl"
LOCK = ".lock"
# How `steerlens.files.write_atomically` names the file it writes before it is renamed.
TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.tmp")


def check_place(folder: Path, resume: bool) -> None:
    """Refuse a folder in which no run can be started, and, unless asked for, one that has a run."""
    check_writable(folder / MANIFEST)
    if not folder.exists():
        return
    if (folder / MANIFEST).exists():
        if not resume:
            raise SteerlensError(
                f"{folder} holds a run already; add --resume to continue it, or choose another "
                "folder"
            )
        return
    # A process killed while it started leaves its lock and half a manifest: nothing to lose.
    others = [
        path.name
        for path in sorted(folder.iterdir())
        if path.name != LOCK and _temporary_for(path) != MANIFEST
    ]
    if others:
        raise SteerlensError(
            f"{folder} holds files but no run ({others[0]}{', …' if others[1:] else ''}); choose "
            "an empty or a new folder"
        )


def locked(folder: Path) -> FileLock:
    """The folder's lock, held; the operating system frees it when the process ends."""
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


def start_or_continue(
    folder: Path, manifest: Manifest, added: Mapping[str, Any] | None
) -> tuple[PieceLog, Manifest]:
    """The log and the manifest, as written, of the run in this (locked) folder."""
    if not (folder / MANIFEST).exists():
        # The manifest first: pieces without one would be files of unknown origin.
        write_manifest(folder, manifest)
        pieces = PieceLog(folder / PIECES)
        sync_folder(folder)
        return pieces, manifest
    earlier = read_manifest(folder)
    manifest.check_continues(earlier, folder, added)
    pieces = PieceLog(folder / PIECES)
    try:
        entry = {
            "time": now(),
            "versions": dict(manifest.versions),
            "pieces": len(pieces.names),
            "damaged_lines": pieces.damaged,
        }
        resumed = replace(
            earlier,
            concluded=None,
            resumed=(*earlier.resumed, entry),
            # From now on it names those that its first version had no name for.
            settings=manifest.settings,
            settings_hash=manifest.settings_hash,
        )
        write_manifest(folder, resumed)
    except BaseException:
        pieces.close()
        raise
    return pieces, resumed


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Write ``manifest.json``, whole or not at all; gives its path."""
    return write_lines(folder / MANIFEST, [json_document(manifest.to_json(), MANIFEST)])


def remove_abandoned(folder: Path) -> None:
    """Delete what killed processes left half written; the lock says that none is at work."""
    for path in folder.rglob(".*.tmp"):
        if _temporary_for(path) is not None:
            path.unlink(missing_ok=True)


def _temporary_for(path: Path) -> str | None:
    """The name of the file that `path` was to become; None when it is not such a file."""
    found = TEMPORARY.fullmatch(path.name)
    return found[1] if found else None
