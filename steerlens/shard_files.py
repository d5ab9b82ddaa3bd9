"""One shard of residuals as a file: written whole, read a layer at a time without the others."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from steerlens.activations import ResidualCache
from steerlens.errors import ActivationError, FileFormatError
from steerlens.files import HEADER_KEY, write_tensors
from steerlens.placement import DTYPES

__all__ = [
    "check_shard",
    "read_layer",
    "read_shard",
    "shard_path",
    "shard_record",
    "write_shard",
]

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
    write_tensors(path, _FILE_KIND, stored, record)


def shard_record(path: Path) -> dict[str, Any]:
    """What a shard says it was made from; nothing for a file that is broken or another's."""
    try:
        with safe_open(path, framework="pt") as file:
            record: dict[str, Any] = json.loads((file.metadata() or {})[HEADER_KEY])
    except (SafetensorError, OSError, ValueError, KeyError):
        return {}
    return record if record.get("kind") == _FILE_KIND else {}


def check_shard(path: Path, shape: tuple[int, int, int]) -> None:
    """Refuse a shard whose header says another ``[layer pair d_model]``.

    Raises:
        FileFormatError: That, or a file that is missing or truncated.
    """
    try:
        with safe_open(path, framework="pt") as file:
            for side in _SIDES:
                found = tuple(file.get_slice(side).get_shape())
                if found != shape:
                    raise FileFormatError(f"{path} holds {found}, its index says {shape}")
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def read_layer(path: Path, place: int) -> list[Tensor]:
    """One layer of both sides, ``[pair d_model]``, instructed first; `FileFormatError` if broken.

    Args:
        path: The shard.
        place: Which of its layers, counted from 0.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return [file.get_slice(side)[place] for side in _SIDES]
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def read_shard(path: Path) -> list[Tensor]:
    """Both sides whole, ``[layer pair d_model]``; `FileFormatError` if broken."""
    try:
        with safe_open(path, framework="pt") as file:
            return [file.get_tensor(side) for side in _SIDES]
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> FileFormatError:
    return FileFormatError(
        f"{path} is missing, truncated or no shard of residuals: {error}; cache again, which keeps "
        "the shards that are whole"
    )
