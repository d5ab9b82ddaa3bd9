"""Loading: a reference becomes a hooked language model.

`load_model` gives a ``TransformerBridge`` (transformer_lens) with its tokenizer attached and its
weights in the order and scale that the model's authors gave them (nothing folded or centred). What
a reference may be is in `steerlens.models.sources`, what results record of a model in
`steerlens.models.identity`, where its weights go in `steerlens.models.placement`, and how text
becomes what the model reads in `steerlens.models.chat`.

The default dtype is float32, because activations differ between float32 and bfloat16 in the third
decimal. ``dtype="auto"`` takes bfloat16 where the hardware computes it fast.

**Caveats.** The bridge runs attention in its eager form, which is slower than the fused one. The
pad token is often the end-of-text token, so masks must come from lengths, never from token ids.
Of a model that also sees or hears, the language model is loaded. Models whose code lives in their
repository (``trust_remote_code``) are not loaded.

>>> model = load_model("smollm2-135m-instruct")                              # doctest: +SKIP
>>> model_info(model).n_layers                                               # doctest: +SKIP
30
"""

import importlib.metadata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformer_lens.model_bridge import TransformerBridge

from steerlens.errors import FileFormatError, ModelError, first_line
from steerlens.models.chat import end_token_ids, render_prompt, tokenize_prompts
from steerlens.models.identity import ModelInfo, attached_tokenizer, keep_source, model_info
from steerlens.models.placement import (
    Placement,
    auto_dtype,
    placement_options,
    refuse_disk,
    resolve_device,
    resolve_dtype,
)
from steerlens.models.sources import (
    DEFAULT_MODEL,
    PACKAGED,
    ModelListing,
    PackagedModel,
    available_models,
    find_source,
)
from steerlens.models.weights import quiet_loading, read_model, text_options

__all__ = [
    "PACKAGED",
    "ModelInfo",
    "ModelListing",
    "PackagedModel",
    "auto_dtype",
    "available_models",
    "end_token_ids",
    "load_model",
    "model_info",
    "render_prompt",
    "token_counter",
    "tokenize_prompts",
]


def load_model(
    ref: str | Path = DEFAULT_MODEL,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device | None = None,
    device_map: str | dict[str, str | int] | None = None,
    max_memory: Mapping[int | str, int | str] | None = None,
    quantization_config: Any = None,
) -> TransformerBridge:
    """Load a model with hooks and its tokenizer.

    Args:
        ref: A packaged name, a ``.gguf`` file, a model folder, or a hub id ``owner/name``.
        dtype: "float32", "bfloat16", "float16", a `torch.dtype`, or "auto" (see `auto_dtype`).
        device: Such as "cpu" or "cuda:1"; by default CUDA, else Apple's MPS, else the CPU.
        device_map: Spreads the model over devices; see `steerlens.models.placement`. Give this or
            `device`.
        max_memory: With `device_map`, how much of each device may be used.
        quantization_config: How weights are quantised while they are read.

    Returns:
        The bridge, in evaluation mode.

    Raises:
        UnknownNameError: "unknown model …", "unknown dtype …".
        ModelError: A model, device or the hub cannot be found or reached; a folder has no
            safetensors; an architecture has no hooks; the weights cache cannot be written.
        FileFormatError: A file is truncated, foreign, or not what its name says.
    """
    if device is not None and device_map is not None:
        raise ModelError("device and device_map both say where the model goes; give one of them")
    target = None if device_map is not None else resolve_device(device)
    options = placement_options(device_map, max_memory, quantization_config)
    if quantization_config is not None and target is not None:
        # Quantised weights are made where they stay; they cannot be moved afterwards.
        options["device_map"] = {"": str(target)}
        target = None
    torch_dtype, dtype_reason = resolve_dtype(dtype, target)
    reference = str(ref)
    source = find_source(reference)
    with quiet_loading():
        hf_model, tokenizer = _load_folder(source.folder, reference, torch_dtype, options)
        model = _boot(hf_model, tokenizer, reference, torch_dtype, target)
    model.eval()
    _refuse_unhooked(model, reference)
    placement = Placement(device_map, max_memory, quantization_config)
    keep_source(model, source, dtype_reason, placement)
    return model


def _load_folder(
    folder: Path, reference: str, dtype: torch.dtype, options: Mapping[str, Any]
) -> tuple[Any, Any]:
    """Model and tokenizer of a folder."""
    try:
        hf_model = read_model(
            folder,
            reference,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            **text_options(folder),
            **options,
        )
    except FileFormatError:
        raise
    except SafetensorError as error:
        raise FileFormatError(
            f"a safetensors file of {reference} is truncated or damaged ({first_line(error)}); "
            "download it again"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError) as error:
        raise ModelError(f"{reference} cannot be loaded: {first_line(error)}") from error
    refuse_disk(getattr(hf_model, "hf_device_map", {}), reference)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the tokenizers library raises Exception itself, no subclass
        raise ModelError(
            f"the tokenizer of {reference} cannot be loaded: {first_line(error)}"
        ) from error
    return hf_model, tokenizer


def _boot(
    hf_model: Any, tokenizer: Any, reference: str, dtype: torch.dtype, device: torch.device | None
) -> TransformerBridge:
    # Booting replaces a tokenizer that does not claim to add BOS by one that always adds it. The
    # model's own habit is kept instead; the bridge records it as cfg.tokenizer_prepends_bos.
    own_settings = dict(tokenizer.init_kwargs)
    tokenizer.init_kwargs["add_bos_token"] = True
    try:
        if device is not None:
            hf_model = hf_model.to(device)
        model: TransformerBridge = TransformerBridge.boot_transformers(
            reference, hf_model=hf_model, tokenizer=tokenizer, device=device, dtype=dtype
        )
    except (ValueError, KeyError, RuntimeError, AssertionError) as error:
        # AssertionError: a kind of device that torch was not compiled for.
        raise ModelError(f"{reference} cannot be set up: {_reason(error, hf_model)}") from error
    finally:
        tokenizer.init_kwargs = own_settings
    return model


def _reason(error: Exception, hf_model: Any) -> str:
    if "Could not determine supported architecture" not in str(error):
        return first_line(error)
    # Its message goes on with the names of a hundred others.
    version = importlib.metadata.version("transformer-lens")
    return f"TransformerLens {version} has no hooks for {type(hf_model).__name__}"


def _refuse_unhooked(model: TransformerBridge, reference: str) -> None:
    """Read one token with a hook on every block: a stream that no hook sees is not steered either.

    Raises:
        ModelError: "… cannot be set up: TransformerLens 4.3.0 …".
    """
    seen: set[str] = set()

    def note(resid: Any, hook: Any) -> None:
        seen.add(hook.name)

    points = [f"blocks.{layer}.hook_out" for layer in range(model.cfg.n_layers)]
    version = importlib.metadata.version("transformer-lens")
    kind = f"TransformerLens {version} cannot run {type(model.original_model).__name__}"
    try:
        with torch.no_grad(), model.hooks(fwd_hooks=[(point, note) for point in points]):
            model(torch.zeros(1, 1, dtype=torch.long, device=model.cfg.device), use_cache=False)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        # Some passes of TransformerLens mix dtypes in half precision, where the engine's do not.
        if not any(words in str(error) for words in ("dtype", "scalar type")):
            raise ModelError(
                f"{reference} cannot be set up: {kind} ({first_line(error)})"
            ) from error
    else:
        if len(seen) < len(points):
            missed = len(points) - len(seen)
            raise ModelError(
                f"{reference} cannot be set up: {kind} with hooks; the residual stream of "
                f"{missed} of its {len(points)} blocks passes them by"
            )


def token_counter(model: TransformerBridge) -> Callable[[str], int]:
    """Counts the tokens of a text as the model reads it, without special tokens."""
    tokenizer = attached_tokenizer(model)
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])
