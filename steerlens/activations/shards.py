"""Residuals on disk, in shards: more contrast pairs than fit in memory.

A folder holds

- ``shard-00000.safetensors``, …: two tensors ``instructed`` and ``uninstructed`` of shape
  ``[layer pair d_model]`` for some of the pairs. Layers come first, so that one layer is read
  (memory-mapped) without the others;
- ``index.json``, written last, and deleted before a shard is written again: layers, base query of
  each pair, shards with a hash of each, and provenance.

`shard_residuals` fills the folder from a model, `write_shards` from activations computed elsewhere.
`steerlens.attribution.rank_layers` takes `ShardedResiduals` in place of a `ResidualCache`. Ranking
holds one layer of all pairs in float32, 8 · pairs · d_model bytes: 20,000 pairs of 30 layers × 576
are 2.8 GB, a layer of them 92 MB.

A caching run that is killed goes on where it was: a shard made from the same token ids by the same
model (`steerlens.models.identity`) is kept. Shards can be computed by workers; another number of
threads adds in another order, which moves the last digits.

**dtype.** ``"float32"`` keeps what the model gave. A model that computes in bfloat16 loses nothing
with ``"bfloat16"`` at single positions; elsewhere rounding to 8 bits of mantissa (bfloat16) or 11
(float16) moves AUROC in its third or fourth decimal.

>>> import tempfile
>>> blocks = [(torch.ones(3, 2, 4), torch.zeros(3, 2, 4)), (torch.ones(2, 2, 4), torch.zeros(2, 2, 4))]
>>> with tempfile.TemporaryDirectory() as folder:
...     shards = write_shards(folder, blocks)
...     shards, [len(one.groups) for one in shards], shards.runs(1).shape
(ShardedResiduals(5 pairs in 2 shards, 2 layers 0–1, d_model 4, float32), [3, 2], (2, 5, 4))
"""  # noqa: E501 (the doctest's input is one line)

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from steerlens.activations.cache import ResidualCache, check_layers, metadata_of_pairs
from steerlens.activations.pieces import ResidualPiece, residual_pieces
from steerlens.activations.positions import Position, check_pairs, rows_to_read
from steerlens.activations.shard_files import (
    check_shard,
    read_layer,
    read_shard,
    shard_path,
    shard_record,
    write_shard,
)
from steerlens.errors import ActivationError, FileFormatError, SteerlensError, unknown_name
from steerlens.errors.arguments import arguments
from steerlens.errors.progress import shown
from steerlens.files import check_writable, write_text
from steerlens.models.loading import model_info
from steerlens.models.placement import DTYPES
from steerlens.runs.executors import Workers, check_workers, executor
from steerlens.tasks.notices import warn_of_pairs

__all__ = ["ShardedResiduals", "shard_residuals", "write_shards"]

INDEX = "index.json"
SCHEMA = "steerlens-shards/1"
Array = np.ndarray


@dataclass(frozen=True, eq=False, repr=False)
class ShardedResiduals:
    """Residuals of both sides of contrast pairs, on disk; made by `open`.

    Attributes:
        folder: The folder.
        layers: The layers held.
        groups: Base-query number of each pair; see `ResidualCache`.
        d_model: Width of the residual stream.
        dtype: How numbers stand on the disk.
        sizes: Pairs in each shard.
        metadata: Provenance, as of a `ResidualCache`.
        contents: Hash of each shard's numbers; empty where an earlier version wrote the index.
    """

    folder: Path
    layers: tuple[int, ...]
    groups: tuple[int, ...]
    d_model: int
    dtype: str
    sizes: tuple[int, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    contents: tuple[str, ...] = ()

    @classmethod
    def open(cls, folder: str | Path) -> "ShardedResiduals":
        """Open a folder of shards; headers are checked, no residual is read.

        Raises:
            FileFormatError: No index (caching was interrupted; the same call goes on with it), or a
                shard that is missing, truncated, of another shape than the index says, or written
                again since the index was.
        """
        path = Path(folder) / INDEX
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileFormatError(
                f"{folder} holds no whole set of residual shards ({INDEX} is missing); cache them "
                "with shard_residuals, which goes on where it was interrupted"
            ) from None
        except (OSError, ValueError) as error:
            raise FileFormatError(f"{path} cannot be read: {error}") from error
        if not isinstance(record, dict) or record.get("schema") != SCHEMA:
            raise FileFormatError(f"{path} is no index of residual shards ({SCHEMA})")
        try:
            opened = cls(
                folder=Path(folder),
                layers=tuple(record["layers"]),
                groups=tuple(record["groups"]),
                d_model=record["d_model"],
                dtype=record["dtype"],
                sizes=tuple(record["sizes"]),
                metadata=record["metadata"],
                contents=tuple(record.get("contents", ())),
            )
        except (KeyError, TypeError) as error:
            raise FileFormatError(f"{path} lacks a part of its index: {error}") from error
        if sum(opened.sizes) != opened.n_pairs:
            raise FileFormatError(f"{path} counts {sum(opened.sizes)} and {opened.n_pairs} pairs")
        for number, size in enumerate(opened.sizes):
            shape = (len(opened.layers), size, opened.d_model)
            check_shard(shard_path(folder, number), shape, opened._content(number))
        return opened

    def _content(self, number: int) -> str | None:
        return self.contents[number] if self.contents else None

    @property
    def n_pairs(self) -> int:
        """Number of contrast pairs."""
        return len(self.groups)

    def runs(self, layer: int) -> Float[Array, "side pair d_model"]:
        """One layer's runs of all pairs in float32, instructed side first.

        Raises:
            ActivationError: "layer 31 is not in …".
            FileFormatError: A shard that can no longer be read.
        """
        if layer not in self.layers:
            raise ActivationError(f"layer {layer} is not in {self.folder}; it holds {self.layers}")
        place = self.layers.index(layer)
        runs = np.empty((2, self.n_pairs, self.d_model), dtype=np.float32)
        start = 0
        for number, size in enumerate(self.sizes):
            path = shard_path(self.folder, number)
            for side, values in enumerate(read_layer(path, place, self._content(number))):
                runs[side, start : start + size] = values.float().numpy()
            start += size
        return runs

    def layer(self, layer: int) -> ResidualCache:
        """One layer of all pairs as a cache in memory: to fit a vector there, for example."""
        sides = torch.from_numpy(self.runs(layer))[:, :, None]
        return ResidualCache.from_tensors(
            sides[0], sides[1], layers=(layer,), groups=self.groups, metadata=self.metadata
        )

    def __iter__(self) -> Iterator[ResidualCache]:
        """Each shard, all layers, as a cache in memory; one at a time."""
        start = 0
        for number, size in enumerate(self.sizes):
            whole = read_shard(shard_path(self.folder, number), self._content(number))
            instructed, uninstructed = (values.transpose(0, 1) for values in whole)
            groups = self.groups[start : start + size]
            yield ResidualCache.from_tensors(
                instructed, uninstructed, self.layers, groups, self.metadata
            )
            start += size

    def __len__(self) -> int:
        return len(self.sizes)

    def __repr__(self) -> str:
        span = f"{self.layers[0]}–{self.layers[-1]}" if self.layers else "none"
        return (
            f"ShardedResiduals({self.n_pairs} pairs in {len(self)} shards, {len(self.layers)} "
            f"layers {span}, d_model {self.d_model}, {self.dtype})"
        )


@arguments
def shard_residuals(
    model: TransformerBridge,
    pairs: Any,
    folder: str | Path,
    position: Position = "last_prompt",
    layers: Sequence[int] | None = None,
    batch_size: int | None = None,
    chat_format: str = "auto",
    pairs_per_shard: int = 1024,
    dtype: str = "float32",
    show_progress: bool | None = None,
    workers: Workers | None = None,
) -> ShardedResiduals:
    """`cache_residuals` into a folder, shard by shard; goes on after an interruption.

    Args:
        model: A hooked model.
        pairs: A `ContrastSet`.
        folder: New, or one that the same call has begun to fill.
        position: Where the residual is read; see `steerlens.activations.cache`.
        layers: Layers to keep; all by default.
        batch_size: Prompts per forward pass; by default 16, or what memory allows.
        chat_format: See `steerlens.models.loading`.
        pairs_per_shard: Pairs held in memory at once; 1,024 of 30 layers × 576 are 142 MB.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"`` on the disk.
        show_progress: Show a progress bar on standard error; by default only in a terminal.
        workers: Compute shards in Ray workers instead of here; this process writes them.

    Raises:
        ActivationError: As `cache_residuals`; fewer than 2 pairs per shard; values beyond `dtype`.
        UnknownNameError: "unknown dtype …".
        SteerlensError: "cannot write …"; workers that cannot be had.
    """
    check_pairs(pairs)
    check_workers(workers)
    layers = check_layers(model, layers)
    _check_dtype(dtype)
    if pairs_per_shard < 2:
        raise ActivationError(f"pairs_per_shard must be at least 2; got {pairs_per_shard}")
    check_writable(Path(folder) / INDEX)
    parts = [pairs[start:stop] for start, stop in _bounds(len(pairs), pairs_per_shard)]
    pieces = residual_pieces(model, parts, position, layers, batch_size, chat_format, stored=dtype)
    metadata: Mapping[str, Any] = {}
    # Equal shards are one piece.
    missing: dict[str, ResidualPiece] = {}
    numbers: dict[str, list[int]] = {}
    for number, piece in enumerate(pieces):
        record = shard_record(shard_path(folder, number))
        if record.get("made_from") == piece.name:
            metadata = record["metadata"]
        else:
            missing[piece.name] = piece
            numbers.setdefault(piece.name, []).append(number)
    n_kept = len(pieces) - sum(map(len, numbers.values()))
    disable = not shown(show_progress)
    with (
        executor(model, workers if missing else None) as pool,
        tqdm(total=len(pieces), desc="caching", unit="shard", disable=disable) as bar,
    ):
        bar.update(n_kept)
        for piece, cache in _computed(model, list(missing.values()), pool):
            metadata = cache.metadata
            _remove_index(folder)
            record = {"made_from": piece.name, "metadata": dict(metadata)}
            for number in numbers[piece.name]:
                write_shard(shard_path(folder, number), cache, dtype, record)
                bar.update()
    # What the shard that was made last says of its pairs is said of all pairs instead.
    lengths = rows_to_read(model, pairs, position, chat_format).prompt_lengths
    metadata = {**metadata, **metadata_of_pairs(pairs, lengths)}
    metadata.pop("n_prompts_run", None)
    warn_of_pairs(metadata)
    sizes = tuple(map(len, parts))
    d_model = model_info(model).d_model
    return _with_index(
        ShardedResiduals(Path(folder), layers, pairs.query_groups, d_model, dtype, sizes, metadata)
    )


def write_shards(
    folder: str | Path,
    blocks: Iterable[tuple[Tensor, Tensor]],
    layers: Sequence[int] | None = None,
    groups: Sequence[int] | None = None,
    metadata: Mapping[str, Any] | None = None,
    dtype: str = "float32",
) -> ShardedResiduals:
    """Write activations computed elsewhere, one shard per block; one block is held at a time.

    Args:
        folder: The folder; made if it does not exist.
        blocks: Instructed and uninstructed residuals, each ``[pair layer d_model]``.
        layers: Layer numbers; 0, 1, … by default.
        groups: Base-query number of each pair of all blocks; every pair its own by default.
        metadata: Provenance to keep.
        dtype: As in `shard_residuals`.

    Raises:
        ActivationError: As `ResidualCache.from_tensors`, or blocks that do not fit each other.
    """
    _check_dtype(dtype)
    d_model: int | None = None
    sizes: list[int] = []
    for number, block in enumerate(blocks):
        cache = ResidualCache.from_tensors(*block, layers)
        if d_model is not None and (cache.layers, cache.d_model) != (layers, d_model):
            raise ActivationError(
                f"block {number} has {len(cache.layers)} layers of width {cache.d_model}, those "
                f"before {len(layers or ())} of {d_model}"
            )
        layers, d_model = cache.layers, cache.d_model
        if not sizes:
            _remove_index(folder)
        write_shard(shard_path(folder, number), cache, dtype, {})
        sizes.append(cache.n_pairs)
    if d_model is None:
        raise ActivationError("no block of residuals was given; give at least one")
    groups = tuple(range(sum(sizes)) if groups is None else map(int, groups))
    if len(groups) != sum(sizes):
        raise ActivationError(f"expected {sum(sizes)} groups, one per pair; got {len(groups)}")
    return _with_index(
        ShardedResiduals(
            Path(folder), tuple(layers or ()), groups, d_model, dtype, tuple(sizes), metadata or {}
        )
    )


def _computed(
    model: TransformerBridge, pieces: Sequence[ResidualPiece], pool: Any
) -> Iterator[tuple[ResidualPiece, ResidualCache]]:
    if pool is not None:
        yield from pool.residuals(pieces)
        return
    for piece in pieces:
        yield piece, piece.compute(model)


def _check_dtype(dtype: str) -> None:
    if dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)


def _remove_index(folder: str | Path) -> None:
    """Before the first shard is written: the folder is not whole until the new index stands."""
    path = Path(folder) / INDEX
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise SteerlensError(
            f"cannot write {path}: {error.strerror}; choose another place"
        ) from error


def _bounds(n_pairs: int, pairs_per_shard: int) -> list[tuple[int, int]]:
    """Where shards begin and end; a single pair left over joins the last one."""
    starts = list(range(0, n_pairs, pairs_per_shard))
    if len(starts) > 1 and n_pairs - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], n_pairs], strict=True))


def _with_index(shards: ShardedResiduals) -> ShardedResiduals:
    """The shards with the hashes of their files, and their index written."""
    paths = [shard_path(shards.folder, number) for number in range(len(shards))]
    contents = [shard_record(path).get("content", "") for path in paths]
    record = {**vars(shards), "schema": SCHEMA, "contents": contents}
    del record["folder"]
    write_text(shards.folder / INDEX, json.dumps(record))
    return ShardedResiduals.open(shards.folder)
