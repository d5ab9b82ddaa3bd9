"""Keys and values: what the engine remembers of tokens already read.

A `Reading` holds the keys and values of one row's tokens. Two caches stand in for Hugging Face's
own while a pass runs:

* `PassCache` puts what each row has read before in front of its new tokens, and can keep the new
  keys and values;
* `SlotCache`, while decoding, has one fixed region per row (a slot). Each step writes one token per
  row in place; nothing is copied or grown. Active rows are slots 0 … n−1.

`attention_masks` makes the masks for both, also for layers that see a sliding window.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["PassCache", "Reading", "SlotCache", "attention_masks"]

# Widths grow in steps of this many positions. The CPU's matrix library compiles and keeps a kernel
# for every new shape: with one shape per token that was 400 MB after 96 tokens.
_WIDTH_STEP = 32

KeysAndValues = tuple[Float[Tensor, "*row head pos d_head"], Float[Tensor, "*row head pos d_v"]]


@dataclass(frozen=True, eq=False)
class Reading:
    """What is known of a row after some of its tokens have been read.

    Attributes:
        n_tokens: Tokens that this reading added.
        parent: The reading it continues.
        memory: For each block it ran through, keys and values of the added tokens.
        resid: For the layers that were asked for, residuals ``[pos d_model]`` of the added tokens.
        last: Residual of the last token after the last block that was run.
        trunk: For a steered row, the unsteered reading whose keys and values it shares in the
            blocks that are not in `memory`.
    """

    n_tokens: int
    parent: "Reading | None" = None
    memory: Mapping[int, KeysAndValues] = field(default_factory=dict)
    resid: Mapping[int, Tensor] = field(default_factory=dict)
    last: Tensor | None = None
    trunk: "Reading | None" = None

    @property
    def length(self) -> int:
        """Tokens read in all."""
        return self.n_tokens + (self.parent.length if self.parent else 0)

    def chain(self) -> "list[Reading]":
        """The readings it continues, first to last, and itself."""
        return [*(self.parent.chain() if self.parent else []), self]

    def until(self, n_tokens: int) -> "Reading":
        """The reading of the first `n_tokens` of these tokens."""
        return Reading(n_tokens, trunk=self)

    def residual(self, layer: int) -> Float[Tensor, "pos d_model"]:
        """Residuals of all tokens, at a layer that every reading of the chain has kept."""
        return torch.cat([reading.resid[layer] for reading in self.chain()])

    def keys_and_values(self, layer: int) -> KeysAndValues:
        """Keys and values of all tokens in one block."""
        if layer not in self.memory:
            if self.trunk is None:  # a block that shares another one's keys and values
                raise KeyError(f"block {layer} has no keys and values of its own")
            keys, values = self.trunk.keys_and_values(layer)
            return keys[:, : self.length], values[:, : self.length]
        if self.parent is None:
            return self.memory[layer]
        before, new = self.parent.keys_and_values(layer), self.memory[layer]
        return torch.cat([before[0], new[0]], dim=1), torch.cat([before[1], new[1]], dim=1)


class PassCache:
    """Hugging Face's cache for one pass: what each row has read before, then its new tokens.

    Args:
        before: One reading per row, or ``None`` where nothing stands before its tokens; rows that
            are not there yet come last.
        remember: Keep the new keys and values in `new`, by layer.
    """

    def __init__(self, before: Sequence[Reading | None], remember: bool) -> None:
        self.before = before
        self.remember = remember
        self.new: dict[int, KeysAndValues] = {}
        self.width = max(reading.length if reading else 0 for reading in before)
        self._is_shared = len({id(reading) for reading in before}) == 1

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Called by each attention layer with the new tokens' keys and values."""
        if self.remember:
            self.new[layer_idx] = (keys, values)
        if self.width == 0:
            return keys, values
        present = self.before[: 1 if self._is_shared else len(keys)]
        number = {id(reading): place for place, reading in enumerate(dict.fromkeys(present))}
        known = [
            [
                pad(part, (0, 0, 0, self.width - part.shape[1]))
                for part in self._of(reading, keys, values, layer_idx)
            ]
            for reading in dict.fromkeys(present)
        ]
        place = [number[id(reading)] for reading in present]
        joined = [
            torch.cat([_rows(torch.stack(part), place, len(new)), new], dim=2)
            for part, new in zip(zip(*known, strict=True), (keys, values), strict=True)
        ]
        return joined[0], joined[1]

    @staticmethod
    def _of(reading: Reading | None, keys: Tensor, values: Tensor, layer: int) -> KeysAndValues:
        if reading is None:
            return keys[0, :, :0], values[0, :, :0]
        return reading.keys_and_values(layer)

    # Asked for by models that make their own positions or, without a mask, their own masks.

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens before the new ones."""
        return self.width

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Position of the first new token."""
        return self.width

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """How many keys there are, and the position of the first."""
        return self.width + query_length, 0


class SlotCache:
    """Hugging Face's cache for the decoding rows, written in place.

    A step looks at the first `width` positions of every slot; those not written yet are zeros, to
    be masked.

    Args:
        n_slots: Most rows decoded together.
        n_positions: Longest prompt plus response, in tokens.
        dtype: What keys and values are kept in; by default as they come.
    """

    def __init__(self, n_slots: int, n_positions: int, dtype: torch.dtype | None = None) -> None:
        self.n_slots = n_slots
        self.n_positions = n_positions
        self.dtype = dtype
        self.lengths: list[int] = []
        self.width = 0
        self._stores: dict[int, tuple[Tensor, Tensor]] = {}
        self._rows = torch.empty(0, dtype=torch.long)
        self._ends = self._rows

    def write(self, slot: int, layer: int, keys: Tensor, values: Tensor) -> None:
        """Put the keys and values ``[head pos d]`` of a row's first tokens in their place."""
        if layer not in self._stores:
            n_heads, _, width = keys.shape
            room = (self.n_slots, n_heads)
            dtype, device = self.dtype or keys.dtype, keys.device
            # On a CPU keys lie transposed, as `steerlens.engine.attention` reads them; the fused
            # kernels of other devices refuse that.
            if device.type == "cpu":
                stored = _lazy_zeros((*room, width, self.n_positions), dtype, device).mT
            else:
                stored = _lazy_zeros((*room, self.n_positions, width), dtype, device)
            self._stores[layer] = (
                stored,
                _lazy_zeros((*room, self.n_positions, values.shape[2]), dtype, device),
            )
        for store, new in zip(self._stores[layer], (keys, values), strict=True):
            store[slot, :, : keys.shape[1]] = new

    def move(self, source: int, target: int) -> None:
        """Copy one row's memory to another slot, the token of the last step included."""
        stop = self.lengths[source] + 1
        for stores in self._stores.values():
            for store in stores:
                store[target, :, :stop] = store[source, :, :stop]

    def begin_step(self, lengths: Sequence[int], device: str | torch.device) -> Tensor:
        """Fix where each active row's next token goes, and how many positions are looked at.

        Returns:
            The positions of the new tokens, ``[row 1]``.
        """
        self.lengths = list(lengths)
        needed = max(self.lengths) + 1
        self.width = min(-(-needed // _WIDTH_STEP) * _WIDTH_STEP, self.n_positions)
        self._ends = torch.tensor(self.lengths, device=device)
        self._rows = torch.arange(len(self.lengths), device=device)
        return self._ends[:, None]

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Called by each attention layer with one token per row; returns views, not copies."""
        n_rows = len(self.lengths)
        if self._rows.device != keys.device:  # layers may live on several devices
            self._rows, self._ends = self._rows.to(keys.device), self._ends.to(keys.device)
        views = []
        for store, new in zip(self._stores[layer_idx], (keys, values), strict=True):
            store[self._rows, :, self._ends] = new[:, :, 0].to(store.dtype)
            views.append(store[:n_rows, :, : self.width])
        return views[0], views[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Length of the longest row; asked for by models that make their own positions."""
        return max(self.lengths, default=0)


def _rows(distinct: Tensor, places: Sequence[int], n_rows: int) -> Tensor:
    """What each row has read, of what is distinct; copied only where rows differ."""
    if len(distinct) == 1:
        return distinct.expand(n_rows, *distinct.shape[1:])
    return distinct if len(distinct) == n_rows else distinct[list(places)]


def attention_masks(
    config: Any,
    queries: Int[Tensor, "#row query"],
    keys: Int[Tensor, "#row key"],
    real: Bool[Tensor, "#row key"],
    dtype: torch.dtype,
) -> Any:
    """What each query may look at, by absolute positions; a dict for models whose layers differ.

    The masks are added to attention scores: 0 where a key may be seen, minus infinity elsewhere.
    (Fused attention on a CPU takes these faster than booleans, which it turns into them.)

    Args:
        config: The Hugging Face config.
        queries: Positions of the new tokens; one row serves all when they agree.
        keys: Positions of all keys.
        real: Keys that exist (padding and unused slots do not).
        dtype: Of the masks; fused attention wants the model's.
    """
    causal = (keys[:, None, :] <= queries[:, :, None]) & real[:, None, :]
    window = getattr(config, "sliding_window", None)
    chunk = getattr(config, "attention_chunk_size", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    masks = {"full_attention": causal}
    if window and (not kinds or "sliding_attention" in kinds):
        masks["sliding_attention"] = causal & (keys[:, None, :] > queries[:, :, None] - window)
    if chunk and "chunked_attention" in kinds:
        chunks = keys[:, None, :] // chunk == queries[:, :, None] // chunk
        masks["chunked_attention"] = causal & chunks
    if len(masks) == 1:
        return _added(causal, dtype)
    if not kinds:
        return _added(masks["sliding_attention"], dtype)
    return {kind: _added(seen, dtype) for kind, seen in masks.items()}


def _added(
    seen: Bool[Tensor, "row query key"], dtype: torch.dtype
) -> Float[Tensor, "row 1 query key"]:
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, -torch.inf)[:, None]


def _lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU their pages are taken from the system only when they are first written.

    numpy's zeros come from ``calloc``; torch's are written at once, 0.7 s for 96 rows × 160 tokens
    of SmolLM2. They must be zeros: an unused place is masked, and 0 · NaN would still be NaN.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    n_bytes = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(np.zeros(n_bytes, dtype=np.uint8)).view(dtype).view(shape)
