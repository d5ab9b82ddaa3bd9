r"""Causal recovery: what steering at a layer does to the next token, without generating.

Let :math:`p^+` and :math:`p^-` be the model's distributions of the first response token for the
instructed and the uninstructed prompt of a pair, and :math:`q_l` that of the uninstructed prompt
steered at layer *l*. The share of the instruction's effect that steering recovers is

.. math:: R_l = 1 - \frac{\sum_i \mathrm{KL}(p^+_i \,\|\, q_{l,i})}
                         {\sum_i \mathrm{KL}(p^+_i \,\|\, p^-_i)}

summed over pairs the vector was **not** fitted on. 1 means that the steered model starts its answer
as the instructed one does, 0 that steering did nothing, below 0 that it moved the distribution
elsewhere. Intervals are 95 % percentile bootstrap intervals over pairs. The same is measured for
a placebo, a random direction pushed as far.

Caveat: the first token sees instructions that show at the start of an answer (a title, a bullet,
a brace); it is blind to those that show later (no commas, a postscript).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine import Row, choose_path, first_logits
from steerlens.engine.plain import first_logits_plainly
from steerlens.errors import SteeringError
from steerlens.models import tokenize_prompts
from steerlens.pairs import ContrastSet
from steerlens.steering import Steering
from steerlens.vectors import SteeringVector

__all__ = ["RecoveryCurve", "first_token_recovery"]

# Nats a pair; below this the difference of two distributions is float32 rounding.
_MIN_EFFECT = 1e-6


@dataclass(frozen=True, eq=False, repr=False)
class RecoveryCurve:
    """First-token causal recovery over layers.

    Attributes:
        table: One row a layer: ``layer, recovery, low, high`` and, when a placebo was given,
            ``placebo, placebo_low, placebo_high``. Shares, no unit.
        best_layer: The layer with the highest recovery.
        n_pairs: Pairs scored.
        metadata: Operation, strength, scope, vector.
    """

    table: pd.DataFrame
    best_layer: int
    n_pairs: int
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        row = self.table.set_index("layer").loc[self.best_layer]
        return (
            f"RecoveryCurve(best layer {self.best_layer}: {row.recovery:.2f} "
            f"[{row.low:.2f}, {row.high:.2f}], {self.n_pairs} pairs)"
        )


def first_token_recovery(
    model: TransformerBridge,
    pairs: ContrastSet,
    vector: SteeringVector,
    layers: Sequence[int] | None = None,
    placebo: SteeringVector | None = None,
    operation: str = "set_projection",
    strength: float = 1.0,
    scope: str = "all",
    batch_size: int = 32,
    seed: int = 0,
    chat_format: str = "auto",
    progress: bool | None = None,
) -> RecoveryCurve:
    """Recovery of the instruction's first-token effect by steering, layer by layer.

    Args:
        model: A hooked model.
        pairs: Contrast pairs that the vector was not fitted on.
        vector: The vector to test.
        layers: Layers to steer at; all of the vector's by default.
        placebo: A vector to run beside it, for example `steerlens.vectors.random_direction`.
        operation: See `steerlens.steering`.
        strength: See `steerlens.steering`.
        scope: ``"all"`` and ``"prompt"`` touch the prompt; ``"response"`` has no effect here.
        batch_size: Rows a forward pass; a row is a prompt with its own layer.
        seed: Seed of the bootstrap.
        chat_format: See `steerlens.models`.
        progress: Show a progress bar on standard error; by default only in a terminal.

    Raises:
        SteeringError: The vector or the placebo does not fit the model or has no such layer, the
            scope is ``response``, the pairs' sides give the same first token distribution, or a
            number is out of range.
    """
    if scope == "response":
        raise SteeringError(
            "scope 'response' cannot change the first response token; use 'all' or 'prompt'"
        )
    layers = vector.layers if layers is None else tuple(layers)
    if not layers or batch_size < 1 or seed < 0:
        raise SteeringError(
            "at least one layer, a batch_size of at least 1 and a seed of at least 0 are needed; "
            f"got {len(layers)} layers, batch_size {batch_size}, seed {seed}"
        )
    kinds = [vector] if placebo is None else [vector, placebo]
    for kind in kinds:
        kind.check_model(model)
    rows = tokenize_prompts(
        model,
        [p.instructed for p in pairs] + [p.uninstructed for p in pairs],
        chat_format=chat_format,
    )
    n_pairs = len(pairs)
    plain = torch.empty(len(rows), model.cfg.d_vocab)
    _first_logprobs(model, rows, [None] * len(rows), batch_size, plain.__setitem__)
    instructed, uninstructed = plain[:n_pairs], plain[n_pairs:]
    whole = (instructed.exp() * (instructed - uninstructed)).sum(-1).double().numpy()
    if not whole.sum() > _MIN_EFFECT * n_pairs:
        raise SteeringError(
            "the instruction does not change the first response token of these pairs "
            f"(mean KL {whole.mean():.1g} nats), so there is no effect to recover"
        )
    steerings = [
        kind.at(layer, operation, strength, scope)
        for kind in kinds
        for layer in layers
        for _ in range(n_pairs)
    ]
    steered_rows = rows[n_pairs:] * (len(kinds) * len(layers))
    kl = _kl_to(instructed, model, steered_rows, steerings, batch_size, progress)
    remaining = kl.reshape(len(kinds), len(layers), n_pairs)
    table = pd.DataFrame({"layer": layers})
    names = (("recovery", "low", "high"), ("placebo", "placebo_low", "placebo_high"))
    for kind_names, values in zip(names, remaining, strict=False):
        for name, column in zip(kind_names, _recovery(values, whole, seed), strict=True):
            table[name] = column
    return RecoveryCurve(
        table=table,
        best_layer=int(table.layer[int(table.recovery.argmax())]),
        n_pairs=n_pairs,
        metadata={
            "vector": vector.name,
            "operation": operation,
            "strength": strength,
            "scope": scope,
            "data_hash": pairs.data_hash,
            "seed": seed,
            "kl_instructed_uninstructed": float(whole.mean()),
        },
    )


def _recovery(
    remaining: Float[np.ndarray, "layer pair"],
    whole: Float[np.ndarray, "pair"],
    seed: int,
    n_resamples: int = 1000,
) -> tuple[Float[np.ndarray, "layer"], ...]:
    """Recovery with the ends of its 95 % interval."""
    n_pairs = len(whole)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(n_pairs, np.full(n_pairs, 1 / n_pairs), size=n_resamples)
    samples = 1 - (remaining @ draws.T) / (whole @ draws.T)
    low, high = np.percentile(samples, (2.5, 97.5), axis=1)
    return 1 - remaining.sum(1) / whole.sum(), low, high


def _kl_to(
    instructed: Float[Tensor, "pair vocab"],
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    steerings: Sequence[Steering],
    batch_size: int,
    progress: bool | None,
) -> Float[np.ndarray, "row"]:
    """KL(instructed‖steered) of each row; row *i* belongs to pair *i* modulo their number."""
    result = np.empty(len(rows))
    disable = None if progress is None else not progress
    with tqdm(total=len(rows), desc="causal recovery", unit="row", disable=disable) as bar:

        def visit(batch: list[int], logprobs: Float[Tensor, "row vocab"]) -> None:
            p = instructed[[i % len(instructed) for i in batch]]
            result[batch] = (p.exp() * (p - logprobs)).sum(-1).double().numpy()
            bar.update(len(batch))

        _first_logprobs(model, rows, steerings, batch_size, visit)
    return result


def _first_logprobs(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    steerings: Sequence[Steering | None],
    batch_size: int,
    visit: Callable[[list[int], Float[Tensor, "row vocab"]], None],
) -> None:
    """Log-probabilities of the first response token, each row under its own steering."""
    flow = [
        Row(i, tuple(tokens), steering, 1)
        for i, (tokens, steering) in enumerate(zip(rows, steerings, strict=True))
    ]
    run = first_logits if choose_path(model).is_fast else first_logits_plainly
    run(
        model,
        flow,
        batch_size,
        lambda batch, logits: visit(batch, logits.float().log_softmax(-1).cpu()),
    )
