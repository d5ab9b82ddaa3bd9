r"""Logit lens: what both streams would say if the model stopped at a layer.

The residual at an asked layer is read through the model's own final norm and unembedding (the
logit lens; nostalgebraist 2020), with TransformerLens's `logit_readout`, for the baseline's stream
and the steered one. At each layer and position that gives two next-token distributions, compared as
the final ones are (`steerlens.effects.distributions`): the layer where KL rises is where what was
written becomes something the model will say.

Caveat: layers far below the last were never trained to be read this way; their read-outs are rough
and often dominated by few tokens. Reading costs one unembedding a token, layer and stream, more
than the blocks themselves on small models, so layers are read only when asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis import logit_readout

from steerlens.effects.distributions import Decode, compare
from steerlens.effects.streams import Stream
from steerlens.errors import ModelError, SteerlensError
from steerlens.views import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["LensReadout", "read_through_lens"]

N_TOP = 5
_NUMBERS = ("kl", "logprob_baseline", "logprob_steered", "entropy_baseline", "entropy_steered")


@dataclass(frozen=True, eq=False, repr=False)
class LensReadout(Result):
    """Both streams read at some layers; all logarithms natural.

    Attributes:
        tokens: The text, token by token.
        n_prompt: How many of them belong to the prompt.
        layers: The layers read, ascending.
        kl: KL(steered‖baseline) of the read-outs, nats.
        logprob_baseline: Log-probability of each token of the text, read from the position before
            it; NaN for the first.
        logprob_steered: The same in the steered stream.
        entropy_baseline: Entropy of the read-out, nats.
        entropy_steered: The same in the steered stream.
        top_baseline: Ids of the five likeliest tokens.
        top_steered: The same in the steered stream.
        vocabulary: Text of every id among them.
    """

    tokens: tuple[str, ...]
    n_prompt: int
    layers: tuple[int, ...]
    kl: Float[Tensor, "layer pos"]
    logprob_baseline: Float[Tensor, "layer pos"]
    logprob_steered: Float[Tensor, "layer pos"]
    entropy_baseline: Float[Tensor, "layer pos"]
    entropy_steered: Float[Tensor, "layer pos"]
    top_baseline: Int[Tensor, "layer pos top"]
    top_steered: Int[Tensor, "layer pos top"]
    vocabulary: Mapping[int, str]

    def top(self, layer: int, position: int, steered: bool = True) -> tuple[str, ...]:
        """The likeliest next tokens after a position, read at a layer.

        Raises:
            SteerlensError: The layer was not read, or the text has no such position.
        """
        n_tokens = self.kl.shape[1]
        if layer not in self.layers or not 0 <= position < n_tokens:
            raise SteerlensError(
                f"layer {layer} and position {position} were not read: there are layers "
                f"{', '.join(map(str, self.layers))} and positions 0 to {n_tokens - 1}"
            )
        ids = (self.top_steered if steered else self.top_baseline)[self.layers.index(layer)]
        return tuple(self.vocabulary[i] for i in ids[position].tolist())

    @property
    def table(self) -> pd.DataFrame:
        """One row per layer and position."""
        rows = [(layer, position) for layer in self.layers for position in range(self.kl.shape[1])]
        table = pd.DataFrame(rows, columns=["layer", "position"])
        for name in _NUMBERS:
            table[name] = getattr(self, name).flatten().tolist()
        for name in ("top_baseline", "top_steered"):
            table[name] = self._words(getattr(self, name))
        return table

    def plot(self) -> "go.Figure":
        """KL between both read-outs over layers and tokens."""
        from steerlens.views import layer_token_map

        return layer_token_map(
            self.tokens,
            self.layers,
            self.kl,
            "KL(steered‖baseline)",
            unit="nats",
            signed=False,
            n_prompt=self.n_prompt,
            title="Where the two streams begin to say different things (logit lens)",
        )

    def _card(self) -> Mapping[str, Any]:
        return {"largest": "kl"}

    def _words(self, ids: Int[Tensor, "layer pos top"]) -> list[tuple[str, ...]]:
        return [tuple(self.vocabulary[i] for i in row) for row in ids.flatten(0, 1).tolist()]

    def __repr__(self) -> str:
        return f"LensReadout({len(self.layers)} layers, {self.kl.shape[1]} tokens)"


def read_through_lens(
    model: TransformerBridge,
    baseline: Stream,
    steered: Stream,
    ids: Sequence[int],
    tokens: tuple[str, ...],
    n_prompt: int,
    decode: Decode,
) -> LensReadout:
    """Read the kept layers of two streams; to be called outside `fast_modules`.

    Raises:
        ModelError: TransformerLens cannot read this architecture through its unembedding.
    """
    layers = tuple(sorted(baseline.resid))
    n_tokens = len(ids)
    tops = torch.zeros(2, len(layers), n_tokens, N_TOP, dtype=torch.long)
    compared = []
    for place, layer in enumerate(layers):
        unsteered = Stream({}, _reader(model, baseline.resid[layer], tops[0, place]))
        changed = Stream({}, _reader(model, steered.resid[layer], tops[1, place]))
        compared.append(compare(unsteered, changed, ids, 0, decode))
    return LensReadout(
        tokens=tokens,
        n_prompt=n_prompt,
        layers=layers,
        top_baseline=tops[0],
        top_steered=tops[1],
        vocabulary={i: decode(i) for i in set(tops.flatten().tolist())},
        **{name: torch.stack([getattr(c, name) for c in compared]) for name in _NUMBERS},
    )


def _reader(
    model: TransformerBridge, resid: Float[Tensor, "pos d_model"], top: Int[Tensor, "pos top"]
) -> Callable[[slice], Float[Tensor, "row vocab"]]:
    """Logits of some positions; the likeliest tokens are written into `top` on the way."""

    def read(rows: slice) -> Float[Tensor, "row vocab"]:
        try:
            logits: Tensor = logit_readout(model, resid[rows]).values
        except (ValueError, TypeError, NotImplementedError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise ModelError(
                f"the logit lens cannot read this model: {reason}; leave lens_layers out"
            ) from error
        top[rows] = logits.topk(N_TOP, dim=-1).indices.cpu()
        return logits

    return read
