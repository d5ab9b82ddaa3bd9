"""What a model is: the record that results keep of it, and the identity that names them.

**Record and identity.** `model_info` says what a result must state of its model. `model_identity`
says everything a remembered result depends on, so that it is not reused for another model: the
weights as they are now, the configuration, the tokenizer, the chat template, and what the bridge
has been switched to. Remembered results (pieces of a run, shards of residuals) carry it in their
names, and a run's settings state its parts.

**Weights.** `load_model` takes a fingerprint of what it loaded (`steerlens.models.fingerprint`). As
long as the weights have it, they are named by the hash of their file, the same on every machine and
for every dtype. Weights that were edited since, by hand or by TransformerLens's compatibility mode,
are named ``"edited:…"``, and those of a bridge made elsewhere ``"live:…"``: both by their
fingerprint. Edits that are taken back give the old name again.

`model_identity` reads all weights, a tenth of a second for each half gigabyte. `model_info` does so
only when torch has counted a change to some tensor, or another tensor has taken its place, since
they were read last.

**Caveat.** Edits of ``parameter.data`` are not counted: `model_info` shows them after the next call
that reads all weights (`cache_residuals` is one). Hooks are no part of the identity.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from transformer_lens.model_bridge import TransformerBridge

from steerlens.errors import ModelError
from steerlens.models.configuration import configuration_hash, hash_of, tokenizer_hash
from steerlens.models.exclusion import exclusively
from steerlens.models.fingerprint import Stamp, fingerprint, is_rearranged, switches
from steerlens.models.placement import Placement, quantization_name
from steerlens.models.sources import Kind

__all__ = [
    "Identity",
    "ModelInfo",
    "attached_tokenizer",
    "describe_model",
    "digest_of_rows",
    "keep_info",
    "model_identity",
    "model_info",
    "model_placement",
]

_INFO = "steerlens_info"
_PLACEMENT = "steerlens_placement"
_LIVE = "steerlens_live"


@dataclass(frozen=True)
class _Live:
    """The weights as they were when all were read last, and at the first time."""

    stamp: Stamp
    fingerprint: str
    configuration: str
    at_first: str


@dataclass(frozen=True)
class ModelInfo:
    """What a result must record to name its model.

    Attributes:
        reference: What `load_model` was given.
        kind: Which kind of reference that was; "given" for a bridge made elsewhere.
        weights_hash: ``"sha256:…"`` of the file the weights came from (a GGUF or safetensors
            file; of ``"hash  name"`` lines for several), the same for every dtype. For a
            "given" model ``"live:…"``, and for weights edited after loading ``"edited:…"``: their
            fingerprint, in the dtype they have.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        device: Where the model's first parameter is, such as ``"cpu"`` or ``"cuda:0"``.
        n_layers: Number of blocks.
        d_model: Width of the residual stream.
        context_length: Longest sequence in tokens.
        chat_format: ``"template"`` for the model's chat template, else ``"plain"``.
        dtype_reason: Why this dtype.
        prepends_bos: Whether the attached tokenizer begins plain text with a BOS token.
        quantization: How the weights are quantised, such as "bitsandbytes-8bit"; None for not.
        configuration_hash: ``"sha256:…"`` of what the configuration has beside its defaults, and
            of what was changed in the bridge's since loading.
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
    configuration_hash: str = ""

    @property
    def edited(self) -> bool:
        """Whether the weights are no longer those that were loaded."""
        return self.weights_hash.startswith("edited:")

    @property
    def precision(self) -> str:
        """The dtype, with the quantisation where there is one: what pieces and runs are named by.

        "float32", or "float16, bitsandbytes-8bit".
        """
        return self.dtype if self.quantization is None else f"{self.dtype}, {self.quantization}"


@dataclass(frozen=True)
class Identity:
    """Everything about a model that its results depend on.

    Attributes:
        reference: What the model is called.
        weights_hash: As of `ModelInfo`; exact.
        precision: As of `ModelInfo`.
        configuration_hash: As of `ModelInfo`.
        tokenizer_hash: ``"sha256:…"`` of what makes tokens of text, and text of tokens.
        chat_template_hash: ``"sha256:…"`` of the template as it is written; None without one.
        switched: What the bridge and the model have been switched to: "compatibility_mode",
            "weights_processed", "training".
    """

    reference: str
    weights_hash: str
    precision: str
    configuration_hash: str
    tokenizer_hash: str
    chat_template_hash: str | None
    switched: tuple[str, ...]

    @property
    def key(self) -> dict[str, Any]:
        """What a piece's name is made of, beside the token ids of what is asked."""
        return {
            "weights": self.weights_hash,
            "dtype": self.precision,
            "configuration": self.configuration_hash,
            "tokenizer": self.tokenizer_hash,
            "switched": list(self.switched),
        }

    @property
    def settings(self) -> dict[str, Any]:
        """What a run's settings state of the model."""
        return {
            "reference": self.reference,
            "weights_hash": self.weights_hash,
            "dtype": self.precision,
            **self.added_settings,
        }

    @property
    def compared(self) -> dict[str, Any]:
        """What must be the same of a model that computes in this one's place."""
        return {
            "weights_hash": self.weights_hash,
            "precision": self.precision,
            **self.added_settings,
        }

    @property
    def added_settings(self) -> dict[str, Any]:
        """Those of the settings that runs of earlier versions do not name."""
        return {
            "configuration_hash": self.configuration_hash,
            "tokenizer_hash": self.tokenizer_hash,
            "chat_template_hash": self.chat_template_hash,
            "switched": list(self.switched),
        }


def model_identity(model: TransformerBridge) -> Identity:
    """The model's identity, with all weights read.

    Raises:
        ModelError: "… has no tokenizer …", or as `steerlens.models.exclusion.ModelLock.acquire`.
    """
    info = model_info(model, exact=True)
    template = attached_tokenizer(model).chat_template
    return Identity(
        reference=info.reference,
        weights_hash=info.weights_hash,
        precision=info.precision,
        configuration_hash=info.configuration_hash,
        tokenizer_hash=tokenizer_hash(model, attached_tokenizer(model)),
        chat_template_hash=hash_of(template) if template else None,
        switched=tuple(name for name, on in switches(model).items() if on),
    )


def model_info(model: TransformerBridge, exact: bool = False) -> ModelInfo:
    """What to record about a model: from loading, or worked out for a bridge made elsewhere.

    dtype and device are read from the model as it is now.

    Args:
        model: A hooked model.
        exact: Read all weights and the configuration again, whether or not weights seem to have
            changed; see the module's page.
    """
    live = _live(model, exact)
    known: ModelInfo | None = model.__dict__.get(_INFO)
    if known is None:
        name = str(getattr(model.cfg, "model_name", "") or "unnamed")
        known = describe_model(model, name, "given", f"live:{live.fingerprint}")
        model.__dict__[_INFO] = known
    weights_hash = known.weights_hash
    if known.kind == "given":
        weights_hash = f"live:{live.fingerprint}"
    elif live.fingerprint != live.at_first:
        weights_hash = f"edited:{live.fingerprint}"
    parameter = next(model.parameters())
    dtype, device = _dtype_name(parameter.dtype), str(parameter.device)
    reason = known.dtype_reason if dtype == known.dtype else "converted after loading"
    return replace(
        known,
        weights_hash=weights_hash,
        dtype=dtype,
        device=device,
        dtype_reason=reason,
        configuration_hash=live.configuration,
        chat_format=_chat_format(model),
    )


def _live(model: TransformerBridge, exact: bool) -> _Live:
    """The weights' fingerprint: the last one, if it is good enough, or a new one."""
    known: _Live | None = model.__dict__.get(_LIVE)
    if known is not None and not exact and known.stamp.fits(model):
        return known
    with exclusively(model):
        if known is not None and is_rearranged(model):
            return known  # asked in the midst of decoding, which puts every weight back
        before = Stamp(model)
        found = fingerprint(model)
    at_first = found if known is None else known.at_first
    live = _Live(before, found, configuration_hash(model), at_first)
    model.__dict__[_LIVE] = live
    return live


def keep_info(model: TransformerBridge, info: ModelInfo, placement: Placement) -> None:
    """Put what is known from loading on the model itself, its weights' fingerprint with it."""
    # __dict__ because a module's attributes are its tensors.
    model.__dict__[_INFO] = info
    model.__dict__[_PLACEMENT] = placement
    _live(model, exact=True)


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
        chat_format=_chat_format(model),
        dtype_reason="as the given model has it",
        prepends_bos=bool(model.cfg.tokenizer_prepends_bos),
        quantization=quantization_name(
            getattr(model.original_model.config, "quantization_config", None)
        ),
        configuration_hash=configuration_hash(model),
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


def digest_of_rows(rows: Iterable[Sequence[int]]) -> str:
    """A hash of rows of token ids, in order.

    >>> digest_of_rows([[1, 2], [3]]) == digest_of_rows([[1], [2, 3]])
    False
    """
    digest = hashlib.sha256()
    for row in rows:
        digest.update((" ".join(map(str, row)) + "\n").encode())
    return digest.hexdigest()


def _chat_format(model: TransformerBridge) -> Literal["template", "plain"]:
    return "template" if attached_tokenizer(model).chat_template else "plain"


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
