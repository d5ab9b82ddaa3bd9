"""The model's fast path: its own weights and modules, without the hook plumbing nobody uses.

A `TransformerBridge` wraps every part of a Hugging Face model in a component with hook points and
re-implements attention step by step, so that scores and patterns can be hooked. Steering the
residual stream needs none of that. `fast_modules` puts the wrapped parts back in their places for
a while and lets attention run in its fused form (``sdpa``). On leaving, also by an exception or
Ctrl-C, everything is as before.

`only_blocks` runs a range of blocks: the others let the residual stream pass. With residuals for
input it starts a forward pass at any layer; with no block at all it is the final norm and
unembedding (`unembed`). `on_blocks` reads and changes what chosen blocks put out.

Hooks that are on the model already would not fire here, or would meet rows in an order of the
engine's own; `fast_path` finds them and says why the bridge's own path is taken instead.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.generalized_components.block import BlockBridge

__all__ = [
    "FastPath",
    "device_of",
    "dtype_of",
    "fast_modules",
    "fast_path",
    "on_blocks",
    "only_blocks",
    "unembed",
]

FUSED = "sdpa"
BlockFunction = Callable[[int, Tensor], Tensor | None]


@dataclass(frozen=True)
class FastPath:
    """Which path a model takes now.

    Attributes:
        attention: ``"sdpa"`` on the fast path, ``"eager"`` on the bridge's own.
        reason: Why, in a phrase.
    """

    attention: str
    reason: str

    @property
    def is_fast(self) -> bool:
        """Whether the engine can be used."""
        return self.attention == FUSED


def fast_path(model: TransformerBridge) -> FastPath:
    """The path this model can take with the hooks it has now."""
    hooked = sorted(
        str(point.name or name)
        for name, point in model.hook_dict.items()
        if point.fwd_hooks or point.bwd_hooks
    )
    if hooked:
        return FastPath("eager", f"the hook on {hooked[0]} needs the bridge's own forward pass")
    root = model.original_model
    if root._forward_pre_hooks or root._forward_hooks:
        return FastPath("eager", "hooks on the whole model need the bridge's own forward pass")
    if _layer_list(model) is None or getattr(root.config, "is_encoder_decoder", False):
        return FastPath("eager", "the architecture has no plain stack of blocks")
    if not getattr(root, "_supports_sdpa", False):
        return FastPath("eager", "the architecture has no fused attention")
    return FastPath(FUSED, "no hook needs the parts of attention")


def device_of(model: TransformerBridge) -> torch.device:
    """Where the model takes its input."""
    return torch.device(model.cfg.device or "cpu")


def dtype_of(model: TransformerBridge) -> torch.dtype:
    """What the model computes in."""
    return next(model.original_model.parameters()).dtype


def _layer_list(model: TransformerBridge) -> nn.ModuleList | None:
    """The Hugging Face model's own list of blocks, when the bridge wraps an ordinary one."""
    blocks = (model.adapter.component_mapping or {}).get("blocks")
    if not isinstance(blocks, BlockBridge):
        return None
    found: Any = model.original_model.get_submodule(str(blocks.name))
    is_stack = isinstance(found, nn.ModuleList) and len(found) == model.cfg.n_layers
    return found if is_stack else None


def _layers(model: TransformerBridge) -> nn.ModuleList:
    layers = _layer_list(model)
    if layers is None:
        raise AssertionError("only called on the fast path, which has a list of blocks")
    return layers


@contextmanager
def fast_modules(model: TransformerBridge) -> Iterator[None]:
    """Put the model's own parts in place of the bridge's, with fused attention, for a while.

    Within it only the underlying Hugging Face model may be called; other models in the process
    are untouched.
    """
    root: Any = model.original_model
    swaps = [
        (parent, name, child)
        for parent in root.modules()
        if not isinstance(parent, GeneralizedComponent)
        for name, child in parent._modules.items()
        if isinstance(child, GeneralizedComponent)
    ]
    before = root.config._attn_implementation
    try:
        for parent, name, child in swaps:
            parent._modules[name] = child.original_component
        root.set_attn_implementation(FUSED)
        yield
    finally:
        for parent, name, child in swaps:
            parent._modules[name] = child
        root.set_attn_implementation(before)


class _Pass(nn.Module):
    """A block that lets the residual stream pass."""

    def forward(self, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        return hidden_states


@contextmanager
def only_blocks(model: TransformerBridge, first: int, stop: int) -> Iterator[None]:
    """Within this context, blocks outside ``first ≤ l < stop`` do nothing."""
    modules = _layers(model)._modules
    kept = dict(modules)
    skipped = _Pass()
    try:
        for name in kept:
            if not first <= int(name) < stop:
                modules[name] = skipped
        yield
    finally:
        modules.update(kept)


@contextmanager
def on_blocks(
    model: TransformerBridge, layers: Iterable[int], function: BlockFunction
) -> Iterator[None]:
    """Call ``function(layer, output)`` after each of some blocks; a tensor it returns replaces it.

    The blocks' own modules are hooked, so this must be entered inside `fast_modules`.
    """
    modules = _layers(model)

    def after(layer: int) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
        return lambda _module, _args, output: function(layer, output)

    with ExitStack() as stack:
        for layer in sorted(set(layers)):
            handle = modules[layer].register_forward_hook(after(layer))
            stack.callback(handle.remove)
        yield


def unembed(
    model: TransformerBridge, resid: Float[Tensor, "row d_model"]
) -> Float[Tensor, "row vocab"]:
    """Logits of residuals that have passed all blocks: final norm, unembedding, soft-capping."""
    root = model.original_model
    n_rows = len(resid)
    with only_blocks(model, 0, 0):
        out = root(
            inputs_embeds=resid[:, None],
            position_ids=torch.zeros(1, 1, dtype=torch.long, device=resid.device),
            attention_mask=torch.ones(n_rows, 1, dtype=torch.long, device=resid.device),
            use_cache=False,
        )
    logits: Tensor = out.logits[:, -1]
    return logits
