r"""Components: which attention heads and MLPs write a direction at the last prompt position.

The residual stream at layer *l* is a sum of what was written to it, so its projection on a
direction :math:`u` is a sum too:

.. math:: u \cdot h_l = u \cdot e + \sum_{m \le l} \Big( \sum_h u \cdot a_{mh} + u \cdot b_m
          + u \cdot f_m \Big)

with the embedding :math:`e`, the heads' outputs :math:`a_{mh}`, the bias :math:`b_m` of the output
projection where there is one, and the MLPs' outputs :math:`f_m`. `writing_components` gives the
mean difference *instructed − uninstructed* of every term. For the difference of means of the same
pairs these sum to the gap :math:`g_l`; each component's **share** is its part of the sum. (The
embedding's difference is zero: both prompts end with the same token.)

Where a norm follows attention (Gemma 2 and 3), what is written is what leaves it. A norm scales
each vector by a number; held at its value, the rest is linear, so heads still sum to the whole
(`steerlens.engine.linear_norms`).

**Control.** The same parts along random unit directions: a component writes *this* direction when
its contribution lies outside their 95 % range (``placebo_low`` to ``placebo_high``); a component
that merely writes much has a wide range. **Intervals** are 95 % intervals over base queries.

Caveat: this is a direct attribution. A head that moves the instruction to the last position for
later ones to write has no share; patching (`steerlens.attribution.patching`) sees it. Components
may cancel, so shares can exceed 1 or be negative.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
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
    prompts_per_pass,
    provenance,
    tokenized_sides,
)
from steerlens.engine.components import Parts, check_components, last_parts
from steerlens.errors.arguments import arguments
from steerlens.stats.queries import numbered_queries
from steerlens.tasks.pairs import ContrastSet
from steerlens.vectors import SteeringVector

__all__ = ["ComponentWriting", "writing_components"]

Array = np.ndarray


@dataclass(frozen=True, eq=False, repr=False)
class ComponentWriting(ComponentResult):
    """What each component adds to the projection on a direction.

    Attributes:
        table: One row per component: ``component`` (``"embed"``, ``"L5H3"``, ``"L5 bias"``,
            ``"L5 MLP"``), ``kind`` (``embed``, ``head``, ``bias``, ``mlp``), ``layer``, ``head``,
            ``contribution, low, high`` (mean difference instructed − uninstructed, residual-stream
            units), ``share`` of the sum, ``placebo, placebo_low, placebo_high`` (mean and 95 %
            range over random directions), and the means ``instructed`` and ``uninstructed``.
        layer: The layer whose residual is decomposed.
        total: Sum of the contributions: the mean difference of the projection itself.
        contributions: Every term, instructed side first.
        projections: The projections they sum to.
        n_pairs: Pairs used.
        metadata: Model, weights hash, data hash, vector, seed, placebo directions, and ``closure``:
            the largest error of the sum, relative to the norm of the residual.
    """

    _measure = "contribution"
    _quantity = "contribution at layer {0.layer}, residual-stream units"

    table: pd.DataFrame
    layer: int
    total: float
    contributions: Float[Array, "side pair component"]
    projections: Float[Array, "side pair"]
    n_pairs: int
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        first = ", ".join(f"{r.component} {r.share:.0%}" for r in self.top(3).itertuples())
        return (
            f"ComponentWriting(layer {self.layer}, {len(self.table)} components, {first}, "
            f"{self.n_pairs} pairs)"
        )


@arguments
def writing_components(
    model: TransformerBridge,
    pairs: ContrastSet,
    vector: SteeringVector,
    layer: int,
    n_placebos: int = 64,
    batch_size: int | None = None,
    seed: int = 0,
    chat_format: str = "auto",
    show_progress: bool | None = None,
) -> ComponentWriting:
    """Decompose the projection on a vector's direction over embedding, heads and MLPs.

    Args:
        pairs: Contrast pairs; those the vector was fitted on, or others.
        vector: Its direction at `layer` is projected on.
        layer: The layer whose residual, at the last prompt token, is decomposed.
        n_placebos: Random directions of the control.
        batch_size: Prompts per forward pass; by default 32, or what memory allows.
        seed: Seed of the random directions.
        show_progress: Show a bar on standard error; by default only in a terminal.

    Raises:
        SteeringError: The vector does not fit the model or has no such layer, or a number is out
            of range.
        SteerlensError: All pairs share one base query.
        ModelError: The model's residual stream is not the sum of heads and MLPs.
    """
    vector.check_model(model)
    check_numbers(n_placebos, batch_size, seed)
    check_components(model)
    queries = numbered_queries(pairs.query_groups)
    direction = vector.directions[vector.layer_index(layer)]
    directions = torch.cat([direction[None], placebo_directions(n_placebos, len(direction), seed)])
    instructed, uninstructed = tokenized_sides(model, pairs, chat_format)
    rows = instructed + uninstructed
    index = component_rows(model, range(layer + 1), first="embed")
    terms = np.empty((len(rows), len(index), len(directions)))
    whole, norms = np.empty(len(rows)), np.empty(len(rows))
    disable = None if show_progress is None else not show_progress
    with tqdm(total=len(rows), desc="writing components", unit="prompt", disable=disable) as bar:

        def visit(batch: list[int], parts: Parts) -> None:
            embedded = parts.resid[-1].cpu().double() @ directions.double().T
            written = component_contributions(model, parts, range(layer + 1), directions)
            terms[batch] = torch.cat([embedded[:, None], written], dim=1).numpy()
            resid = parts.resid[layer].cpu().double()
            whole[batch] = (resid @ direction.double()).numpy()
            norms[batch] = resid.norm(dim=-1).numpy()
            bar.update(len(batch))

        last_parts(model, rows, layer + 1, prompts_per_pass(model, rows, batch_size), visit)
    closure = check_closure(terms[..., 0].sum(1), whole, norms, model)
    sides, projections = terms.reshape(2, len(pairs), *terms.shape[1:]), whole.reshape(2, -1)
    total = float((projections[0] - projections[1]).mean())
    columns = component_columns("contribution", sides[0] - sides[1], queries, total)
    means = pd.DataFrame(sides[..., 0].mean(1).T, columns=["instructed", "uninstructed"])
    return ComponentWriting(
        table=pd.concat([index, columns, means], axis=1),
        layer=layer,
        total=total,
        contributions=sides[..., 0],
        projections=projections,
        n_pairs=len(pairs),
        metadata={
            **provenance(model, pairs),
            "vector": vector.name,
            "seed": seed,
            "n_placebos": n_placebos,
            "closure": closure,
        },
    )
