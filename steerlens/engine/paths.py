"""The two paths a call can take, and how many rows memory allows.

`steerlens.engine.choosing` says which path a call takes. Here is what a path is: whether rows may
be padded and keys and values remembered on it (`FastPath`), the length beyond which a model
computes by the whole row (`length_switch`), and the context every call runs in (`alone_with`).
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.batches import length_batches
from steerlens.engine.modules import FUSED, device_of, dtype_of
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

# More rows gain little: weights are read from memory once per step for all of them.
_MOST_SLOTS = 128
_MEMORY_SHARE = 0.4
# Rotary embeddings whose factors change once a row is longer than some number of tokens.
_SWITCHING_ROPE = ("longrope", "dynamic")


@dataclass(frozen=True)
class FastPath:
    """Which path a model takes now.

    Attributes:
        attention: ``"sdpa"`` on the fast path, ``"eager"`` on the bridge's own.
        reason: Why, in a phrase.
        pads: On the plain path, whether rows of different lengths may share a batch. They may not
            where someone else's hook would meet the padding, or where rows of different lengths are
            computed differently.
        caches: On the plain path, whether keys and values may be remembered while decoding.
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
            alike = [i for i, other in enumerate(lengths) if other == length]
            for batch in length_batches([length] * len(alike), batch_size):
                yield [alike[place] for place in batch]


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
    the length of the whole row, so the beginning of a long row is not that of a short one. Llama 4
    scales queries by a position that it takes from the length of the whole batch.
    """
    config: Any = model.original_model.config
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    limits = []
    if getattr(config, "attn_temperature_tuning", None) and getattr(config, "floor_scale", None):
        limits.append(int(config.floor_scale) - 1)
    for settings in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        if settings.get("rope_type", settings.get("type")) in _SWITCHING_ROPE:
            limit = settings.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            limits.append(int(limit or config.max_position_embeddings))
    return min(limits, default=None)


def slots_for(
    model: TransformerBridge, longest: int, n_rows: int, batch_size: int | None = None
) -> int:
    """How many of `n_rows` rows to decode together: `batch_size`, or what memory allows.

    Args:
        model: The model.
        longest: Longest prompt plus response, in tokens.
        n_rows: Rows in all.
        batch_size: What the caller asks for, if anything.
    """
    if batch_size is not None:
        return min(batch_size, n_rows)
    cfg = model.cfg
    n_heads = getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
    per_token, per_row = 2 * cfg.n_layers * n_heads * cfg.d_head, 4 * cfg.d_vocab
    n_bytes = dtype_of(model).itemsize * (per_token * longest + per_row)
    budget = _MEMORY_SHARE * free_memory(device_of(model))
    return max(1, min(n_rows, _MOST_SLOTS, int(budget // n_bytes)))


def free_memory(device: torch.device) -> int:
    """Bytes that can be allocated now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return int(psutil.virtual_memory().available)
