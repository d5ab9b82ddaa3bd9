r"""Activation patching: the reference for what a residual carries.

The uninstructed prompt of a pair runs with **one** residual, that of one token after one layer,
replaced by the instructed run's. Tokens are aligned from the end, where both prompts carry the same
end of the chat template; position −1 is the last prompt token. As in causal recovery
(`steerlens.attribution.causal`), with :math:`q_{l,p}` the distribution of the first response token
after patching layer *l* at position *p*,

.. math:: R_{l,p} = 1 - \frac{\sum_i \mathrm{KL}(p^+_i \,\|\, q_{l,p,i})}
                             {\sum_i \mathrm{KL}(p^+_i \,\|\, p^-_i)}

is the share of the instruction's effect that is there, in whatever directions: steering one
direction at the last token can hardly recover more than patching the whole residual. At the last
layer it is 1 at position −1 (nothing comes after) and 0 elsewhere. High recovery at earlier
positions of middle layers says that the instruction is still there, on its way to the last token.

**Control.** The same patch from the instructed prompt of *another* pair (the next one that has
another base query): what it recovers is the instruction's, what it does not is this prompt's
content. It is run at the last position; `placebo_positions` asks for more. **Intervals** are 95 %
intervals over base queries (`steerlens.stats.queries`).

Caveat: beyond the template's end (``aligned`` is false) the two prompts have different tokens at a
position, and a patch moves the token too. Residuals come from another absolute position, which
models with learned position embeddings notice.

Source: Meng et al. 2022 (causal tracing); Heimersheim and Nanda 2024 on its reading.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from steerlens.activations.cache import check_layers
from steerlens.attribution.model_evidence import (
    prompts_per_pass,
    provenance,
    require_effect,
    tokenized_sides,
)
from steerlens.engine.patching import ending_residuals, patched_logits
from steerlens.errors import ActivationError, SteeringError
from steerlens.errors.arguments import arguments
from steerlens.stats.queries import numbered_queries, recovery_interval
from steerlens.tasks.pairs import ContrastSet
from steerlens.views import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["PatchingMap", "activation_patching"]

Array = np.ndarray


@dataclass(frozen=True, eq=False, repr=False)
class PatchingMap(Result):
    """First-token recovery by patching, layer by position.

    Attributes:
        table: One row per layer and position: ``layer, position`` (−1 is the last prompt token),
            ``token`` (empty when pairs differ), ``aligned`` (all prompts, of both sides, have this
            token there), ``recovery, low, high`` and the control's ``placebo, placebo_low,
            placebo_high``, missing where it was not run. Shares, no unit.
        n_pairs: Pairs scored.
        metadata: Model, weights hash, data hash, mean KL of the instruction's effect in nats.
    """

    table: pd.DataFrame
    n_pairs: int
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def matrix(self) -> pd.DataFrame:
        """Recovery as a layer × position table, position −1 last."""
        return self.table.pivot(index="layer", columns="position", values="recovery")

    def __repr__(self) -> str:
        last = self.table[self.table.position == -1]
        half = last.loc[last.recovery >= 0.5, "layer"]
        reached = f"half of the effect at layer {half.min()}" if len(half) else "never half"
        return (
            f"PatchingMap({self.table.layer.nunique()} layers × "
            f"{self.table.position.nunique()} positions, last token: {reached}, "
            f"{self.n_pairs} pairs)"
        )

    def plot(self) -> "go.Figure":
        """Recovery by layer and position."""
        from steerlens.views import layer_token_map

        matrix = self.matrix
        tokens = self.table.drop_duplicates("position").set_index("position").token
        names = [tokens[position] or str(position) for position in matrix.columns]
        return layer_token_map(
            names, matrix.index.tolist(), matrix.to_numpy(), "recovery", limit=1.0
        )

    def _card(self) -> Mapping[str, Any]:
        return {"largest": "recovery"}


@arguments
def activation_patching(
    model: TransformerBridge,
    pairs: ContrastSet,
    layers: Sequence[int] | None = None,
    n_positions: int = 8,
    placebo_positions: int = 1,
    batch_size: int | None = None,
    chat_format: str = "auto",
    show_progress: bool | None = None,
) -> PatchingMap:
    """Patch single residuals of the instructed into the uninstructed run.

    Args:
        pairs: Contrast pairs.
        layers: Layers to patch; all by default. Negative numbers count from the last layer.
        n_positions: Last tokens of the prompt to patch, one at a time.
        placebo_positions: At how many of these, counted from the end, the control is run, too.
        batch_size: Prompts per forward pass where residuals are read; by default 32, or what
            memory allows.
        show_progress: Show a bar on standard error; by default only in a terminal.

    Raises:
        ActivationError: A layer out of range, or a prompt of too few tokens.
        SteeringError: The instruction does not change the first response token, or a number is
            out of range.
        SteerlensError: All pairs share one base query.
    """
    chosen = check_layers(model, layers)
    _check_numbers(n_positions, placebo_positions, batch_size)
    queries = numbered_queries(pairs.query_groups)
    n_pairs = len(pairs)
    instructed, uninstructed = tokenized_sides(model, pairs, chat_format)
    _check_lengths(instructed + uninstructed, n_positions)
    batch_size = prompts_per_pass(model, instructed + uninstructed, batch_size)
    resid, logits = ending_residuals(model, instructed, chosen, n_positions, batch_size)
    _, unpatched = ending_residuals(model, uninstructed, chosen[-1:], 1, batch_size)
    target = logits.log_softmax(-1)
    whole = _kl(target, unpatched.log_softmax(-1)).numpy()
    require_effect(whole, "first response token")
    sources = [resid]
    if placebo_positions:
        sources.append(resid[_others(queries)][:, :, -placebo_positions:])
    table = _cells(model, instructed + uninstructed, chosen, n_positions)
    names = (("recovery", "low", "high"), ("placebo", "placebo_low", "placebo_high"))
    disable = None if show_progress is None else not show_progress
    total = n_pairs * (n_positions + placebo_positions)
    with tqdm(total=total, desc="patching", unit="pass", disable=disable) as bar:
        for source, (name, low, high) in zip(sources, names, strict=False):
            remaining = np.full((n_pairs, len(chosen), n_positions), np.nan)

            def visit(
                pair: int,
                position: int,
                logits: Float[Tensor, "layer vocab"],
                remaining: Array = remaining,
            ) -> None:
                q = logits.float().cpu().log_softmax(-1)
                remaining[pair, :, position] = _kl(target[pair], q).numpy()
                bar.update()

            patched_logits(model, uninstructed, source, chosen, visit)
            cells = remaining.reshape(n_pairs, -1)
            table[name], table[low], table[high] = recovery_interval(cells, whole, queries)
    return PatchingMap(
        table=table,
        n_pairs=n_pairs,
        metadata={
            **provenance(model, pairs),
            "kl_instructed_uninstructed": float(whole.mean()),
        },
    )


def _kl(p: Float[Tensor, "*row vocab"], q: Float[Tensor, "row vocab"]) -> Float[Tensor, "row"]:
    """KL(p‖q) in nats from log-probabilities."""
    return (p.exp() * (p - q)).sum(-1).double()


def _others(queries: Sequence[int]) -> list[int]:
    """For each pair the next one, in a circle, that has another base query.

    >>> _others([0, 0, 1])
    [2, 2, 0]
    """
    n_pairs = len(queries)
    return [
        next(
            (i + step) % n_pairs
            for step in range(1, n_pairs)
            if queries[(i + step) % n_pairs] != query
        )
        for i, query in enumerate(queries)
    ]


def _cells(
    model: TransformerBridge, rows: Sequence[Sequence[int]], layers: Sequence[int], n_positions: int
) -> pd.DataFrame:
    """Layer, position and token of each cell, layer by layer."""
    tokenizer: Any = model.tokenizer
    ids_at = {position: {row[position] for row in rows} for position in range(-n_positions, 0)}
    cells = [
        {
            "layer": layer,
            "position": position,
            "token": tokenizer.decode(list(ids)) if len(ids) == 1 else "",
            "aligned": len(ids) == 1,
        }
        for layer in layers
        for position, ids in ids_at.items()
    ]
    return pd.DataFrame(cells)


def _check_numbers(n_positions: int, placebo_positions: int, batch_size: int | None) -> None:
    if n_positions < 1 or (batch_size is not None and batch_size < 1):
        raise SteeringError(
            f"n_positions and batch_size must be at least 1; got {n_positions} and {batch_size}"
        )
    if not 0 <= placebo_positions <= n_positions:
        raise SteeringError(
            f"placebo_positions must be between 0 and n_positions ({n_positions}); got "
            f"{placebo_positions}"
        )


def _check_lengths(rows: Sequence[Sequence[int]], n_positions: int) -> None:
    shortest = min(len(row) for row in rows)
    if shortest <= n_positions:
        raise ActivationError(
            f"n_positions {n_positions} reaches the beginning of the shortest prompt, which has "
            f"{shortest} tokens; choose at most {shortest - 1}"
        )
