r"""Downstream components: which later heads and MLPs respond when a direction is added at a layer.

The uninstructed prompt runs with and without steering at layer *l*, **at the last prompt token
only**. Every head and MLP above *l* then writes something else there; `reading_components` measures
the change along the direction that matters for the answer, that of the instruction's effect on the
logits.

**The logit direction.** Let :math:`p_i^+` and :math:`p_i^-` be the distributions of the first
response token with and without the instruction, and
:math:`\delta = \frac1n \sum_i (p_i^+ - p_i^-)`, scaled so that its positive part sums to 1 (its
negative part then sums to −1). With the unembedding :math:`W_U`, :math:`t = W_U\,\delta` is the
direction after the final norm along which the mean logit of the tokens the instruction makes
likelier grows against that of the tokens it makes less likely. With the final norm **frozen** at
the unsteered run of prompt *i*, :math:`d_i = s_i\, \gamma \odot t` is the same direction before it
(gain :math:`\gamma`, scale :math:`s_i`; centred for a layer norm). The effect through component *c*
is

.. math:: r_c = \frac1n \sum_i d_i \cdot (o_{c,i}^{\text{steered}} - o_{c,i}^{\text{unsteered}})

in logits: its direct effect; what later components make of it counts as theirs. Together with the
term ``direct``, what was added itself, effects sum to the change of the stream after the last block
along :math:`d_i` (``total``); ``actual`` is the change with the norm free. Logits are those before
any soft-capping or logit scale.

**Control.** Random directions, pushed as far from the same residuals: a component reads *this*
direction when its effect lies outside their 95 % range. **Intervals** are 95 % intervals over base
queries.

Caveat: steering at the last token only is not steering at all tokens; and beyond the next layer a
component also reads what the components before it wrote in response.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from steerlens.attribution.model_evidence import (
    ComponentResult,
    check_closure,
    check_numbers,
    component_columns,
    component_contributions,
    component_rows,
    placebo_directions,
    provenance,
    tokenized_sides,
)
from steerlens.engine.components import Parts, Vary, check_components, varied_parts
from steerlens.engine.linear_norms import through_final_norm
from steerlens.engine.scoring import ForcedRow, score_rows
from steerlens.errors import SteeringError
from steerlens.errors.arguments import arguments
from steerlens.stats.queries import numbered_queries
from steerlens.steering.operations import Intervention
from steerlens.tasks.pairs import ContrastSet
from steerlens.vectors import SteeringVector

__all__ = ["ComponentReading", "reading_components"]

Array = np.ndarray
# Probability moved; below this both sides give the same first token up to rounding.
_MIN_MOVED = 1e-4


@dataclass(frozen=True, eq=False, repr=False)
class ComponentReading(ComponentResult):
    """What components above the steered layer do in response to a direction.

    Attributes:
        table: One row per component: ``component`` (``"direct"``, ``"L25H3"``, ``"L25 MLP"``),
            ``kind, layer, head``, ``effect, low, high`` (logits), ``share`` of the total, and
            ``placebo, placebo_low, placebo_high`` (mean and 95 % range over random directions).
        layer: The steered layer.
        total: Sum of the effects, in logits.
        actual: Change of the same logits with the final norm free.
        effects: Every term before averaging.
        n_pairs: Pairs used.
        metadata: Model, weights hash, data hash, vector, operation, strength, seed, and
            ``closure``: the largest error of the sum, relative to the norms of its factors.
    """

    _measure = "effect"
    _quantity = "effect of steering at layer {0.layer}, logits"

    table: pd.DataFrame
    layer: int
    total: float
    actual: float
    effects: Float[Array, "pair component"]
    n_pairs: int
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        first = ", ".join(f"{r.component} {r.effect:+.2f}" for r in self.top(3).itertuples())
        return (
            f"ComponentReading(steered at layer {self.layer}, {self.total:+.2f} logits in all, "
            f"{first}, {self.n_pairs} pairs)"
        )


@arguments
def reading_components(
    model: TransformerBridge,
    pairs: ContrastSet,
    vector: SteeringVector,
    layer: int,
    operation: str = "add",
    strength: float = 1.0,
    n_placebos: int = 32,
    batch_size: int | None = None,
    seed: int = 0,
    chat_format: str = "auto",
    show_progress: bool | None = None,
) -> ComponentReading:
    """Effects of later heads and MLPs when the last token of uninstructed prompts is steered.

    Args:
        pairs: Contrast pairs that the vector was not fitted on.
        vector: The vector to steer with.
        layer: Where; there must be a layer above it.
        operation: See `steerlens.steering.interventions`.
        strength: See `steerlens.steering.interventions`.
        n_placebos: Random directions of the control.
        batch_size: Prompts per forward pass when the logit direction is measured; by default what
            memory allows.
        seed: Seed of the random directions.
        show_progress: Show a bar on standard error; by default only in a terminal.

    Raises:
        SteeringError: The vector does not fit the model, the layer is the last one or not the
            vector's, the instruction does not change the first token, or a number is out of range.
        SteerlensError: All pairs share one base query.
        ModelError: The model's residual stream is not the sum of heads and MLPs.
    """
    vector.check_model(model)
    check_numbers(n_placebos, batch_size, seed)
    check_components(model)
    push = vector.at(layer, operation, strength).interventions[0]
    n_layers = model.cfg.n_layers
    if layer == n_layers - 1:
        raise SteeringError(
            f"layer {layer} is the model's last: no head or MLP comes after it; choose one below"
        )
    queries = numbered_queries(pairs.query_groups)
    instructed, uninstructed = tokenized_sides(model, pairs, chat_format)
    target = _logit_direction(model, instructed, uninstructed, batch_size)
    vary = _variants(push, placebo_directions(n_placebos, model.cfg.d_model, seed))
    index = component_rows(model, range(layer + 1, n_layers), first="direct")
    values = np.empty((len(pairs), len(index), 1 + n_placebos))
    actual, closure = np.empty(len(pairs)), 0.0
    disable = None if show_progress is None else not show_progress
    bar = tqdm(uninstructed, desc="reading components", unit="prompt", disable=disable)
    for pair, tokens in enumerate(bar):
        parts = varied_parts(model, tokens, layer, 2 + n_placebos, vary)
        terms, along, actual[pair] = _along_logits(model, parts, layer, target)
        closure = max(closure, check_closure(terms.sum(1), *along, model))
        values[pair] = (terms[1:] - terms[0]).T
    total = float(values[..., 0].sum(1).mean())
    columns = component_columns("effect", values, queries, total)
    return ComponentReading(
        table=pd.concat([index, columns], axis=1),
        layer=layer,
        total=total,
        actual=float(actual.mean()),
        effects=values[..., 0],
        n_pairs=len(pairs),
        metadata={
            **provenance(model, pairs),
            "vector": vector.name,
            "operation": operation,
            "strength": strength,
            "seed": seed,
            "n_placebos": n_placebos,
            "closure": closure,
        },
    )


def _variants(push: Intervention, placebos: Float[Tensor, "placebo d_model"]) -> Vary:
    """A residual as it was, steered, and pushed as far along each random direction."""
    offset, slope = push.coefficients

    def vary(resid: Float[Tensor, "d_model"]) -> Float[Tensor, "variant d_model"]:
        x = resid.float()
        u = push.unit.to(x)
        amount = offset + slope * (x @ u)
        shifts = torch.cat([0 * u[None], amount * u[None], amount.abs() * placebos.to(x)])
        return (x + shifts).to(resid.dtype)

    return vary


def _along_logits(
    model: TransformerBridge, parts: Parts, layer: int, target: Float[Tensor, "d_model"]
) -> tuple[Float[Array, "variant component"], tuple[Array, Array], float]:
    """Terms along the logit direction with the final norm frozen at the first, unsteered variant.

    Returns:
        The terms; what they sum to, with the norms that its rounding is measured by; and the
        second variant's change with the norm free.
    """
    n_layers = model.cfg.n_layers
    final = parts.resid[n_layers - 1]
    aimed, scale = through_final_norm(model, target, final)
    frozen = aimed * scale[0]
    written = component_contributions(model, parts, range(layer + 1, n_layers), frozen[None])
    direct = parts.resid[layer].cpu().double() @ frozen
    terms = torch.cat([direct[:, None], written[..., 0]], dim=1)
    along = final.cpu().double() @ frozen
    norms = final.cpu().double().norm(dim=-1) * frozen.norm()
    free = scale[1] * (final[1].cpu().double() @ aimed) - along[0]
    return terms.numpy(), (along.numpy(), norms.numpy()), float(free)


@torch.inference_mode()
def _logit_direction(
    model: TransformerBridge,
    instructed: list[list[int]],
    uninstructed: list[list[int]],
    batch_size: int | None,
) -> Float[Tensor, "d_model"]:
    r"""The direction :math:`t = W_U\,\delta` of the module's docstring, in float64."""
    rows, n_pairs = instructed + uninstructed, len(instructed)
    moved = torch.zeros(model.cfg.d_vocab, dtype=torch.float64)

    def visit(batch: list[int], _steps: list[int], logits: Float[Tensor, "row vocab"]) -> None:
        sides = [1.0 if i < n_pairs else -1.0 for i in batch]
        signs = torch.tensor(sides, dtype=torch.float32, device=logits.device)
        moved.add_((signs @ logits.float().softmax(-1)).cpu().double(), alpha=1 / n_pairs)

    # What is scored is any token: the logits that predict it are those of the first one.
    forced = [ForcedRow(i, tuple(tokens), (0,), None) for i, tokens in enumerate(rows)]
    score_rows(model, forced, visit, batch_size)
    share = float(moved.abs().sum()) / 2
    if share < _MIN_MOVED:
        raise SteeringError(
            "the instruction does not change the first response token of these pairs "
            f"(it moves {share:.1g} of the probability), so there is no direction of logits to "
            "read along"
        )
    weights = model.W_U.float()
    return (weights @ (moved / share).to(weights)).cpu().double()
