r"""Vocabulary read-out: the tokens a direction stands for, by the model's own unembedding.

Each layer's unit direction *u* is read as if it were a whole residual: final norm, then unembedding
(`transformer_lens.tools.analysis.logit_readout`),

.. math:: \text{logits} = W_U^\top N(u) + b_U

with the norm's statistics computed from *u* itself, so its length does not matter; a soft-cap or
logit scale is applied as in the model. The tokens with the highest logits are *promoted* by adding
the direction just before the final norm, those with the lowest *suppressed*.

**Control.** Every direction has a token with the highest logit, and tokens with long unembedding
vectors lead for many. So each logit stands beside **z**, how many standard deviations it lies from
the mean of the same token's logits over random directions, and **placebo_z**, the largest \|z\| of
any token that 95 % of other random directions stay below: about 5 for 49,000 tokens. Tokens beyond
it are about this direction.

Caveat: the direct path only. What a direction at an early layer does to the answer goes through the
layers above, whose basis need not be that of the unembedding; there the read-out is often noise,
and so says the control.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis import logit_readout

from steerlens.attribution.model_evidence import placebo_directions
from steerlens.errors import ModelError, SteeringError
from steerlens.errors.arguments import arguments
from steerlens.vectors import SteeringVector
from steerlens.views import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["VocabularyReadout", "vocabulary_readout"]

# Directions read at once: a row of logits is as long as the vocabulary (0.2 MB in SmolLM2).
_CHUNK = 16


@dataclass(frozen=True, eq=False, repr=False)
class VocabularyReadout(Result):
    """Tokens a vector promotes and suppresses on the direct path, layer by layer.

    Attributes:
        table: One row per token: ``layer, side`` (``promoted`` or ``suppressed``), ``rank`` (1 is
            the extreme), ``token, token_id, logit, z`` and ``placebo_z``, the same in every row.
        n_tokens: Tokens per layer and side.
        metadata: Vector, seed, number of placebo directions.
    """

    table: pd.DataFrame
    n_tokens: int
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def tokens(self, layer: int, side: str = "promoted") -> tuple[str, ...]:
        """The tokens of one layer and side, the extreme one first."""
        chosen = self.table[(self.table.layer == layer) & (self.table.side == side)]
        return tuple(chosen.token)

    def __repr__(self) -> str:
        last = int(self.table.layer.max())
        first = ", ".join(map(repr, self.tokens(last)[:3]))
        return (
            f"VocabularyReadout({self.table.layer.nunique()} layers, at layer {last} most "
            f"promoted: {first})"
        )

    def plot(self, layer: int | None = None, n: int = 12) -> "go.Figure":
        """Tokens the direction promotes and suppresses at a layer, by default the last.

        Args:
            layer: A layer that was read.
            n: Tokens of each side at most.

        Raises:
            SteeringError: A layer that was not read.
        """
        from steerlens.views import ranked_tokens

        known = sorted(set(self.table.layer.tolist()))
        layer = known[-1] if layer is None else layer
        if layer not in known:
            raise SteeringError(f"layer {layer} was not read; read were {known}")
        rows = self.table[self.table.layer == layer].sort_values("z", ascending=False)
        up, down = (rows[rows.side == side] for side in ("promoted", "suppressed"))
        sides = [list(zip(side.token, side.z, strict=True)) for side in (up, down[::-1])]
        return ranked_tokens(*sides, n=n, quantity=f"z of the logit at layer {layer}")

    def _card(self) -> Mapping[str, Any]:
        extreme = self.table[self.table["rank"] == 1]
        wide = extreme.pivot(index="layer", columns="side", values="token").reset_index()
        return {"table": wide}


@arguments
def vocabulary_readout(
    model: TransformerBridge,
    vector: SteeringVector,
    layers: Sequence[int] | None = None,
    n_tokens: int = 10,
    n_placebos: int = 128,
    seed: int = 0,
) -> VocabularyReadout:
    """Read a vector's directions through the final norm and unembedding.

    Args:
        vector: The vector.
        layers: Layers to read; all of the vector's by default.
        n_tokens: Tokens per layer and side.
        n_placebos: Random directions of the control; half of them give each token's mean and
            standard deviation, the others `placebo_z`.
        seed: Their seed.

    Raises:
        SteeringError: The vector does not fit the model or has no such layer, or a number is out
            of range.
        ModelError: The model's logits are not its final norm and an unembedding of the stream.
    """
    vector.check_model(model)
    layers = vector.layers if layers is None else tuple(layers)
    if not layers or not 1 <= n_tokens <= model.cfg.d_vocab or n_placebos < 20 or seed < 0:
        raise SteeringError(
            f"at least one layer, 1 to {model.cfg.d_vocab} n_tokens, at least 20 n_placebos and a "
            f"seed of at least 0 are needed; got {len(layers)}, {n_tokens}, {n_placebos} and {seed}"
        )
    directions = vector.directions[[vector.layer_index(layer) for layer in layers]]
    random = placebo_directions(n_placebos, vector.d_model, seed)
    reference = torch.cat(list(_logits(model, random[: n_placebos // 2])))
    mean, deviation = reference.mean(0), reference.std(0)
    del reference
    others = _logits(model, random[n_placebos // 2 :])
    largest = torch.cat([((logits - mean) / deviation).abs().amax(-1) for logits in others])
    rows = [
        {"layer": layer, **row}
        for layer, logits in zip(layers, torch.cat(list(_logits(model, directions))), strict=True)
        for row in _extremes(model, logits, (logits - mean) / deviation, n_tokens)
    ]
    table = pd.DataFrame(rows)
    table["placebo_z"] = float(np.percentile(largest.numpy(), 95))
    return VocabularyReadout(
        table=table,
        n_tokens=n_tokens,
        metadata={"vector": vector.name, "seed": seed, "n_placebos": n_placebos},
    )


def _extremes(
    model: TransformerBridge,
    logits: Float[Tensor, "vocab"],
    z: Float[Tensor, "vocab"],
    n_tokens: int,
) -> Iterator[dict[str, Any]]:
    """Rows of the tokens with the highest and the lowest logits."""
    tokenizer: Any = model.tokenizer
    for side, largest in (("promoted", True), ("suppressed", False)):
        ids = logits.topk(n_tokens, largest=largest).indices.tolist()
        for rank, token in enumerate(ids, start=1):
            yield {
                "side": side,
                "rank": rank,
                "token": tokenizer.decode([token]),
                "token_id": token,
                "logit": float(logits[token]),
                "z": float(z[token]),
            }


def _logits(
    model: TransformerBridge, directions: Float[Tensor, "direction d_model"]
) -> Iterator[Float[Tensor, "direction vocab"]]:
    """Logits of directions, some at a time, in float32 on the CPU."""
    for start in range(0, len(directions), _CHUNK):
        try:
            readout = logit_readout(model, directions[start : start + _CHUNK])
        except (NotImplementedError, ValueError) as error:
            raise ModelError(
                f"this model's directions cannot be read as tokens: {error}"
            ) from error
        yield readout.values.float().cpu()
