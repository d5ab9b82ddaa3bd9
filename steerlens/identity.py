"""What a model is: the record that results keep of it, worked out for models made elsewhere too."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from transformer_lens.model_bridge import TransformerBridge

from steerlens.errors import ModelError
from steerlens.placement import Placement, quantization_name
from steerlens.sources import Kind

__all__ = [
    "ModelInfo",
    "attached_tokenizer",
    "describe_model",
    "keep_info",
    "model_info",
    "model_placement",
]

_INFO = "steerlens_info"
_PLACEMENT = "steerlens_placement"


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


def model_info(model: TransformerBridge) -> ModelInfo:
    """What to record about a model: from loading, or worked out for a bridge made elsewhere.

    dtype and device are read from the model as it is now. A "given" model's parameters are hashed
    at the first call and the hash is kept, so change its weights before, not after.
    """
    known: ModelInfo | None = model.__dict__.get(_INFO)
    if known is None:
        name = str(getattr(model.cfg, "model_name", "") or "unnamed")
        known = describe_model(model, name, "given", _hash_parameters(model))
        model.__dict__[_INFO] = known
    parameter = next(model.parameters())
    dtype, device = _dtype_name(parameter.dtype), str(parameter.device)
    reason = known.dtype_reason if dtype == known.dtype else "converted after loading"
    return replace(known, dtype=dtype, device=device, dtype_reason=reason)


def keep_info(model: TransformerBridge, info: ModelInfo, placement: Placement) -> None:
    """Put what is known from loading on the model itself."""
    # __dict__ because a module's attributes are its tensors.
    model.__dict__[_INFO] = info
    model.__dict__[_PLACEMENT] = placement


def model_placement(model: TransformerBridge) -> Placement:
    """Where `load_model` was told to put the model; the default for a bridge made elsewhere."""
    placement: Placement = model.__dict__.get(_PLACEMENT, Placement())
    return placement


def describe_model(
    model: TransformerBridge, reference: str, kind: Kind, weights_hash: str
) -> ModelInfo:
    """The record of a model as it is now."""
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
        chat_format="template" if attached_tokenizer(model).chat_template else "plain",
        dtype_reason="as the given model has it",
        prepends_bos=bool(model.cfg.tokenizer_prepends_bos),
        quantization=quantization_name(
            getattr(model.original_model.config, "quantization_config", None)
        ),
    )


def attached_tokenizer(model: TransformerBridge) -> Any:
    """The model's tokenizer.

    Raises:
        ModelError: "… has no tokenizer …".
    """
    if model.tokenizer is None:
        name = getattr(model.cfg, "model_name", "the model")
        raise ModelError(f"{name} has no tokenizer; boot it with tokenizer=…, or use load_model")
    return model.tokenizer


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


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
