"""Which path a call takes, and how many rows ride together.

Every call that runs a model does so inside `running`: it holds the model's lock
(`steerlens.models.exclusion`), with autocast and training mode off, and says which path to take:

* the **fast path** (``"sdpa"``), the engine's own;
* the **plain path** (``"eager"``), the bridge's own forward pass. It is taken when someone else has
  changed the model (`steerlens.engine.outside`), when the architecture has no plain stack of blocks
  or no attention the engine can run, when the engine was compared with the bridge and differed
  (`steerlens.engine.verification`), and for rows so long that the model computes differently
  (`length_switch`). Models with a recurrent state of their own are read whole at every step.

The result says which path it was, and why. A verdict holds for what was compared: the dtype, the
device, the configuration, the kinds of modules, and TransformerLens's compatibility mode. A
comparison that could not be made, for want of memory, is no verdict; the next call tries again.
"""

import hashlib
import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil
import torch
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.batches import length_batches
from steerlens.engine.modules import (
    FUSED,
    device_of,
    dtype_of,
    fused_attention,
    has_plain_stack,
)
from steerlens.engine.outside import outside_change
from steerlens.errors import ModelError, first_line
from steerlens.models.exclusion import exclusively

if TYPE_CHECKING:
    from steerlens.engine.verification import Verdict

__all__ = [
    "BRIDGE",
    "FastPath",
    "alone_with",
    "choose_path",
    "free_memory",
    "length_switch",
    "mixes_dtypes",
    "running",
    "slots_for",
]

_VERDICTS = "steerlens_engine_verdicts"
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


@contextmanager
def running(model: TransformerBridge, longest: int = 0) -> Iterator[FastPath]:
    """Have a model to oneself for a while, and know which path to take.

    Args:
        model: A hooked model.
        longest: Tokens of the longest row to come, response included.

    Raises:
        ModelError: Waiting for another thread would never end; a forward pass of TransformerLens's
            that cannot run in the model's dtype.
    """
    with alone_with(model):
        try:
            yield choose_path(model, longest)
        except RuntimeError as error:
            if not mixes_dtypes(error):
                raise
            raise ModelError(
                f"TransformerLens's forward pass of this model fails in {dtype_of(model)} "
                f"({first_line(error)}); load the model in float32"
            ) from error


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


def choose_path(model: TransformerBridge, longest: int = 0) -> FastPath:
    """The path the next call takes, and why.

    Args:
        model: A hooked model.
        longest: Tokens of the longest row to come, response included.
    """
    root = model.original_model
    change = outside_change(model)
    if getattr(root, "_is_stateful", False) or not _takes_cache(root):
        reason = "the model carries a state of its own from token to token, so rows are read whole"
        return FastPath("eager", reason, pads=False, caches=False)
    if change is not None:
        return FastPath("eager", f"{change} needs the bridge's own forward pass", pads=False)
    switch = length_switch(model)
    if switch is not None and longest > switch:
        reason = f"beyond {switch} tokens this model computes by the length of the whole row"
        return FastPath("eager", reason, pads=False)
    if not has_plain_stack(model):
        return FastPath("eager", "the architecture has no plain stack of blocks")
    if fused_attention(model) is None:
        return FastPath("eager", "the architecture has no fused attention")
    found = _verdict(model)
    if found.problem is not None:
        return FastPath("eager", found.problem, pads=found.pads)
    return FastPath(FUSED, "no hook needs the parts of attention")


def _takes_cache(root: torch.nn.Module) -> bool:
    """Whether a model remembers keys and values in the way Hugging Face's decoders do."""
    return "past_key_values" in inspect.signature(type(root).forward).parameters


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


def _verdict(model: TransformerBridge) -> "Verdict":
    """What comparing the engine with the bridge found, now or for an earlier call."""
    # Imported here: comparing runs the engine, which is chosen here.
    from steerlens.engine.verification import UnverifiedError, Verdict, verdict

    verdicts: dict[str, Verdict] = model.original_model.__dict__.setdefault(_VERDICTS, {})
    key = _what_is_compared(model)
    if key not in verdicts:
        try:
            verdicts[key] = verdict(model)
        except UnverifiedError as error:
            return Verdict(str(error))
    return verdicts[key]


def _what_is_compared(model: TransformerBridge) -> str:
    """Everything a verdict depends on, in one string."""
    root: Any = model.original_model
    content = [
        str(dtype_of(model)),
        str(device_of(model)),
        bool(getattr(model, "compatibility_mode", False)),
        [f"{type(module).__module__}.{type(module).__qualname__}" for module in root.modules()],
        root.config.to_dict(),
    ]
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


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
