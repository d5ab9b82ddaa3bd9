"""The model's fast path: its own weights and modules, without the hook plumbing nobody uses.

A `TransformerBridge` wraps every part of a Hugging Face model in a component with hook points and
re-implements attention step by step. Steering the residual stream needs none of that.
`fast_modules` puts the wrapped parts back in their places for a while and lets attention run in its
fused form (``sdpa``), or, where it has none, in that of `steerlens.engine.attention`. On leaving,
also by an exception or Ctrl-C, everything is as before; meanwhile other threads wait
(`steerlens.models.exclusion`).

Within it `only_blocks` runs a range of blocks and lets the stream pass through the others. Given
residuals, it starts a pass at any layer: what the model computes below (embeddings, their scale or
norm) is thrown away there, however an architecture makes it. Without any block a pass is the final
norm and unembedding (`unembed`). `on_blocks` reads and changes what blocks put out.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.attention import READ, attention_chosen
from steerlens.errors.cancellation import check_cancelled, is_cancellable
from steerlens.models.adapter.bridge import block_list, component_places, own_module
from steerlens.models.adapter.hugging_face import (
    supports_custom_attention,
    supports_fused_attention,
)
from steerlens.models.adapter.pytorch import children_of
from steerlens.models.exclusion import bystanders_wait, exclusively, to_its_end

__all__ = [
    "blocks_of",
    "device_of",
    "dtype_of",
    "fast_modules",
    "fused_attention",
    "has_plain_stack",
    "no_words",
    "on_blocks",
    "only_blocks",
    "unembed",
]

FUSED = "sdpa"
_RETURNS_TUPLE = "steerlens_block_returns_tuple"


def device_of(model: TransformerBridge) -> torch.device:
    """Where the model takes its input."""
    return torch.device(model.cfg.device or "cpu")


def dtype_of(model: TransformerBridge) -> torch.dtype:
    """What the model computes in."""
    return next(model.original_model.parameters()).dtype


def has_plain_stack(model: TransformerBridge) -> bool:
    """Whether the model is a plain stack of decoder blocks."""
    is_encoder_decoder = getattr(model.original_model.config, "is_encoder_decoder", False)
    return block_list(model) is not None and not is_encoder_decoder


def fused_attention(model: TransformerBridge) -> str | None:
    """The attention a model runs with on the fast path; ``None`` when it has none for it."""
    root = model.original_model
    if supports_fused_attention(root):
        return FUSED
    return READ if supports_custom_attention(root) else None


def blocks_of(model: TransformerBridge) -> nn.ModuleList:
    """The model's own blocks, of a model that can take the fast path."""
    blocks = block_list(model)
    assert blocks is not None  # the fast path is only taken where there is a list of blocks
    return blocks


@contextmanager
def fast_modules(model: TransformerBridge) -> Iterator[None]:
    """Put the model's own parts in place of the bridge's, with fused attention, for a while.

    Within it only the underlying Hugging Face model may be called, by this thread; other models
    in the process are untouched.

    Raises:
        ModelError: Waiting for another thread would never end.
    """
    root: Any = model.original_model
    with exclusively(model), bystanders_wait(root):
        swaps = component_places(root)

        def put_back() -> None:
            for parent, name, component in swaps:
                children_of(parent)[name] = component

        try:
            for parent, name, component in swaps:
                children_of(parent)[name] = own_module(component)
            with attention_chosen(root, fused_attention(model) or FUSED), _cancellable(model):
                _look_at_blocks(model)
                yield
        finally:
            to_its_end(put_back)


@contextmanager
def _cancellable(model: TransformerBridge) -> Iterator[None]:
    """Look before each block whether the work was cancelled, where it can be."""
    with ExitStack() as stack:
        for block in blocks_of(model) if is_cancellable() else ():
            hook = block.register_forward_pre_hook(lambda _module, _args: check_cancelled())
            stack.callback(hook.remove)
        yield


class _Pass(nn.Module):
    """A block that lets the residual stream pass, or puts `resid` in its place.

    Args:
        resid: What it puts out; by default what it is given.
        in_tuple: Put it out in a tuple, as the model's own blocks do.
    """

    def __init__(self, resid: Tensor | None, in_tuple: bool) -> None:
        super().__init__()
        self.__dict__["resid"] = resid
        self.in_tuple = in_tuple

    def forward(self, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Any:
        resid = self.__dict__["resid"]
        out = hidden_states if resid is None else resid
        return (out, None) if self.in_tuple else out


@contextmanager
def only_blocks(
    model: TransformerBridge, first: int, stop: int, resid: Tensor | None = None
) -> Iterator[None]:
    """Within this context, blocks outside ``first ≤ l < stop`` do nothing.

    Args:
        model: A model inside `fast_modules`.
        first: The first block to run.
        stop: Where to stop.
        resid: What enters block `first` (which is not 0), whatever the embeddings put out.
    """
    modules = children_of(blocks_of(model))
    kept = dict(modules)
    in_tuple = any(model.original_model.__dict__[_RETURNS_TUPLE].values())
    skipped, start = _Pass(None, in_tuple), _Pass(resid, in_tuple)
    try:
        for name in kept:
            if not first <= int(name) < stop:
                modules[name] = start if name == "0" else skipped
        yield
    finally:
        modules.update(kept)


def _look_at_blocks(model: TransformerBridge) -> None:
    """Note whether blocks put out their residual stream in a tuple: seen once, on one token."""
    root: Any = model.original_model
    kinds = {type(block) for block in blocks_of(model)}
    seen: dict[type, bool] = root.__dict__.get(_RETURNS_TUPLE, {})
    if seen.keys() >= kinds:
        return

    def after(block: nn.Module, _args: Any, output: Any) -> None:
        seen[type(block)] = isinstance(output, tuple)

    with ExitStack() as stack, torch.inference_mode():
        for block in blocks_of(model):
            stack.callback(block.register_forward_hook(after).remove)
        root(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device_of(model)))
    root.__dict__[_RETURNS_TUPLE] = seen


def no_words(resid: Float[Tensor, "row pos d_model"], n_rows: int | None = None) -> Tensor:
    """Token ids ``[row pos]`` for a pass that residuals enter on the way.

    What they embed to is thrown away, but some architectures take the batch's size from them.

    Args:
        resid: The residuals that enter.
        n_rows: How many rows the pass ends with; by default those that enter.
    """
    shape = (len(resid) if n_rows is None else n_rows, resid.shape[1])
    return torch.zeros(shape, dtype=torch.long, device=resid.device)


@contextmanager
def on_blocks(
    blocks: nn.ModuleList,
    layers: Iterable[int],
    function: Callable[[int, Tensor], Tensor | None],
) -> Iterator[None]:
    """Call ``function(layer, output)`` after some blocks; a tensor it returns replaces the output.

    Args:
        blocks: The model's own, inside `fast_modules`, or the bridge's.
        layers: After which of them.
        function: What is called.
    """

    def after(layer: int) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
            if not isinstance(output, tuple):
                return function(layer, output)
            changed = function(layer, output[0])
            return None if changed is None else (changed, *output[1:])

        return hook

    with ExitStack() as stack:
        for layer in sorted(set(layers)):
            stack.callback(blocks[layer].register_forward_hook(after(layer)).remove)
        yield


def unembed(
    model: TransformerBridge, resid: Float[Tensor, "row d_model"]
) -> Float[Tensor, "row vocab"]:
    """Logits of residuals that have passed all blocks: final norm, unembedding, soft-capping."""
    n_layers, entering = model.cfg.n_layers, resid[:, None]
    with only_blocks(model, n_layers, n_layers, entering):
        out = model.original_model(
            input_ids=no_words(entering),
            position_ids=torch.zeros(1, 1, dtype=torch.long, device=resid.device),
            attention_mask=torch.ones(len(resid), 1, dtype=torch.long, device=resid.device),
            use_cache=False,
        )
    logits: Tensor = out.logits[:, -1]
    return logits
