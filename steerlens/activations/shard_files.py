"""One shard of residuals as a file: written whole, read a layer at a time without the others.

A shard's header holds a hash of its numbers, and the folder's index the hashes of all shards. A
shard that was written again since the index was is refused, whether or not its shape is the same.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from steerlens.activations.cache import ResidualCache
from steerlens.errors import ActivationError, FileFormatError, SteerlensError
from steerlens.files import HEADER_KEY, write_tensors
from steerlens.models.fingerprint import digest_of
from steerlens.models.placement import DTYPES

__all__ = [
    "INDEX",
    "check_shard",
    "read_layer",
    "read_shard",
    "shard_path",
    "shard_record",
    "take_mark_away",
    "write_shard",
]

INDEX = "index.json"
_FILE_KIND = "residual-shard"
_SIDES = ("instructed", "uninstructed")


def shard_path(folder: str | Path, number: int) -> Path:
    """Where the shard of this number stands."""
    return Path(folder) / f"shard-{number:05d}.safetensors"


def write_shard(path: Path, cache: ResidualCache, dtype: str, record: Mapping[str, Any]) -> None:
    """Write a cache as a shard, atomically.

    Raises:
        ActivationError: A value beyond `dtype`.
    """
    stored = {
        side: values.transpose(0, 1).to(DTYPES[dtype])
        for side, values in zip(_SIDES, (cache.instructed, cache.uninstructed), strict=True)
    }
    for side, values in stored.items():
        finite = torch.isfinite(values).all(dim=2)
        if not bool(finite.all()):
            place, pair = (~finite).nonzero()[0].tolist()
            raise ActivationError(
                f"{side} activations of pair {pair} of {path.name} at layer "
                f"{cache.layers[place]} are too large for {dtype}; keep them in float32 or bfloat16"
            )
    content = hashlib.sha256(b"".join(map(digest_of, stored.values()))).hexdigest()
    write_tensors(path, _FILE_KIND, stored, {**record, "content": content})


def shard_record(path: Path) -> dict[str, Any]:
    """What a shard says it was made from; nothing for a file that is broken or another's."""
    try:
        with safe_open(path, framework="pt") as file:
            record: dict[str, Any] = json.loads((file.metadata() or {})[HEADER_KEY])
    except (SafetensorError, OSError, ValueError, KeyError):
        return {}
    return record if record.get("kind") == _FILE_KIND else {}


def check_shard(path: Path, shape: tuple[int, int, int], content: str | None = None) -> None:
    """Refuse a shard whose header says another ``[layer pair d_model]``, or other numbers.

    Args:
        path: The shard.
        shape: Of each side, according to the index.
        content: Hash of the numbers, according to the index; None in one of an earlier version.

    Raises:
        FileFormatError: That, or a file that is missing or truncated.
    """
    try:
        with safe_open(path, framework="pt") as file:
            _check_content(path, file, content)
            for side in _SIDES:
                found = tuple(file.get_slice(side).get_shape())
                if found != shape:
                    raise FileFormatError(f"{path} holds {found}, its index says {shape}")
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def read_layer(path: Path, place: int, content: str | None = None) -> list[Tensor]:
    """One layer of both sides, ``[pair d_model]``, instructed first; `FileFormatError` if broken.

    Args:
        path: The shard.
        place: Which of its layers, counted from 0.
        content: As for `check_shard`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            _check_content(path, file, content)
            return [file.get_slice(side)[place] for side in _SIDES]
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def read_shard(path: Path, content: str | None = None) -> list[Tensor]:
    """Both sides whole, ``[layer pair d_model]``; `FileFormatError` if broken."""
    try:
        with safe_open(path, framework="pt") as file:
            _check_content(path, file, content)
            return [file.get_tensor(side) for side in _SIDES]
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def take_mark_away(folder: str | Path) -> None:
    """Before the first shard is written: what is whole no longer is, until the new index stands."""
    path = Path(folder) / INDEX
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise SteerlensError(
            f"cannot write {path}: {error.strerror}; choose another place"
        ) from error


def _check_content(path: Path, file: Any, content: str | None) -> None:
    if content is not None and content not in (file.metadata() or {}).get(HEADER_KEY, ""):
        raise FileFormatError(
            f"{path} was written again since the index of its folder was; cache again, which keeps "
            "the shards that are whole"
        )


def _unreadable(path: Path, error: Exception) -> FileFormatError:
    return FileFormatError(
        f"{path} is missing, truncated or no shard of residuals: {error}; cache again, which keeps "
        "the shards that are whole"
    )
