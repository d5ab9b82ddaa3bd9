"""One shard of residuals as a file: written whole, read one layer at a time without the others.

A shard's header holds a hash of its numbers, and the folder's index the hashes of all shards. A
shard that was written again since the index was is refused, whether or not its shape is the same.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from steerlens.activations.cache import ResidualCache
from steerlens.activations.positions import SIDES
from steerlens.errors import ActivationError, FileFormatError
from steerlens.files import HEADER_KEY, write_tensors
from steerlens.models.fingerprint import digest_of
from steerlens.models.placement import DTYPES

__all__ = ["check_shard", "read_layer", "read_shard", "shard_path", "shard_record", "write_shard"]

FILE_KIND = "residual-shard"


def shard_path(folder: str | Path, number: int) -> Path:
    """The file of the shard of this number."""
    return Path(folder) / f"shard-{number:05d}.safetensors"


def write_shard(path: Path, cache: ResidualCache, dtype: str, record: Mapping[str, Any]) -> None:
    """Write a cache as a shard, atomically.

    Raises:
        ActivationError: A value beyond `dtype`.
    """
    stored = {}
    for side in SIDES:
        values = getattr(cache, side).transpose(0, 1).to(DTYPES[dtype])
        finite = torch.isfinite(values).all(dim=2)
        if not bool(finite.all()):
            layer, pair = (~finite).nonzero()[0].tolist()
            raise ActivationError(
                f"{side} activations of pair {pair} of {path.name} at layer {cache.layers[layer]} "
                f"are too large for {dtype}; keep them in float32 or bfloat16"
            )
        stored[side] = values
    content = hashlib.sha256(b"".join(map(digest_of, stored.values()))).hexdigest()
    write_tensors(path, FILE_KIND, stored, {**record, "content": content})


def shard_record(path: Path) -> dict[str, Any]:
    """What a shard was made from; nothing for a missing, broken or foreign file."""
    try:
        with safe_open(path, framework="pt") as file:
            record: dict[str, Any] = json.loads((file.metadata() or {})[HEADER_KEY])
    except (SafetensorError, OSError, ValueError, KeyError):
        return {}
    return record if record.get("kind") == FILE_KIND else {}


def check_shard(path: Path, shape: tuple[int, int, int], content: str | None = None) -> None:
    """Refuse a shard whose header has another ``[layer pair d_model]`` or other numbers.

    Args:
        path: The shard.
        shape: Shape of each side, according to the index.
        content: Hash of the numbers, according to the index; None in one of an earlier version.

    Raises:
        FileFormatError: As described, or a file that is missing or truncated.
    """
    with _opened(path, content) as file:
        for side in SIDES:
            there = tuple(file.get_slice(side).get_shape())
            if there != shape:
                raise FileFormatError(f"{path} holds {there}, its index says {shape}")


def read_layer(path: Path, place: int, content: str | None = None) -> list[Tensor]:
    """The layer at this place of the file, ``[pair d_model]``, instructed side first."""
    with _opened(path, content) as file:
        return [file.get_slice(side)[place] for side in SIDES]


def read_shard(path: Path, content: str | None = None) -> list[Tensor]:
    """Both sides whole, ``[layer pair d_model]``, instructed side first."""
    with _opened(path, content) as file:
        return [file.get_tensor(side) for side in SIDES]


@contextmanager
def _opened(path: Path, content: str | None) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            if content is not None and content not in (file.metadata() or {}).get(HEADER_KEY, ""):
                raise FileFormatError(
                    f"{path} was written again since the index of its folder was; cache again, "
                    "which keeps the shards that are whole"
                )
            yield file
    except (SafetensorError, OSError) as error:
        raise FileFormatError(
            f"{path} is missing, truncated or no shard of residuals: {error}; cache again, which "
            "keeps the shards that are whole"
        ) from error
