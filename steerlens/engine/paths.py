"""The two paths a call can take, and what decides how rows ride together.

`steerlens.engine.choosing` says which path a call takes. Here is what a path is: whether rows may
be padded and keys and values remembered on it (`FastPath`), the length beyond which a model
computes by the whole row (`length_switch`), the context every call runs in (`alone_with`), and how
many rows memory allows (`slots_for`).
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.batches import length_batches
from steerlens.engine.modules import (
    FUSED,
    device_of,
)
from steerlens.models.exclusion import exclusively

__all__ = [
    "BRIDGE",
    "FastPath",
    "alone_with",
    "free_memory",
    "length_switch",
    "mixes_dtypes",
    "slots_for",
]

# Rows beyond this gain little: weights are read from memory once a step for all of them.
_MOST_SLOTS = 128
_MEMORY_SHARE = 0.4
# Rotary embeddings that take other factors once a row is longer than so many tokens.
_SWITCHING_ROPE = ("longrope", "dynamic")


@dataclass(frozen=True)
class FastPath:
    """Which path a model takes now.

    Attributes:
        attention: ``"sdpa"`` on the fast path, ``"eager"`` on the bridge's own.
        reason: Why, in a phrase.
        caches: On the plain path, whether a decoding step may rest on remembered keys and values.
        pads: Whether rows of different lengths may share a batch of the plain path. They may not
            where someone else's hook would meet the padding, or rows of different lengths are
            computed differently.
    """

    attention: str
    reason: str
    pads: bool = True
    caches: bool = True

    @property
    def is_fast(self) -> bool:
        """Whether the engine can be used."""
        return self.attention == FUSED

    def batches(self, lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
        """Indices of rows in batches for the plain path, longest first.

        >>> list(FastPath("eager", "a hook", pads=False).batches([3, 5, 3], 8))
        [[1], [0, 2]]
        """
        if self.pads:
            yield from length_batches(lengths, batch_size)
            return
        for length in sorted(set(lengths), reverse=True):
            alike = [i for i, own in enumerate(lengths) if own == length]
            for start in range(0, len(alike), batch_size):
                yield alike[start : start + batch_size]


BRIDGE = FastPath("eager", "asked for")
"""The bridge's own path on a model of which nothing speaks against padding and caching."""


def mixes_dtypes(error: RuntimeError) -> bool:
    """Whether a pass failed because it multiplied numbers of two dtypes."""
    return "same dtype" in str(error)


@contextmanager
def alone_with(model: TransformerBridge) -> Iterator[None]:
    """The model for one thread, in its own dtype and without dropout, whatever the caller set.

    Raises:
        ModelError: Waiting for another thread would never end.
    """
    root = model.original_model
    with ExitStack() as stack:
        stack.enter_context(exclusively(model))
        training = [module for module in root.modules() if module.training]
        for device_type in {"cpu", device_of(model).type}:
            if torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        try:
            for module in training:
                module.training = False
            yield
        finally:
            for module in training:
                module.training = True


def length_switch(model: TransformerBridge) -> int | None:
    """The length beyond which a row cannot be shared, packed or padded, if there is one.

    Long-range rotary embeddings (Phi-3's ``longrope``, ``dynamic`` scaling) choose their factors by
    the length of the whole row, so the beginning of a long row is not that of a short one; Llama 4
    scales queries by a position that it takes from the length of the batch.
    """
    config: Any = model.original_model.config
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    found = []
    if getattr(config, "attn_temperature_tuning", None) and getattr(config, "floor_scale", None):
        # Llama 4 takes positions from the length of the whole batch; from here on they matter.
        found.append(int(config.floor_scale) - 1)
    for one in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        if one.get("rope_type", one.get("type")) in _SWITCHING_ROPE:
            limit = one.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            found.append(int(limit or config.max_position_embeddings))
    return min(found, default=None)


def slots_for(
    model: TransformerBridge, longest: int, n_rows: int, batch_size: int | None = None
) -> int:
    """How many rows to decode together: the asked number, or what memory allows.

    Args:
        model: The model.
        longest: Longest prompt plus response, in tokens.
        n_rows: Rows in all.
        batch_size: Asked for by the caller; ``None`` chooses from the free memory.
    """
    if batch_size is not None:
        return min(batch_size, n_rows)
    cfg = model.cfg
    n_heads = getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
    width = next(model.parameters()).element_size()
    a_row = 2 * cfg.n_layers * n_heads * cfg.d_head * width * longest + 4 * width * cfg.d_vocab
    budget = _MEMORY_SHARE * free_memory(device_of(model))
    return max(1, min(n_rows, _MOST_SLOTS, int(budget // a_row)))


def free_memory(device: torch.device) -> int:
    """Bytes that can be allocated now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return int(psutil.virtual_memory().available)
