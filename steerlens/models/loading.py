"""Models: a reference becomes a hooked language model, and text becomes what it reads.

**References.** `load_model` takes one of four kinds of reference:

=============  ====================================================================================
packaged       ``smollm2-135m-instruct`` or ``gemma-3-270m``: weights that arrive as a Python
               package (`PACKAGED` names the install commands). Without the package the name stands
               for the model's hub id.
``.gguf``      a GGUF file. De-quantised once, then kept (see `steerlens.models.weights`).
folder         ``config.json`` and ``*.safetensors``. Pickled weights (``.bin``, ``.pt``) are
               refused: reading them can run code.
hub id         ``owner/name``. A whole local copy is used as it is; the hub is asked only without.
=============  ====================================================================================

The model comes back as a ``TransformerBridge`` (transformer_lens), its tokenizer attached, its
weights in the order and scale the model's authors gave them (nothing folded or centred).

**Precision.** Activations differ between float32 and bfloat16 in the third decimal, so the default
is float32. ``dtype="auto"`` takes bfloat16 where the hardware computes it fast; `model_info` tells
which it was, and why.

**Chat format.** An instruction-tuned model reads its own chat template, generation marker
included; a base model (no template) the plain format; see `steerlens.models.chat`. What results
record of a model is in `steerlens.models.identity`, where its weights go in
`steerlens.models.placement`.

**Caveats.** The bridge runs attention in its eager form, which is slower than the fused one. The
pad token is often the end-of-text token: build masks from lengths, never from token ids. Models
whose code lives in their repository (``trust_remote_code``) are not loaded.

>>> model = load_model("smollm2-135m-instruct")                              # doctest: +SKIP
>>> model_info(model).n_layers                                               # doctest: +SKIP
30
>>> render_prompt(model, "Tell me about Rome.")[-14:]                        # doctest: +SKIP
'm_start|>assistant\\n'
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformer_lens.model_bridge import TransformerBridge

from steerlens.errors import FileFormatError, ModelError, first_line
from steerlens.models.chat import end_token_ids, render_prompt, tokenize_prompts
from steerlens.models.identity import ModelInfo, describe_model, keep_info, model_info
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
from steerlens.models.weights import quiet_progress, read_model, without_advice

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
        device_map: Spreads the model over devices, as in `transformers` ("auto", or a mapping).
            Give this or `device`.
        max_memory: With `device_map`, how much of each device may be used: ``{0: "70GiB", "cpu":
            "200GiB"}``. Parts that would have to stay on the disk are refused.
        quantization_config: Weights are quantised while they are read; see
            `steerlens.models.placement`.

    Returns:
        The bridge, in evaluation mode.

    Raises:
        UnknownNameError: "unknown model …" for a name without a slash that is not packaged;
            "unknown dtype …".
        ModelError: A model, device or the hub that cannot be found or reached; a folder without
            safetensors; an architecture without hooks; a weights cache that cannot be written.
        FileFormatError: A file that is truncated, foreign, or not what its name says.
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
    with quiet_progress(), without_advice():
        hf_model, tokenizer = _load_folder(source.folder, reference, torch_dtype, options)
        model = _boot(hf_model, tokenizer, reference, torch_dtype, target)
    model.eval()
    described = describe_model(model, reference, source.kind, source.weights_hash)
    info = replace(described, dtype_reason=dtype_reason)
    keep_info(model, info, Placement(device_map, max_memory, quantization_config))
    return model


def _load_folder(
    folder: Path, reference: str, dtype: torch.dtype, options: Mapping[str, Any]
) -> tuple[Any, Any]:
    """Model and tokenizer of a folder; every weight of the model must be in its files."""
    try:
        hf_model = read_model(
            folder,
            reference,
            dtype=dtype,
            **options,
            local_files_only=True,
            use_safetensors=True,
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
    # Booting would swap the tokenizer for one that always adds BOS, after loading it a second
    # time, unless it already claims to add it. The model's own habit is kept instead; the bridge
    # finds it out and records it as cfg.tokenizer_prepends_bos.
    own_settings = dict(tokenizer.init_kwargs)
    tokenizer.init_kwargs["add_bos_token"] = True
    try:
        if device is not None:
            hf_model = hf_model.to(device)
        model: TransformerBridge = TransformerBridge.boot_transformers(
            reference, hf_model=hf_model, tokenizer=tokenizer, device=device, dtype=dtype
        )
    except (ValueError, KeyError, RuntimeError, AssertionError) as error:
        # AssertionError: what torch says of a kind of device it was not compiled for.
        raise ModelError(f"{reference} cannot be set up: {first_line(error)}") from error
    finally:
        tokenizer.init_kwargs = own_settings
    return model
