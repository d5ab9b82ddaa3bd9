"""The index beside vectors kept together: the files, and their hashes.

A folder of vectors (`steerlens.vectors.library`) has an index ``vectors.index.json``::

    {"schema": "steerlens-vectors/1",
     "vectors": [{"file": "title.safetensors", "sha256": "…", …}, …]}

`verify_file` compares a file that is loaded with the SHA-256 listed there. **Caveat:** this finds
accidents and mix-ups; whoever can change the file can change the index as well.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steerlens.errors import FileFormatError
from steerlens.models.weights import sha256_of_files
from steerlens.vectors.formats.record import parse_json

__all__ = ["INDEX_NAME", "INDEX_SCHEMA", "read_index", "verify_file"]

INDEX_NAME = "vectors.index.json"
INDEX_SCHEMA = "steerlens-vectors/1"
# Thousands of entries.
_MAX_INDEX_BYTES = 64 * 2**20


def read_index(folder: str | Path) -> Mapping[str, Any]:
    """The index of a folder of vectors.

    Returns:
        The JSON object; under ``vectors`` a list of mappings, each with ``file`` (a name without
        folders) and ``sha256``.

    Raises:
        FileFormatError: "there is no readable vectors.index.json in …", or it is damaged.
    """
    path = Path(folder) / INDEX_NAME
    try:
        if path.stat().st_size > _MAX_INDEX_BYTES:
            raise FileFormatError(f"{path} is too large for an index of vectors")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path} is damaged: it is not UTF-8 text") from error
    except OSError as error:
        raise FileFormatError(
            f"there is no readable {INDEX_NAME} in {folder} ({error.strerror}); give a folder that "
            "`save_library` wrote"
        ) from error
    index = parse_json(text, str(path))
    if not isinstance(index, dict) or index.get("schema") != INDEX_SCHEMA:
        raise FileFormatError(f"{path} is no index of vectors ({INDEX_SCHEMA})")
    if not isinstance(index.get("vectors"), list):
        raise FileFormatError(f"{path} lists no vectors")
    names = set()
    for number, entry in enumerate(index["vectors"]):
        name = entry.get("file") if isinstance(entry, dict) else None
        # A name with folders could lead out of the library.
        if not isinstance(name, str) or Path(name).name != name or name in names:
            raise FileFormatError(f"entry {number} of {path} names no file of its own: {name!r}")
        if not isinstance(entry.get("sha256"), str):
            raise FileFormatError(f"entry {number} of {path} ({name}) has no sha256")
        names.add(name)
    return index


def verify_file(path: str | Path) -> bool:
    """Whether an index beside a file lists it.

    Raises:
        FileFormatError: "… is not the file that the index lists …", or a damaged index.
    """
    path = Path(path)
    if not (path.parent / INDEX_NAME).exists():
        return False
    listed = {entry["file"]: entry["sha256"] for entry in read_index(path.parent)["vectors"]}
    if path.name not in listed:
        return False
    sha256 = sha256_of_files([path])
    if sha256 != listed[path.name]:
        raise FileFormatError(
            f"{path} is not the file that {INDEX_NAME} lists (SHA-256 {sha256[:12]}…, listed "
            f"{listed[path.name][:12]}…); it was changed or damaged since, so restore it or write "
            "the library again"
        )
    return True
