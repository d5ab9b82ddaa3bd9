"""Which path a call takes, and why.

Every call that runs a model does so inside `running`: it holds the model's lock
(`steerlens.models.exclusion`), with autocast and training mode off, and says which path to take:

* the **fast path** (``"sdpa"``), the engine's own;
* the **plain path** (``"eager"``), the bridge's own forward pass. It is taken when someone else has
  changed the model (`steerlens.engine.outside`), when the architecture has no plain stack of blocks
  or no attention that the engine can run, when the engine was compared with the bridge and differed
  (`steerlens.engine.verification`), and for rows so long that the model computes differently
  (`length_switch`). Models with a recurrent state are read whole at every step.

A verdict holds for what was compared: the dtype, the device, the configuration, the kinds of
modules, and TransformerLens's compatibility mode. A comparison that could not be made, for want of
memory, is no verdict; the next call tries again.
"""

import hashlib
import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.modules import (
    FUSED,
    device_of,
    dtype_of,
    fused_attention,
    has_plain_stack,
)
from steerlens.engine.outside import outside_change
from steerlens.engine.paths import FastPath, alone_with, length_switch, mixes_dtypes
from steerlens.engine.verification import UnverifiedError, Verdict, verdict
from steerlens.errors import ModelError, first_line
from steerlens.models.adapter.hugging_face import is_stateful
from steerlens.models.adapter.pytorch import n_writes
from steerlens.models.fingerprint import switches, tensors_beside

__all__ = ["choose_path", "running"]

_VERDICTS = "steerlens_engine_verdicts"


@contextmanager
def running(model: TransformerBridge, longest: int = 0) -> Iterator[FastPath]:
    """Have a model to oneself for a while; yields the path to take.

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


def choose_path(model: TransformerBridge, longest: int = 0) -> FastPath:
    """The path the next call takes, and why.

    Args:
        model: A hooked model.
        longest: Tokens of the longest row to come, response included.
    """
    root = model.original_model
    change = outside_change(model)
    if is_stateful(root) or not _takes_cache(root):
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
    judged = _verdict(model)
    if judged.problem is not None:
        return FastPath("eager", judged.problem, pads=judged.pads)
    return FastPath(FUSED, "no hook needs the parts of attention")


def _takes_cache(root: torch.nn.Module) -> bool:
    """Whether a model remembers keys and values as Hugging Face's decoders do."""
    return "past_key_values" in inspect.signature(type(root).forward).parameters


def _verdict(model: TransformerBridge) -> Verdict:
    """What comparing the engine with the bridge found, now or for an earlier call."""
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
        switches(model),
        # Weights that only the bridge has (parts of a joint matrix) may have been given others.
        [(name, one.data_ptr(), n_writes(one)) for name, one in tensors_beside(model)],
        [f"{type(module).__module__}.{type(module).__qualname__}" for module in root.modules()],
        root.config.to_dict(),
    ]
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
