"""Models: a reference becomes a hooked language model, and text becomes what it reads.

**References.** `load_model` takes one of four kinds of reference:

=============  ====================================================================================
packaged       ``smollm2-135m-instruct`` or ``gemma-3-270m``: weights that arrive as a Python
               package (`PACKAGED` names the install commands). Without the package the name stands
               for the model's hub id.
``.gguf``      a GGUF file. De-quantised once, then kept (see `steerlens.weights`).
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
included; a base model (no template) reads the plain format ``"Q: {text}\\nA:"``. Positions count
from this rendered text, so everything that reads or writes activations renders with
`render_prompt` or `tokenize_prompts`.

**Caveats.** The bridge runs attention in its eager form, which is slower than the fused one. The
pad token is often the end-of-text token: build masks from lengths, never from token ids. Models
whose code lives in their repository (``trust_remote_code``) are not loaded.

>>> model = load_model("smollm2-135m-instruct")                              # doctest: +SKIP
>>> model_info(model).n_layers                                               # doctest: +SKIP
30
>>> render_prompt(model, "Tell me about Rome.")[-14:]                        # doctest: +SKIP
'm_start|>assistant\\n'
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jinja2
import torch
import transformers
from safetensors import SafetensorError
from transformer_lens.model_bridge import TransformerBridge

from steerlens.errors import FileFormatError, ModelError, unknown_name
from steerlens.placement import placement_options, quantization_name
from steerlens.sources import (
    DEFAULT_MODEL,
    PACKAGED,
    Kind,
    ModelListing,
    PackagedModel,
    available_models,
    find_source,
)
from steerlens.weights import quiet_progress, read_model

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

PLAIN_FORMAT = "Q: {text}\nA:"
CHAT_FORMATS = ("auto", "template", "plain")
DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
INFO_ATTRIBUTE = "steerlens_info"


@dataclass(frozen=True)
class ModelInfo:
    """What a result must record to name its model.

    Attributes:
        reference: What `load_model` was given.
        kind: Which kind of reference that was; "given" for a bridge made elsewhere.
        weights_hash: ``"sha256:…"`` of the file the weights came from (a GGUF or safetensors
            file; of ``"hash  name"`` lines for several), the same for every dtype. For a
            "given" model: of its parameters, in the dtype they have.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        device: Where the model's first parameter is, such as ``"cpu"`` or ``"cuda:0"``.
        n_layers: Number of blocks.
        d_model: Width of the residual stream.
        context_length: Longest sequence in tokens.
        chat_format: ``"template"`` for the model's chat template, else ``"plain"``.
        dtype_reason: Why this dtype.
        prepends_bos: Whether the attached tokenizer begins plain text with a BOS token.
        quantization: How the weights are quantised, such as "bitsandbytes-8bit"; None for not.
    """

    reference: str
    kind: Kind
    weights_hash: str
    dtype: str
    device: str
    n_layers: int
    d_model: int
    context_length: int
    chat_format: Literal["template", "plain"]
    dtype_reason: str
    prepends_bos: bool
    quantization: str | None = None

    @property
    def precision(self) -> str:
        """The dtype, with the quantisation where there is one: what pieces and runs are named by.

        "float32", or "float16, bitsandbytes-8bit".
        """
        return self.dtype if self.quantization is None else f"{self.dtype}, {self.quantization}"


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
            "200GiB"}``.
        quantization_config: Weights are quantised while they are read; see `steerlens.placement`.

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
    target = None if device_map is not None else _resolve_device(device)
    options = placement_options(device_map, max_memory, quantization_config)
    if quantization_config is not None and target is not None:
        # Quantised weights are made where they stay; they cannot be moved afterwards.
        options["device_map"] = {"": str(target)}
        target = None
    torch_dtype, dtype_reason = _resolve_dtype(dtype, target)
    reference = str(ref)
    source = find_source(reference)
    with quiet_progress():
        hf_model, tokenizer = _load_folder(source.folder, reference, torch_dtype, options)
        model = _boot(hf_model, tokenizer, reference, torch_dtype, target)
    model.eval()
    described = _describe(model, reference, source.kind, source.weights_hash)
    info = replace(described, dtype_reason=dtype_reason)
    # The bridge's own record of itself; __dict__ because a module's attributes are its tensors.
    model.__dict__[INFO_ATTRIBUTE] = info
    return model


def auto_dtype(device: str | torch.device) -> tuple[torch.dtype, str]:
    """The dtype ``"auto"`` stands for on a device, and why.

    bfloat16 where the hardware multiplies it natively (a CPU with AVX512-BF16 or AMX-BF16, CUDA
    from compute capability 8.0); elsewhere it is emulated and slower, so float32.

    Raises:
        ModelError: "unknown device …" or "… is not available here".
    """
    target = _resolve_device(device)
    if target.type == "cuda":
        major, minor = torch.cuda.get_device_capability(target)
        if major >= 8:
            return torch.bfloat16, f"CUDA capability {major}.{minor} computes bfloat16 natively"
        return torch.float32, f"CUDA capability {major}.{minor} has no native bfloat16"
    if target.type == "cpu":
        # The public query is newer than the oldest torch supported here.
        query = getattr(torch.cpu, "get_capabilities", None)
        capabilities: dict[str, Any] = query() if query is not None else _probe_cpu()
        for flag in ("amx_bf16", "avx512_bf16"):
            if capabilities.get(flag):
                return torch.bfloat16, f"this CPU has {flag}"
        return torch.float32, "this CPU has neither avx512_bf16 nor amx_bf16"
    return torch.float32, f"bfloat16 is not known to be fast on {target.type}"


def _probe_cpu() -> dict[str, bool]:
    # Private in torch 2.6 to 2.9, hence asked for politely.
    probe = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return {"avx512_bf16": bool(probe is not None and probe())}


def model_info(model: TransformerBridge) -> ModelInfo:
    """What to record about a model: from loading, or worked out for a bridge made elsewhere.

    dtype and device are read from the model as it is now. A "given" model's parameters are hashed
    at the first call and the hash is kept, so change its weights before, not after.
    """
    known: ModelInfo | None = model.__dict__.get(INFO_ATTRIBUTE)
    if known is None:
        name = str(getattr(model.cfg, "model_name", "") or "unnamed")
        known = _describe(model, name, "given", _hash_parameters(model))
        model.__dict__[INFO_ATTRIBUTE] = known
    parameter = next(model.parameters())
    dtype, device = _dtype_name(parameter.dtype), str(parameter.device)
    reason = known.dtype_reason if dtype == known.dtype else "converted after loading"
    return replace(known, dtype=dtype, device=device, dtype_reason=reason)


def render_prompt(
    model: TransformerBridge, text: str, chat_format: str = "auto", system: str | None = None
) -> str:
    """The text the model reads for a user's message, up to where its answer begins.

    Args:
        model: The model whose format is used.
        text: The user's message.
        chat_format: "template" (the model's chat template with generation marker), "plain"
            (``"Q: {text}\\nA:"``), or "auto": the template if the model has one.
        system: A system message; in the plain format it stands above, a blank line between.

    Raises:
        ModelError: "the prompt is empty …", "… has no chat template …", or "the chat template of
            … refuses this conversation: …".
        UnknownNameError: "unknown chat_format …".
    """
    if not text.strip():
        raise ModelError("the prompt is empty; give at least one character that is not a space")
    if _chosen_format(model, chat_format) == "plain":
        plain = PLAIN_FORMAT.format(text=text)
        return plain if system is None else f"{system}\n\n{plain}"
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": text})
    try:
        rendered = _tokenizer(model).apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
    except jinja2.TemplateError as error:
        name = model_info(model).reference
        raise ModelError(
            f"the chat template of {name} refuses this conversation: {_first_line(error)}"
        ) from error
    return str(rendered)


def tokenize_prompts(
    model: TransformerBridge, prompts: Sequence[str], chat_format: str = "auto"
) -> list[list[int]]:
    """Token ids of each prompt as the model reads it, rendered, unpadded.

    A template writes its own special tokens, so none are added; in the plain format a BOS token
    comes first where the model's tokenizer puts one.

    Args:
        model: The model whose tokenizer and format are used.
        prompts: Users' messages.
        chat_format: As in `render_prompt`.

    Returns:
        One list of ids a prompt, in order.

    Raises:
        ModelError: "prompt 3 is empty …", "prompt 3 has 9000 tokens …", "prompt 3 is not valid
            Unicode …", or as in `render_prompt`.
    """
    if isinstance(prompts, str):
        raise ModelError("prompts is one string; give a list of strings")
    for index, prompt in enumerate(prompts):
        if re.search("[\ud800-\udfff]", prompt):
            raise ModelError(f"prompt {index} is not valid Unicode text; give it in UTF-8")
        if not prompt.strip():
            raise ModelError(f"prompt {index} is empty; every prompt needs some text")
    if not prompts:
        return []
    rendered = [render_prompt(model, prompt, chat_format) for prompt in prompts]
    tokenizer = _tokenizer(model)
    tokens = [list(ids) for ids in tokenizer(rendered, add_special_tokens=False)["input_ids"]]
    info = model_info(model)
    if _chosen_format(model, chat_format) == "plain" and info.prepends_bos:
        tokens = [[int(tokenizer.bos_token_id), *ids] for ids in tokens]
    for index, ids in enumerate(tokens):
        if len(ids) > info.context_length:
            raise ModelError(
                f"prompt {index} has {len(ids)} tokens once rendered, and {info.reference} reads "
                f"at most {info.context_length}; shorten it"
            )
    return tokens


def end_token_ids(model: TransformerBridge) -> frozenset[int]:
    """Ids of the tokens that end an answer.

    The tokenizer's end-of-text token, those of the generation and model configurations (some
    models list several), and the special token the chat template puts after an answer.
    """
    tokenizer = _tokenizer(model)
    hf_model: Any = model.original_model
    found: set[int] = set()
    for holder in (tokenizer, getattr(hf_model, "generation_config", None), hf_model.config):
        ids = getattr(holder, "eos_token_id", None)
        if ids is not None:
            found.update([ids] if isinstance(ids, int) else ids)
    if tokenizer.chat_template:
        found |= _turn_end(tokenizer)
    return frozenset(int(token) for token in found)


# Loading and describing


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
            f"a safetensors file of {reference} is truncated or damaged ({_first_line(error)}); "
            "download it again"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError) as error:
        raise ModelError(f"{reference} cannot be loaded: {_first_line(error)}") from error
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the tokenizers library raises Exception itself, no subclass
        raise ModelError(
            f"the tokenizer of {reference} cannot be loaded: {_first_line(error)}"
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
        raise ModelError(f"{reference} cannot be set up: {_first_line(error)}") from error
    finally:
        tokenizer.init_kwargs = own_settings
    return model


def _describe(model: TransformerBridge, reference: str, kind: Kind, weights_hash: str) -> ModelInfo:
    parameter = next(model.parameters())
    return ModelInfo(
        reference=reference,
        kind=kind,
        weights_hash=weights_hash,
        dtype=_dtype_name(parameter.dtype),
        device=str(parameter.device),
        n_layers=int(model.cfg.n_layers),
        d_model=int(model.cfg.d_model),
        context_length=int(model.cfg.n_ctx),
        chat_format="template" if _tokenizer(model).chat_template else "plain",
        dtype_reason="as the given model has it",
        prepends_bos=bool(model.cfg.tokenizer_prepends_bos),
        quantization=quantization_name(
            getattr(model.original_model.config, "quantization_config", None)
        ),
    )


def _hash_parameters(model: TransformerBridge) -> str:
    """SHA-256 over names and bytes of the underlying model's tensors, in order of name."""
    digest = hashlib.sha256()
    state: Mapping[str, torch.Tensor] = model.original_model.state_dict()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        raw: Any = tensor.reshape(-1).view(torch.uint8).numpy()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(raw)
    return f"sha256:{digest.hexdigest()}"


def _resolve_device(device: str | torch.device | None) -> torch.device:
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise ModelError(
            f"unknown device {device!r}; give 'cpu', 'cuda', 'cuda:N' or 'mps'"
        ) from error
    count = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if target.type == "meta" or (target.index or 0) >= count.get(target.type, 1):
        raise ModelError(f"device {str(target)!r} is not available here; 'cpu' always is")
    return target


def _resolve_dtype(
    dtype: str | torch.dtype, device: torch.device | None
) -> tuple[torch.dtype, str]:
    if dtype == "auto":
        return auto_dtype(device if device is not None else _resolve_device(None))
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise unknown_name("dtype", dtype, [*DTYPES, "auto"])
        return DTYPES[dtype], "asked for"
    if dtype not in DTYPES.values():
        raise ModelError(f"dtype {dtype} is not one models run in; give one of {', '.join(DTYPES)}")
    return dtype, "asked for"


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# Tokenizer and chat template


def _tokenizer(model: TransformerBridge) -> Any:
    if model.tokenizer is None:
        name = getattr(model.cfg, "model_name", "the model")
        raise ModelError(f"{name} has no tokenizer; boot it with tokenizer=…, or use load_model")
    return model.tokenizer


def _chosen_format(model: TransformerBridge, chat_format: str) -> Literal["template", "plain"]:
    if chat_format not in CHAT_FORMATS:
        raise unknown_name("chat_format", chat_format, CHAT_FORMATS)
    has_template = bool(_tokenizer(model).chat_template)
    if chat_format == "template" and not has_template:
        raise ModelError(
            f"{model_info(model).reference} has no chat template (it is a base model); "
            "use chat_format='plain' or 'auto'"
        )
    return "template" if has_template and chat_format != "plain" else "plain"


def _turn_end(tokenizer: Any) -> set[int]:
    """The special token right after an answer in the chat template, if there is one."""
    answer = "steerlens"
    conversation = [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]
    try:
        rendered = str(tokenizer.apply_chat_template(conversation, tokenize=False))
    except jinja2.TemplateError:  # a template for single questions ends nothing
        return set()
    after = rendered.rpartition(answer)[2].lstrip()
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    return set(ids[:1]) & set(tokenizer.all_special_ids)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
