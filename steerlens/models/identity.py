"""What a model is: the record that results keep of it, and the identity that names them.

`model_info` says what a result must state of its model. `model_identity` says everything that a
remembered result depends on: the weights as they are now, the configuration, the tokenizer, the
chat template, and what the bridge has been switched to. Remembered results (pieces of a run, shards
of residuals) carry it in their names, and a run's settings state its parts.

As long as the weights have the fingerprint (`steerlens.models.fingerprint`) that they had when
`load_model` loaded them, they are named by the hash of their file, the same on every machine and
for every dtype. Weights that were edited since, by hand or by TransformerLens's compatibility mode,
are named ``"edited:…"``, and those of a bridge made elsewhere ``"live:…"``: both by their
fingerprint. An edit that is taken back gives the old name again.

`model_identity` reads all weights, 0.1 s per half gigabyte. `model_info` does so only when torch
has counted a change to some tensor, or another tensor has taken its place.

**Caveat.** Torch does not count edits of ``parameter.data``: `model_info` shows them after the next
call that reads all weights (`cache_residuals` is one). Hooks are no part of the identity.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformer_lens.model_bridge import TransformerBridge

from steerlens.errors import ModelError
from steerlens.models.configuration import configuration_hash, hash_of, tokenizer_hash
from steerlens.models.exclusion import exclusively
from steerlens.models.fingerprint import Stamp, fingerprint, is_rearranged, switches
from steerlens.models.placement import Placement, quantization_name
from steerlens.models.sources import Kind, ModelSource

__all__ = [
    "Identity",
    "ModelInfo",
    "attached_tokenizer",
    "digest_of_rows",
    "keep_source",
    "model_identity",
    "model_info",
    "model_placement",
]

_LOADED = "steerlens_loaded"
_LIVE = "steerlens_live"


@dataclass(frozen=True)
class _Loaded:
    """What is known from loading; the defaults are for a bridge made elsewhere."""

    reference: str
    kind: Kind = "given"
    weights_hash: str = ""
    dtype: torch.dtype = torch.float32
    dtype_reason: str = "as the given model has it"
    placement: Placement = field(default_factory=Placement)


@dataclass(frozen=True)
class _Live:
    """The weights as they were when all were last read, and when they were first read."""

    stamp: Stamp
    fingerprint: str
    configuration: str
    at_first: str


@dataclass(frozen=True)
class ModelInfo:
    """What a result must record of its model.

    Attributes:
        reference: What `load_model` was given.
        kind: Which kind of reference that was; "given" for a bridge made elsewhere.
        weights_hash: ``"sha256:…"`` of the file the weights came from (of ``"hash  name"`` lines
            for several files), the same for every dtype; ``"live:…"`` for a "given" model and
            ``"edited:…"`` for weights edited after loading: their fingerprint.
        dtype: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        device: Where the model's first parameter is, such as ``"cpu"`` or ``"cuda:0"``.
        n_layers: Number of blocks.
        d_model: Width of the residual stream.
        context_length: Longest sequence in tokens.
        chat_format: ``"template"`` for the model's chat template, else ``"plain"``.
        dtype_reason: Why this dtype.
        prepends_bos: Whether the attached tokenizer begins plain text with a BOS token.
        quantization: How the weights are quantised, such as "bitsandbytes-8bit"; None for not.
        configuration_hash: ``"sha256:…"`` of what the configuration has besides its defaults, and
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
        """The dtype and, if there is one, the quantisation: "float16, bitsandbytes-8bit"."""
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
        switched: Those of "compatibility_mode", "weights_processed", "training" that are on.
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
        """What a piece's name is made of, besides the token ids that were read."""
        return {
            "weights": self.weights_hash,
            "dtype": self.precision,
            "configuration": self.configuration_hash,
            "tokenizer": self.tokenizer_hash,
            "switched": list(self.switched),
        }

    @property
    def compared(self) -> dict[str, Any]:
        """What must be the same for a model that computes in place of this one."""
        return {
            "weights_hash": self.weights_hash,
            "dtype": self.precision,
            "configuration_hash": self.configuration_hash,
            "tokenizer_hash": self.tokenizer_hash,
            "chat_template_hash": self.chat_template_hash,
            "switched": list(self.switched),
        }

    @property
    def settings(self) -> dict[str, Any]:
        """What a run's settings state of the model."""
        return {"reference": self.reference, **self.compared}


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
    """What to record about a model, as it is now.

    Args:
        model: A hooked model, from `load_model` or made elsewhere.
        exact: Read all weights and the configuration, whether or not they seem to have changed.
    """
    live, loaded = _live(model, exact), _loaded(model)
    if loaded.kind == "given":
        weights_hash = f"live:{live.fingerprint}"
    elif live.fingerprint != live.at_first:
        weights_hash = f"edited:{live.fingerprint}"
    else:
        weights_hash = loaded.weights_hash
    cfg, parameter = model.cfg, next(model.parameters())
    is_converted = parameter.dtype != loaded.dtype
    return ModelInfo(
        reference=loaded.reference,
        kind=loaded.kind,
        weights_hash=weights_hash,
        dtype=str(parameter.dtype).removeprefix("torch."),
        device=str(parameter.device),
        n_layers=int(cfg.n_layers),
        d_model=int(cfg.d_model),
        context_length=int(cfg.n_ctx),
        chat_format="template" if attached_tokenizer(model).chat_template else "plain",
        dtype_reason="converted after loading" if is_converted else loaded.dtype_reason,
        prepends_bos=bool(cfg.tokenizer_prepends_bos),
        quantization=quantization_name(
            getattr(model.original_model.config, "quantization_config", None)
        ),
        configuration_hash=live.configuration,
    )


def keep_source(
    model: TransformerBridge, source: ModelSource, dtype_reason: str, placement: Placement
) -> None:
    """Note on a model that was just loaded where it came from, and take its fingerprint."""
    dtype = next(model.parameters()).dtype
    # __dict__ because a module's attributes are its tensors.
    model.__dict__[_LOADED] = _Loaded(
        source.reference, source.kind, source.weights_hash, dtype, dtype_reason, placement
    )
    _live(model, exact=True)


def model_placement(model: TransformerBridge) -> Placement:
    """Where `load_model` was told to put the model; the default for a bridge made elsewhere."""
    return _loaded(model).placement


def _loaded(model: TransformerBridge) -> _Loaded:
    if _LOADED not in model.__dict__:
        name = str(getattr(model.cfg, "model_name", "") or "unnamed")
        model.__dict__[_LOADED] = _Loaded(name, dtype=next(model.parameters()).dtype)
    loaded: _Loaded = model.__dict__[_LOADED]
    return loaded


def _live(model: TransformerBridge, exact: bool) -> _Live:
    """The weights' fingerprint: the last one if nothing shows a change, else a new one."""
    known: _Live | None = model.__dict__.get(_LIVE)
    if known is not None and not exact and known.stamp.fits(model):
        return known
    with exclusively(model):
        if known is not None and is_rearranged(model):
            return known  # asked while decoding, which changes no weight
        stamp, now = Stamp(model), fingerprint(model)
    at_first = now if known is None else known.at_first
    live = model.__dict__[_LIVE] = _Live(stamp, now, configuration_hash(model), at_first)
    return live


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
