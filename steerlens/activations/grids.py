"""Residuals of several tasks on the same base queries, remembered on disk.

A `ResidualGrid` holds one residual vector per task, base query and layer, read at the last token of
the prompt, beside those of the queries without instruction (`steerlens.tasks.grids`). The rows of
other tasks are the same for every task that is compared with them, so they are kept in
``<cache>/residuals/<model>/``, where ``<cache>`` is that of the weights
(`steerlens.models.weights`): one file per task, named by a hash of its token ids, in a folder named
by a hash of the model's identity. On a model with hooks of someone else nothing is remembered.

Size: 4 bytes × queries × layers × d_model per task, 3.3 MB in SmolLM2-135M.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from steerlens.activations.cache import MOST_PROMPTS, ResidualCache
from steerlens.engine.capture import residuals_at
from steerlens.engine.paths import slots_for
from steerlens.engine.remembered import naming_key
from steerlens.errors import ActivationError, FileFormatError, SteerlensError, SteerlensWarning
from steerlens.files import library_versions, read_tensors, write_tensors
from steerlens.models.loading import model_info, tokenize_prompts
from steerlens.models.weights import cache_folder
from steerlens.tasks.grids import TaskGrid

__all__ = ["ResidualGrid", "residual_grid"]

FILE_KIND = "residual-grid"


@dataclass(frozen=True, eq=False)
class ResidualGrid:
    """Residuals of tasks on the same base queries, in two halves.

    Attributes:
        ids: The tasks; the one in question first, at least one other.
        instructed: Residuals of each task's prompts.
        uninstructed: Residuals of the same queries without instruction.
        halves: For each query 0 or 1; no query or phrasing is in both.
        blocks: For each query a number that it shares with those of the same phrasing.
        groups: For each query a number that near-duplicates share.
        layers: The layer of each entry of the layer axis.
        metadata: What is needed to compute it again; ``notices``: what to beware of.
    """

    ids: tuple[str, ...]
    instructed: Float[Tensor, "task query layer d_model"]
    uninstructed: Float[Tensor, "query layer d_model"]
    halves: tuple[int, ...]
    blocks: tuple[int, ...]
    groups: tuple[int, ...]
    layers: tuple[int, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_tensors(
        cls,
        ids: Sequence[str],
        instructed: Tensor,
        uninstructed: Tensor,
        halves: Sequence[int],
        blocks: Sequence[int] | None = None,
        groups: Sequence[int] | None = None,
        layers: Sequence[int] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> "ResidualGrid":
        """A grid from activations computed elsewhere; every query its own block by default.

        Raises:
            ActivationError: Shapes do not fit, fewer than two tasks, a half with fewer than 2
                queries, a block in both halves, or values that are NaN or infinite.
        """
        n_tasks, n_queries = len(ids), len(halves)
        shape = tuple(instructed.shape)
        fits = instructed.ndim == 4 and shape[:2] == (n_tasks, n_queries)
        if not fits or tuple(uninstructed.shape) != shape[1:] or n_tasks < 2:
            raise ActivationError(
                "a grid needs instructed residuals [task query layer d_model] of at least 2 tasks "
                f"and uninstructed ones of the same queries; got {n_tasks} tasks, {n_queries} "
                f"queries, {shape} and {tuple(uninstructed.shape)}"
            )
        if min(sum(half == h for half in halves) for h in (0, 1)) < 2 or set(halves) - {0, 1}:
            raise ActivationError("each query needs its half, 0 or 1, and each half 2 queries")
        blocks = tuple(range(n_queries) if blocks is None else blocks)
        if len(set(zip(blocks, halves, strict=True))) > len(set(blocks)):
            raise ActivationError(
                "a block lies in both halves; what one is fitted on, the other is"
            )
        for what, values in (("instructed", instructed), ("uninstructed", uninstructed)):
            if not bool(torch.isfinite(values).all()):
                raise ActivationError(f"{what} activations hold NaN or infinity")
        return cls(
            ids=tuple(ids),
            instructed=instructed.float(),
            uninstructed=uninstructed.float(),
            halves=tuple(halves),
            blocks=blocks,
            groups=tuple(range(n_queries) if groups is None else groups),
            layers=tuple(range(shape[2]) if layers is None else layers),
            metadata=dict(metadata or {}),
        )

    def cache_of(self, name: str) -> ResidualCache:
        """Both sides of one task's prompts, of the `fit` half.

        Raises:
            ActivationError: The grid has no such task.
        """
        fit = [i for i, half in enumerate(self.halves) if half == 0]
        return ResidualCache.from_tensors(
            self.instructed[self._place(name), fit],
            self.uninstructed[fit],
            layers=self.layers,
            groups=[self.groups[i] for i in fit],
            metadata={**self.metadata, "instruction": name, "split": "fit"},
        )

    def _place(self, name: str) -> int:
        if name not in self.ids:
            raise ActivationError(f"this grid has no task {name!r}; it has {', '.join(self.ids)}")
        return self.ids.index(name)


def residual_grid(
    model: TransformerBridge,
    grid: TaskGrid,
    batch_size: int | None = None,
    chat_format: str = "auto",
    remember: bool = True,
    show_progress: bool | None = None,
) -> ResidualGrid:
    """Read the last token of every prompt of a grid at all layers.

    Args:
        model: A hooked model.
        grid: The prompts.
        batch_size: Prompts per forward pass; by default 16, or what memory allows.
        chat_format: ``"auto"``, ``"template"`` or ``"plain"``.
        remember: Keep residuals on disk, and use those kept.
        show_progress: Show a progress bar on standard error; by default only in a terminal.
    """
    rows = [
        tokenize_prompts(model, list(prompts), chat_format=chat_format)
        for prompts in (grid.uninstructed, *grid.prompts)
    ]
    folder = _folder(model) if remember else None
    tables = [_remembered(folder, row) for row in rows]
    missing = [i for i, table in enumerate(tables) if table is None]
    if missing:
        for i, table in zip(
            missing,
            _read(model, [rows[i] for i in missing], batch_size, show_progress),
            strict=True,
        ):
            tables[i] = table
            if folder is not None:
                _remember(folder / _file_name(rows[i]), table)
    info = model_info(model)
    read = [rows[i] for i in missing]
    return ResidualGrid.from_tensors(
        grid.ids,
        torch.stack([table for table in tables[1:] if table is not None]),
        torch.stack([table for table in tables[:1] if table is not None])[0],
        grid.halves,
        grid.blocks,
        grid.groups,
        metadata={
            "model": info.reference,
            "weights_hash": info.weights_hash,
            "configuration_hash": info.configuration_hash,
            "dtype": info.dtype,
            "n_layers": info.n_layers,
            "d_model": info.d_model,
            "chat_format": info.chat_format if chat_format == "auto" else chat_format,
            "position": "last_prompt",
            "n_prompts_run": sum(map(len, read)),
            "n_tokens_run": sum(len(tokens) for row in read for tokens in row),
            "notices": list(grid.notices),
            "versions": library_versions(),
        },
    )


def _read(
    model: TransformerBridge,
    rows: Sequence[Sequence[Sequence[int]]],
    batch_size: int | None,
    show_progress: bool | None,
) -> list[Float[Tensor, "query layer d_model"]]:
    """Residuals of the rows of several tasks in one call, so that they share beginnings."""
    flat = [list(tokens) for row in rows for tokens in row]
    if batch_size is None:
        batch_size = min(MOST_PROMPTS, slots_for(model, max(map(len, flat)), len(flat)))
    residuals = residuals_at(
        model,
        flat,
        [(len(tokens) - 1, len(tokens)) for tokens in flat],
        range(model.cfg.n_layers),
        batch_size=batch_size,
        show_progress=show_progress,
    )
    sizes = np.cumsum([len(row) for row in rows])[:-1].tolist()
    return list(torch.tensor_split(residuals, sizes))


def _folder(model: TransformerBridge) -> Path | None:
    """Where this model's residuals are kept; None where others changed it by hooks."""
    key = naming_key(model)
    if "outside" in key:
        return None
    return cache_folder() / "residuals" / _digest(key)


def _file_name(rows: Sequence[Sequence[int]]) -> str:
    return f"{_digest([list(tokens) for tokens in rows])}.safetensors"


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _remember(path: Path, table: Float[Tensor, "query layer d_model"]) -> None:
    try:
        write_tensors(path, FILE_KIND, {"residuals": table}, {})
    except SteerlensError as error:
        warnings.warn(
            f"residuals are not kept for the next call: {error}", SteerlensWarning, stacklevel=4
        )


def _remembered(
    folder: Path | None, rows: Sequence[Sequence[int]]
) -> Float[Tensor, "query layer d_model"] | None:
    """A table that was kept; one that cannot be read is computed again."""
    if folder is None:
        return None
    path = folder / _file_name(rows)
    if not path.is_file():
        return None
    try:
        return read_tensors(path, FILE_KIND)[0]["residuals"]
    except (FileFormatError, KeyError):
        return None
