"""Keys and values: what the engine remembers of tokens already read.

Two shapes of memory, both handed to the Hugging Face model in place of its own cache:

* `PrefixCache`, while reading prompts: a known prefix (none, one shared by all rows, or one a row)
  is put before the new tokens, whose keys and values are kept for later.
* `SlotCache`, while decoding: one fixed region a row ("slot"). A step writes one token a row in
  place; nothing is copied or grown. Active rows are slots 0 … n−1.

`attention_masks` gives the mask for both, also for models whose layers see a sliding window.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["PrefixCache", "SlotCache", "attention_masks"]

# Positions looked at grow in steps of so many: for every new shape the CPU's matrix library
# compiles a kernel and keeps it, which at one shape a token was 400 MB after 96 tokens.
_WIDTH_STEP = 32

KeyValues = dict[
    int, tuple[Float[Tensor, "row head pos d_head"], Float[Tensor, "row head pos d_v"]]
]


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


def _lazy_zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Zeros; on a CPU their pages are taken from the system only when they are first written.

    numpy's zeros come from ``calloc``; torch's are written at once, 0.7 s for 96 rows × 160 tokens
    of SmolLM2. Zeros they must be: an unused place is masked, and 0 · NaN would still be NaN.
    """
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    n_bytes = math.prod(shape) * like.element_size()
    return torch.from_numpy(np.zeros(n_bytes, dtype=np.uint8)).view(like.dtype).view(shape)


class PrefixCache:
    """Memory of one reading pass: a prefix before, new tokens kept.

    Args:
        prefix: Keys and values by layer of what stands before the new tokens; its rows are 1 (one
            prefix for all) or those of the pass.
    """

    def __init__(self, prefix: KeyValues | None = None) -> None:
        self.prefix: KeyValues = prefix or {}
        self.new: KeyValues = {}

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Called by each attention layer with the new tokens' keys and values."""
        self.new[layer_idx] = (keys, values)
        if layer_idx not in self.prefix:
            return keys, values
        before = self.prefix[layer_idx]
        joined = [
            torch.cat([old.expand(len(new), -1, -1, -1), new], dim=2)
            for old, new in zip(before, (keys, values), strict=True)
        ]
        return joined[0], joined[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens before the new ones; asked for by models that make their own positions."""
        return self.prefix[layer_idx][0].shape[2] if layer_idx in self.prefix else 0


class SlotCache:
    """Memory of the decoding rows: `n_slots` regions of `n_positions` tokens, written in place.

    A step looks at the first `width` positions of every slot; those not yet written are zeros, to
    be masked.

    Args:
        n_slots: Rows decoded together at most.
        n_positions: Longest prompt plus response, in tokens.
    """

    def __init__(self, n_slots: int, n_positions: int) -> None:
        self.n_slots = n_slots
        self.n_positions = n_positions
        self.lengths: list[int] = []
        self.width = 0
        self._stores: dict[int, tuple[Tensor, Tensor]] = {}
        self._rows = torch.empty(0, dtype=torch.long)
        self._ends = self._rows

    def write(self, slot: int, layer: int, start: int, keys: Tensor, values: Tensor) -> None:
        """Put the keys and values ``[head pos d]`` of a row's tokens from `start` on in place."""
        if layer not in self._stores:
            n_heads, _, width = keys.shape
            room = (self.n_slots, n_heads)
            # Keys lie transposed, as `steerlens.engine.attention` reads them.
            self._stores[layer] = (
                _lazy_zeros((*room, width, self.n_positions), keys).mT,
                _lazy_zeros((*room, self.n_positions, values.shape[2]), values),
            )
        stop = start + keys.shape[1]
        for store, new in zip(self._stores[layer], (keys, values), strict=True):
            store[slot, :, start:stop] = new

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
        """Called by each attention layer with one token a row; returns views, not copies."""
        n_rows = len(self.lengths)
        if self._rows.device != keys.device:  # the layer is on another device than the last one
            self._rows, self._ends = self._rows.to(keys.device), self._ends.to(keys.device)
        views = []
        for store, new in zip(self._stores[layer_idx], (keys, values), strict=True):
            store[self._rows, :, self._ends] = new[:, :, 0]
            views.append(store[:n_rows, :, : self.width])
        return views[0], views[1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Longest row so far; asked for by models that make their own positions."""
        return max(self.lengths, default=0)
