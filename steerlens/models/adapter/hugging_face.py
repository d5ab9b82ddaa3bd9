"""Private names of transformers and accelerate: attention, configurations, replaced forwards."""

import functools
import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from steerlens.models.adapter import private

_LIBRARIES = ("transformer_lens.", "transformers.", "accelerate.")


def _class_flag(model: nn.Module, name: str) -> bool:
    private("transformers", transformers.PreTrainedModel, name)
    return bool(getattr(model, name, False))


def supports_fused_attention(model: nn.Module) -> bool:
    """Whether a Hugging Face model can run PyTorch's fused attention."""
    return _class_flag(model, "_supports_sdpa")


def supports_custom_attention(model: nn.Module) -> bool:
    """Whether a Hugging Face model can run an attention function that is handed to it."""
    return _class_flag(model, "_supports_attention_backend")


def is_stateful(model: nn.Module) -> bool:
    """Whether a Hugging Face model carries a state besides keys and values (Mamba)."""
    return _class_flag(model, "_is_stateful")


@contextmanager
def attention_chosen(model: nn.Module, name: str | None) -> Iterator[None]:
    """Within the block, a Hugging Face model uses this attention; None leaves it as it is.

    The name is set in the configurations that the modules read, because `set_attn_implementation`
    refuses some names.
    """
    attribute = "_attn_implementation_internal"
    kept: dict[int, tuple[Any, Any]] = {}
    if name is not None:
        private("transformers", transformers.PreTrainedConfig(), attribute)
        configs = (module.__dict__.get("config") for module in model.modules())
        kept = {id(c): (c, getattr(c, attribute)) for c in configs if hasattr(c, attribute)}
    try:
        for config, _ in kept.values():
            setattr(config, attribute, name)
        yield
    finally:
        for config, before in kept.values():
            setattr(config, attribute, before)


def register_attention(name: str, function: Callable[..., Any]) -> None:
    """Make an attention function known to transformers by name, with the eager form's masks."""
    masks = importlib.import_module("transformers.masking_utils")
    transformers.AttentionInterface.register(name, function)
    transformers.AttentionMaskInterface.register(name, private("transformers", masks, "eager_mask"))


def quantization_methods() -> list[str]:
    """What ``quant_method`` may be."""
    kinds = importlib.import_module("transformers.quantizers.auto")
    return sorted(map(str, private("transformers", kinds, "AUTO_QUANTIZATION_CONFIG_MAPPING")))


def random_model(kind: type, config: Any, dtype: torch.dtype) -> Any:
    """A Hugging Face model with random weights and attention in its eager form."""
    build = private("transformers", kind, "_from_config")
    return build(config, dtype=dtype, attn_implementation="eager")


def without_source(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration's settings without where it was read from."""
    return {
        key: value
        for key, value in settings.items()
        if key not in ("_name_or_path", "_model_name_or_path")
    }


@contextmanager
def gguf_progress_in_terminal() -> Iterator[None]:
    """Within the block, transformers draws its bar over GGUF tensors only in a terminal."""
    module = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    bar = private("transformers", module, "tqdm")
    vars(module)["tqdm"] = functools.partial(bar, disable=None)
    try:
        yield
    finally:
        vars(module)["tqdm"] = bar


def belongs_to_a_library(hook: Callable[..., Any] | None) -> bool:
    """Whether a function is written in TransformerLens, transformers or accelerate."""
    return _written_in(hook).startswith(_LIBRARIES)


def _written_in(hook: Callable[..., Any] | None) -> str:
    # By its globals, because functools.wraps copies __module__.
    while isinstance(hook, functools.partial):
        hook = hook.func
    code = getattr(hook, "__func__", hook)
    return str(getattr(code, "__globals__", {}).get("__name__", ""))


def is_librarys_forward(module: nn.Module) -> bool:
    """Whether a library replaced `forward`, around one that nobody else had replaced."""
    if not belongs_to_a_library(module.__dict__["forward"]):
        return False
    around = module.__dict__.get("_hf_hook")
    if around is None:
        return True
    inside = private("accelerate", module, "_old_forward")
    is_accelerates = type(around).__module__.startswith(_LIBRARIES)
    return is_accelerates and _written_in(inside).startswith((*_LIBRARIES, "torch.nn."))


def offloaded_tensor(module: nn.Module, key: str) -> Tensor:
    """A tensor that accelerate keeps on the CPU and brings for a forward pass."""
    weights = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
    held = None if weights is None else weights[key]
    tensor: Tensor = getattr(module, key) if held is None else held
    return tensor
