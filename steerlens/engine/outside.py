"""What others have put on a model: hooks, replaced forwards, parametrisations, tensor subclasses.

On the fast path a hook that someone has registered, with TransformerLens or with PyTorch, would not
fire, or would meet other tokens than its author expects. `outside_change` finds the first such
change; the call then takes the plain path, where whole rows pass without padding, as they would in
a loop over prompts.

The bridge computes some parts itself from the weights and never calls the module that has them
(attention, GPT-2's layer norms and its joint projection). A change there has no effect in
``model(tokens)`` either, so it is refused rather than ignored.

What the libraries themselves put on a model is not a change: the hooks by which TransformerLens
finds the input of a norm and `accelerate` spreads layers over devices, and the tensor classes of
quantised weights.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.modules import device_of
from steerlens.errors import ModelError
from steerlens.models.adapter.bridge import has_outside_hook, without_wrapping
from steerlens.models.adapter.hugging_face import belongs_to_a_library, is_librarys_forward
from steerlens.models.adapter.pytorch import (
    children_of,
    has_global_hooks,
    hooks_of,
    hooks_silenced,
    parameters_of,
)
from steerlens.models.exclusion import exclusively
from steerlens.models.fingerprint import switches

__all__ = ["outside_change"]

_CALLED = "steerlens_modules_called"
_ALWAYS_CALLED = (HookPoint, TransformerBridge)


def outside_change(model: TransformerBridge) -> str | None:
    """The first change to a model that only the bridge's own path respects, in a phrase.

    Args:
        model: A hooked model.

    Returns:
        Such as ``"the hook on blocks.3.hook_out"``; ``None`` when there is none.

    Raises:
        ModelError: "the hook on … would be ignored …"; waiting for another thread would never end.
    """
    # Another thread's engine must not be taken for a change, nor disturbed by looking.
    with exclusively(model):
        return _outside_change(model)


def _outside_change(model: TransformerBridge) -> str | None:
    changes = list(_changes(model))
    unsure = [change for change in changes if not isinstance(change[1], _ALWAYS_CALLED)]
    if unsure:
        called = _modules_called(model, [module for _, module in unsure])
        for phrase, module in unsure:
            if not called[id(module)]:
                raise ModelError(
                    f"{phrase} would be ignored: TransformerLens's forward pass does not call that "
                    "module; put it on the bridge's own component (such as "
                    "model.blocks[0].attn) or on a module around it"
                )
    if has_global_hooks():
        return "a hook on all modules of the process"
    return changes[0][0] if changes else None


def _changes(model: TransformerBridge) -> Iterator[tuple[str, nn.Module]]:
    """Each change in a phrase, with its module."""
    for name, point in model.hook_dict.items():
        if has_outside_hook(point):
            yield f"the hook on {point.name or name}", point
    root = model.original_model
    is_quantised = getattr(root.config, "quantization_config", None) is not None
    seen: set[int] = set()
    for holder in (root, model):
        for name, module in holder.named_modules(memo=set()):
            # The bridge's module tree and the model's share most of their modules.
            if id(module) in seen:
                continue
            seen.add(id(module))
            kind = _change_of(module, is_quantised)
            if kind is not None:
                yield f"the {kind} on {without_wrapping(name) or 'the whole model'}", module


def _change_of(module: nn.Module, is_quantised: bool) -> str | None:
    for kind, hooks in hooks_of(module):
        if not all(map(belongs_to_a_library, hooks)):
            return kind
    if "forward" in module.__dict__ and not is_librarys_forward(module):
        return "replaced forward"
    if "parametrizations" in children_of(module):
        return "parametrisation"
    if not is_quantised:
        for tensor in parameters_of(module).values():
            if tensor is not None and type(tensor) not in (nn.Parameter, Tensor):
                return f"{type(tensor).__name__} weight"
    return None


def _modules_called(model: TransformerBridge, modules: Sequence[nn.Module]) -> dict[int, bool]:
    """Whether a forward pass of the bridge calls each module; seen once, on a few tokens.

    Experts that no token is sent to count as called.
    """
    root: Any = model.original_model
    remembered: Any = root.__dict__.setdefault(_CALLED, {})
    # Compatibility mode and its like change what is called.
    known = remembered.setdefault(str(switches(model)), WeakKeyDictionary())
    new = [module for module in modules if module not in known]
    if new:
        called: set[int] = set()

        def note(module: nn.Module, _args: Any) -> None:
            called.add(id(module))

        with hooks_silenced([module for _, module in _changes(model)]), ExitStack() as stack:
            for module in new:
                stack.callback(module.register_forward_pre_hook(note).remove)
            with torch.inference_mode():
                model(torch.arange(3, 7, device=device_of(model))[None])
        experts = {id(module) for name, module in root.named_modules() if "expert" in name}
        known.update({module: id(module) in called | experts for module in new})
    return {id(module): known[module] for module in modules}
