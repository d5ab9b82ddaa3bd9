"""Private names of TransformerLens: what its bridge wraps, and the hooks it sets itself."""

from typing import Any

from torch import nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.generalized_components.block import BlockBridge

from steerlens.models.adapter import private
from steerlens.models.adapter.hugging_face import belongs_to_a_library
from steerlens.models.adapter.pytorch import children_of


def is_component(module: nn.Module | None) -> bool:
    """Whether a module is one of the bridge's, standing in place of the model's own."""
    return isinstance(module, GeneralizedComponent)


def own_module(component: Any) -> Any:
    """The Hugging Face module that a component of the bridge wraps; None if it wraps none."""
    return private("transformer-lens", component, "original_component")


def unwrapped(module: nn.Module | None) -> nn.Module | None:
    """The Hugging Face module in or under a place of the module tree; None for hook points."""
    while is_component(module) and (inner := own_module(module)) is not None:
        module = inner
    return None if isinstance(module, HookPoint) else module


def without_wrapping(name: str) -> str:
    """A module's name without the bridge's wrapping: what a reader would look for.

    >>> without_wrapping("model.layers.1._original_component.mlp")
    'model.layers.1.mlp'
    """
    return ".".join(part for part in name.split(".") if part != "_original_component")


def component_places(root: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """Where components of the bridge stand in a Hugging Face model: parent, name, component."""
    return [
        (parent, name, child)
        for parent in root.modules()
        if not is_component(parent)
        for name, child in children_of(parent).items()
        if child is not None and is_component(child)
    ]


def block_list(model: TransformerBridge) -> nn.ModuleList | None:
    """The Hugging Face model's list of blocks, if the bridge wraps an ordinary one."""
    adapter = private("transformer-lens", model, "adapter")
    blocks = (private("transformer-lens", adapter, "component_mapping") or {}).get("blocks")
    if not isinstance(blocks, BlockBridge):
        return None
    layers: Any = model.original_model.get_submodule(str(blocks.name))
    is_stack = isinstance(layers, nn.ModuleList) and len(layers) == model.cfg.n_layers
    return layers if is_stack else None


def parts_of(component: Any) -> dict[str, Any]:
    """The components inside one of the bridge's, by name ("attn", "mlp", "o")."""
    return private("transformer-lens", component, "submodules") or {}


def norm_after(block: Any, alias: str) -> nn.Module | None:
    """The norm between attention or MLP and the residual stream; None if there is none.

    Args:
        block: A block of the bridge.
        alias: "hook_attn_out" or "hook_mlp_out". TransformerLens points it at the module whose
            output enters the stream.
    """
    target = private("transformer-lens", block, "hook_aliases").get(alias, ())
    parts = parts_of(block)
    for candidate in [target] if isinstance(target, str) else target:
        owner = candidate.split(".", 1)[0]
        if owner in parts:
            norm: nn.Module | None = own_module(parts[owner])
            return None if owner in ("attn", "mlp") else norm
    return None


def weights_processed(model: TransformerBridge) -> bool:
    """Whether TransformerLens has folded or centred the weights (its compatibility mode)."""
    return bool(private("transformer-lens", model, "_weights_processed"))


def has_outside_hook(point: Any) -> bool:
    """Whether a hook point has a hook other than those TransformerLens sets while it boots."""
    handles = [
        handle
        for name in ("fwd_hooks", "bwd_hooks")
        for handle in private("transformer-lens", point, name)
    ]
    return not all(map(_is_set_at_boot, handles))


def _is_set_at_boot(handle: Any) -> bool:
    hook = private("transformer-lens", handle, "user_hook")
    name = str(getattr(hook, "__qualname__", ""))
    by_wiring = name.startswith("_wire_symbolic_hooks")
    return handle.is_permanent and by_wiring and belongs_to_a_library(hook)
