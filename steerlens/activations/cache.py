"""Caching residual-stream activations of both sides of contrast pairs.

For a contrast pair *i* and a layer *l* the cache keeps one vector per side: the output of block *l*
(hook ``blocks.{l}.hook_out``) read at one **position** of the rendered chat prompt:

=================  ==============================================================================
``"last_prompt"``  the last token of the rendered prompt, generation marker included: the place
                   the first response token is predicted from (Stolfo et al. 2025, §3.1)
an ``int``         that token of the rendered prompt; negative counts from its end
``"response_mean"``  mean over the tokens of a given response, teacher-forced after the prompt
``"last_response"``  the last token of a given response, from which the model ends it or goes on
``"answer"``       the first token at which the two responses of a pair differ (choices)
=================  ==============================================================================

Identical prompts run once, and so do beginnings that prompts share (the chat preamble, both sides
of a pair up to the instruction). Blocks above the last requested layer, and the unembedding, are
not run. When something else on the model is hooked, prompts run whole, in left-padded batches
sorted by length, through the bridge's own forward pass. Vectors are stored in float32 whatever the
model computes in.

Caveat: padding changes the order of floating-point sums, so batched and single runs agree to
about 1e-5 relative in float32 and 1e-2 in bfloat16.

>>> import torch
>>> cache = ResidualCache.from_tensors(torch.ones(4, 2, 3), torch.zeros(4, 2, 3))
>>> cache
ResidualCache(4 pairs, 2 layers 0–1, d_model 3)
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from steerlens.activations.positions import (
    POSITIONS,
    SIDES,
    Position,
    check_pairs,
    rows_to_read,
)
from steerlens.engine.capture import residuals_at
from steerlens.engine.paths import slots_for
from steerlens.engine.residuals import Span
from steerlens.errors import ActivationError, FileFormatError
from steerlens.errors.arguments import layer_numbers, whole_number
from steerlens.files import library_versions, read_tensors, write_tensors
from steerlens.models.loading import model_info
from steerlens.tasks.notices import about_pairs, warn_of_pairs
from steerlens.tasks.pairs import ContrastSet
from steerlens.views.result import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = [
    "POSITIONS",
    "Position",
    "ResidualCache",
    "cache_residuals",
    "check_layers",
]

FILE_KIND = "residual-cache"
# Of a default batch; another number would change the last digits of results.
MOST_PROMPTS = 16


@dataclass(frozen=True, eq=False, repr=False)
class ResidualCache(Result):
    """Residual vectors of both sides of contrast pairs.

    Attributes:
        instructed: Residuals of the prompts with the instruction.
        uninstructed: Residuals of the prompts without it; row *i* belongs to the same pair.
        layers: The layer of each entry of the middle axis.
        groups: Number of the base query of each pair; pairs of one base query, or of
            near-duplicates, share a number, and cross-validation never splits them.
        metadata: What is needed to compute the cache again (model, weights hash, data hash, …).
    """

    instructed: Float[Tensor, "pair layer d_model"]
    uninstructed: Float[Tensor, "pair layer d_model"]
    layers: tuple[int, ...]
    groups: tuple[int, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_tensors(
        cls,
        instructed: Tensor,
        uninstructed: Tensor,
        layers: Sequence[int] | None = None,
        groups: Sequence[int] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> "ResidualCache":
        """A cache from activations computed elsewhere.

        Args:
            instructed: One residual vector for each pair and layer, ``[pair layer d_model]``.
            uninstructed: The same shape. Shapes are checked here, not by annotation, so that
                tensors from elsewhere get a sentence.
            layers: Layer numbers; 0, 1, … by default.
            groups: Base-query number of each pair; every pair its own by default.
            metadata: Provenance to keep.

        Raises:
            ActivationError: Shapes differ or are not ``[pair layer d_model]``, fewer than two
                pairs, a layer or group that is no whole number, or a value that is NaN, infinite
                or beyond float32 (the message names the pair and the layer).
        """
        if instructed.ndim != 3 or instructed.shape != uninstructed.shape:
            raise ActivationError(
                "instructed and uninstructed must both have shape [pair layer d_model]; got "
                f"{tuple(instructed.shape)} and {tuple(uninstructed.shape)}"
            )
        n_pairs, n_layers, _ = instructed.shape
        if n_pairs < 2:
            raise ActivationError(f"at least 2 pairs are needed to compare sides; got {n_pairs}")
        layers = range(n_layers) if layers is None else layers
        groups = range(n_pairs) if groups is None else groups
        layers = layer_numbers(layers, error=ActivationError)
        groups = layer_numbers(groups, "groups", ActivationError)
        if len(layers) != n_layers or len(groups) != n_pairs:
            raise ActivationError(
                f"expected {n_layers} layer numbers and {n_pairs} groups; "
                f"got {len(layers)} and {len(groups)}"
            )
        return cls(
            instructed=_stored(instructed, "instructed", layers),
            uninstructed=_stored(uninstructed, "uninstructed", layers),
            layers=layers,
            groups=groups,
            metadata=dict(metadata or {}),
        )

    @property
    def n_pairs(self) -> int:
        """Number of contrast pairs."""
        return self.instructed.shape[0]

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.instructed.shape[2]

    def layer_index(self, layer: SupportsIndex | float) -> int:
        """Place of a layer on the middle axis; `ActivationError` when it was not cached."""
        number = whole_number("layer", layer, error=ActivationError)
        if number not in self.layers:
            raise ActivationError(f"layer {number} is not in this cache; it holds {self.layers}")
        return self.layers.index(number)

    @property
    def table(self) -> pd.DataFrame:
        """One row per layer, in residual-stream units.

        ``instructed`` and ``uninstructed`` are the median norms of the two sides, each with the
        10th and 90th percentile over pairs (``…_low``, ``…_high``); ``gap`` is the distance of the
        two means.
        """
        columns: dict[str, Any] = {"layer": list(self.layers)}
        for side in SIDES:
            norms = getattr(self, side).norm(dim=2).numpy()
            ends = zip(("_low", "", "_high"), np.quantile(norms, (0.1, 0.5, 0.9), 0), strict=True)
            columns |= {f"{side}{end}": values.tolist() for end, values in ends}
        columns["gap"] = (self.instructed.mean(0) - self.uninstructed.mean(0)).norm(dim=1).tolist()
        return pd.DataFrame(columns)

    def plot(self) -> "go.Figure":
        """How long residuals are over layers, and how far apart the two sides lie."""
        from steerlens.views import norm_curves

        return norm_curves(self.table)

    def _card(self) -> Mapping[str, Any]:
        known = self.metadata.keys() & {"instruction", "position", "model"}
        return {"table": None, "facts": {key: self.metadata[key] for key in sorted(known)}}

    def save(self, path: str | Path) -> Path:
        """Write the cache as one safetensors file with its provenance, atomically."""
        tensors = {
            "instructed": self.instructed,
            "uninstructed": self.uninstructed,
            "layers": torch.tensor(self.layers),
            "groups": torch.tensor(self.groups),
        }
        return write_tensors(path, FILE_KIND, tensors, {"metadata": dict(self.metadata)})

    @classmethod
    def load(cls, path: str | Path) -> "ResidualCache":
        """Read a cache that `save` wrote; `FileFormatError` when the file is anything else."""
        tensors, record = read_tensors(path, FILE_KIND)
        try:
            return cls.from_tensors(
                tensors["instructed"],
                tensors["uninstructed"],
                layers=tensors["layers"].tolist(),
                groups=tensors["groups"].tolist(),
                metadata=record["metadata"],
            )
        except (KeyError, TypeError) as error:
            raise FileFormatError(f"{path} lacks a part of a residual cache: {error}") from error

    def __repr__(self) -> str:
        span = f"{self.layers[0]}–{self.layers[-1]}" if self.layers else "none"
        return (
            f"ResidualCache({self.n_pairs} pairs, {len(self.layers)} layers {span}, "
            f"d_model {self.d_model})"
        )


def cache_residuals(
    model: TransformerBridge,
    pairs: Any,
    position: Position = "last_prompt",
    layers: Iterable[int] | None = None,
    batch_size: int | None = None,
    chat_format: str = "auto",
    show_progress: bool | None = None,
    control_tokens: str = "escape",
) -> ResidualCache:
    """Run the model over both sides of the pairs and keep one residual vector per side and layer.

    Args:
        model: A hooked model.
        pairs: A `ContrastSet`; ``response_mean`` and ``last_response`` need pairs that carry both
            responses.
        position: Where the residual is read; see the module's table.
        layers: Layers to keep; all by default. Negative numbers count from the last layer.
        batch_size: Prompts per forward pass; by default 16, or what memory allows.
        chat_format: ``"auto"``, ``"template"`` or ``"plain"``; see `steerlens.models.loading`.
        show_progress: Show a progress bar on standard error; by default only in a terminal.
        control_tokens: ``"escape"`` reads control tokens that a prompt or a response spells as
            text, ``"keep"`` lets them act; see `steerlens.models.control_tokens`.

    Returns:
        A `ResidualCache` in float32 on the CPU. Its metadata say what about the pairs may mislead
        (`steerlens.tasks.notices`: ``length_auroc``, ``near_duplicates``, ``identical_pairs``), and
        ``notices`` are warned of.

    Raises:
        ActivationError: A layer or position out of range, or non-finite activations.
        PairsError: ``response_mean`` or ``last_response`` without responses.
        ModelError: A prompt longer than the model's context.
    """
    cache = residuals_of(
        model, pairs, position, layers, batch_size, chat_format, show_progress, control_tokens
    )
    warn_of_pairs(cache.metadata)
    return cache


def residuals_of(
    model: TransformerBridge,
    pairs: Any,
    position: Position,
    layers: Iterable[int] | None,
    batch_size: int | None,
    chat_format: str,
    show_progress: bool | None,
    control_tokens: str = "escape",
) -> ResidualCache:
    """`cache_residuals` without its warnings, for parts of a set of pairs."""
    check_pairs(pairs)
    layers = check_layers(model, layers)
    if not isinstance(position, str):
        position = whole_number("position", position, error=ActivationError)
    if batch_size is not None:
        batch_size = whole_number("batch_size", batch_size, least=1, error=ActivationError)
    rows = rows_to_read(model, pairs, position, chat_format, control_tokens)
    # Each distinct row runs once.
    numbers: dict[tuple[tuple[int, ...], Span], int] = {}
    reads = [(tuple(tokens), span) for tokens, span in zip(rows.tokens, rows.spans, strict=True)]
    index = torch.tensor([numbers.setdefault(read, len(numbers)) for read in reads])
    if batch_size is None:
        longest = max(map(len, rows.tokens))
        batch_size = min(MOST_PROMPTS, slots_for(model, longest, len(numbers)))
    residuals = residuals_at(
        model,
        [list(tokens) for tokens, _ in numbers],
        [span for _, span in numbers],
        layers,
        batch_size=batch_size,
        show_progress=show_progress,
    )[index]
    n_pairs = len(pairs)
    lengths = rows.prompt_lengths
    info = model_info(model, exact=True)
    return ResidualCache.from_tensors(
        residuals[:n_pairs],
        residuals[n_pairs:],
        layers=layers,
        groups=pairs.query_groups,
        metadata={
            "model": info.reference,
            "weights_hash": info.weights_hash,
            "configuration_hash": info.configuration_hash,
            "dtype": info.dtype,
            "n_layers": info.n_layers,
            "d_model": info.d_model,
            "chat_format": info.chat_format if chat_format == "auto" else chat_format,
            "control_tokens": control_tokens,
            "position": position,
            "n_prompts_run": len(numbers),
            **metadata_of_pairs(pairs, lengths),
            "versions": library_versions(),
        },
    )


def metadata_of_pairs(pairs: ContrastSet, prompt_lengths: Sequence[int]) -> dict[str, Any]:
    """What a cache records of its pairs, given the tokens of each row's prompt."""
    n_pairs = len(pairs)
    return {
        "n_pairs": n_pairs,
        **about_pairs(pairs, prompt_lengths[:n_pairs], prompt_lengths[n_pairs:]),
        "data_hash": pairs.data_hash,
        "instruction": pairs.instruction_id,
        "split": pairs.split,
        "seed": pairs.seed,
        "contrast": pairs.contrast,
    }


def check_layers(model: TransformerBridge, layers: Iterable[int] | None) -> tuple[int, ...]:
    """Layer numbers checked against the model; all layers when none are given.

    Raises:
        ActivationError: "layer 40 is out of range: the model has 30 layers, 0 to 29", "every one
            of layers must be a whole number; got True", "no layers were asked for …".
    """
    n_layers = model.cfg.n_layers
    if layers is None:
        return tuple(range(n_layers))
    numbers = layer_numbers(layers, error=ActivationError)
    for layer in numbers:
        if not -n_layers <= layer < n_layers:
            raise ActivationError(
                f"layer {layer} is out of range: the model has {n_layers} layers, "
                f"0 to {n_layers - 1}"
            )
    if not numbers:
        raise ActivationError("no layers were asked for; give at least one, or None for all")
    return tuple(sorted({layer % n_layers for layer in numbers}))


def repeated_pairs(
    instructed: Float[Tensor, "pair layer d_model"],
    uninstructed: Float[Tensor, "pair layer d_model"],
) -> tuple[int, ...]:
    """A number for each pair; pairs whose residuals are the same to the last bit share one."""
    numbers: dict[bytes, int] = {}
    sides = zip(instructed.numpy(), uninstructed.numpy(), strict=True)
    digests = [hashlib.sha256(plus.tobytes() + minus.tobytes()).digest() for plus, minus in sides]
    return tuple(numbers.setdefault(digest, len(numbers)) for digest in digests)


def _stored(
    values: Float[Tensor, "pair layer d_model"], side: str, layers: Sequence[int]
) -> Float[Tensor, "pair layer d_model"]:
    """One side as it is kept, in float32, where a finite float64 may be infinite."""
    stored = values.detach().to("cpu", torch.float32)
    finite = torch.isfinite(stored).all(dim=-1)
    if bool(finite.all()):
        return stored
    pair, place = (~finite).nonzero()[0].tolist()
    was_finite = bool(torch.isfinite(values[pair, place]).all())
    raise ActivationError(
        f"{side} activations hold "
        + ("numbers that do not fit float32" if was_finite else "NaN or infinity")
        + f", first at pair {pair}, layer {layers[place]}; check the model's weights and dtype "
        "(float16 overflows in some models)"
    )
