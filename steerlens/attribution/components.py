r"""Components: which attention heads and MLPs write a direction at the last prompt position.

The residual stream at layer *l* is a sum of what was written to it, so its projection on a
direction :math:`u` is a sum too:

.. math:: u \cdot h_l = u \cdot e + \sum_{m \le l} \Big( \sum_h u \cdot a_{mh} + u \cdot b_m
          + u \cdot f_m \Big)

with the embedding :math:`e`, the heads' outputs :math:`a_{mh}`, the bias :math:`b_m` of the output
projection where there is one, and the MLPs' outputs :math:`f_m`. `writing_components` computes
every term for both sides of contrast pairs and reports the mean difference *instructed −
uninstructed* of each. For the difference of means of the same pairs the differences sum to the gap
:math:`g_l`; each component's **share** is its part of the sum. (The embedding's difference is zero:
both prompts end with the same token.)

Where a norm follows attention (Gemma 2 and 3), what is written is what leaves it. A norm scales
each vector by a number of its own; held at its value, the rest is linear, so heads still sum to
the whole (`steerlens.engine.linear_norms`). This is `ActivationCache`'s decomposition
projected on a direction, without keeping head outputs; TransformerLens's own takes a head's output
for its contribution where a norm follows.

**Control.** The same parts along random unit directions: a component writes *this* direction when
its contribution lies outside their 95 % range (``placebo_low`` to ``placebo_high``); one that
merely writes much has a wide range. **Intervals** are 95 % intervals over base queries
(`steerlens.stats.means`).

Caveat: this is a direct attribution. A head that moves the instruction to the last position for
later ones to write has no share; patching (`steerlens.attribution.patching`) sees it. Components
may cancel, so shares can exceed 1 or be negative.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.components import Parts, check_components, last_parts
from steerlens.engine.linear_norms import head_contributions, tolerance
from steerlens.errors import ModelError, SteeringError
from steerlens.errors.arguments import arguments
from steerlens.models.adapter.bridge import own_module
from steerlens.models.loading import model_info, tokenize_prompts
from steerlens.stats.means import mean_interval
from steerlens.stats.resampling import INTERVAL, numbered_queries
from steerlens.tasks.pairs import ContrastSet
from steerlens.vectors import SteeringVector

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = [
    "ComponentWriting",
    "check_closure",
    "check_numbers",
    "component_columns",
    "component_contributions",
    "component_rows",
    "placebo_directions",
    "provenance",
    "writing_components",
]

Array = np.ndarray


@dataclass(frozen=True, eq=False, repr=False)
class ComponentWriting:
    """What each component adds to the projection on a direction.

    Attributes:
        table: One row a component: ``component`` (``"embed"``, ``"L5H3"``, ``"L5 bias"``,
            ``"L5 MLP"``), ``kind`` (``embed``, ``head``, ``bias``, ``mlp``), ``layer``, ``head``,
            ``contribution, low, high`` (mean difference instructed − uninstructed, residual-stream
            units), ``share`` of the sum, the means ``instructed`` and ``uninstructed``, and
            ``placebo, placebo_low, placebo_high`` (mean and 95 % range of the contribution over
            random directions).
        layer: The layer whose residual is decomposed.
        total: Sum of the contributions: the mean difference of the projection itself.
        contributions: Every term, instructed side first.
        projections: The projections they sum to.
        n_pairs: Pairs used.
        metadata: Model, weights hash, data hash, vector, seed, placebo directions, and ``closure``:
            the largest error of the sum, relative to the norm of the residual.
    """

    table: pd.DataFrame
    layer: int
    total: float
    contributions: Float[Array, "side pair component"]
    projections: Float[Array, "side pair"]
    n_pairs: int
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def top(self, n: int = 10) -> pd.DataFrame:
        """The `n` components with the largest contributions, whatever their sign."""
        order = self.table.contribution.abs().sort_values(ascending=False).index
        return self.table.loc[order].head(n)

    def __repr__(self) -> str:
        first = ", ".join(f"{r.component} {r.share:.0%}" for r in self.top(3).itertuples())
        return (
            f"ComponentWriting(layer {self.layer}, {len(self.table)} components, {first}, "
            f"{self.n_pairs} pairs)"
        )

    def plot(self, n: int = 12) -> "go.Figure":
        """The `n` components that write most along the direction, and against it."""
        from steerlens.views import ranked_tokens

        rows = list(zip(self.table.component, self.table.contribution, strict=True))
        rows.sort(key=lambda row: -row[1])
        quantity = f"contribution at layer {self.layer}, residual-stream units"
        return ranked_tokens(rows, rows[::-1], n=n, quantity=quantity)

    def _repr_html_(self) -> str:
        from steerlens.views import summary

        return summary(repr(self), table=self.table, largest="contribution")


@arguments
def writing_components(
    model: TransformerBridge,
    pairs: ContrastSet,
    vector: SteeringVector,
    layer: int,
    n_placebos: int = 64,
    batch_size: int = 32,
    seed: int = 0,
    chat_format: str = "auto",
    progress: bool | None = None,
) -> ComponentWriting:
    """Decompose the projection on a vector's direction over embedding, heads and MLPs.

    Args:
        model: A hooked model.
        pairs: Contrast pairs; those the vector was fitted on, or others.
        vector: Its direction at `layer` is projected on.
        layer: The layer whose residual, at the last prompt token, is decomposed.
        n_placebos: Random directions of the control.
        batch_size: Prompts a forward pass.
        seed: Seed of the random directions.
        chat_format: See `steerlens.models.loading`.
        progress: Show a progress bar on standard error; by default only in a terminal.

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
    n_pairs = len(pairs)
    prompts = [pair.instructed for pair in pairs] + [pair.uninstructed for pair in pairs]
    rows = tokenize_prompts(model, prompts, chat_format=chat_format)
    index = component_rows(model, range(layer + 1), first="embed")
    terms = np.empty((len(rows), len(index), len(directions)))
    whole, norms = np.empty(len(rows)), np.empty(len(rows))
    disable = None if progress is None else not progress
    with tqdm(total=len(rows), desc="components", unit="prompt", disable=disable) as bar:

        def visit(batch: list[int], parts: Parts) -> None:
            embedded = parts.resid[-1].cpu().double() @ directions.double().T
            written = component_contributions(model, parts, range(layer + 1), directions)
            terms[batch] = torch.cat([embedded[:, None], written], dim=1).numpy()
            resid = parts.resid[layer].cpu().double()
            whole[batch] = (resid @ direction.double()).numpy()
            norms[batch] = resid.norm(dim=-1).numpy()
            bar.update(len(batch))

        last_parts(model, rows, layer + 1, batch_size, visit)
    closure = check_closure(terms[..., 0].sum(1), whole, norms, model)
    sides, projections = terms.reshape(2, n_pairs, *terms.shape[1:]), whole.reshape(2, n_pairs)
    total = float((projections[0] - projections[1]).mean())
    columns = component_columns("contribution", sides[0] - sides[1], queries, total)
    means = pd.DataFrame(sides[..., 0].mean(1).T, columns=["instructed", "uninstructed"])
    return ComponentWriting(
        table=pd.concat([index, columns, means], axis=1),
        layer=layer,
        total=total,
        contributions=sides[..., 0],
        projections=projections,
        n_pairs=n_pairs,
        metadata={
            **provenance(model, pairs),
            "vector": vector.name,
            "seed": seed,
            "n_placebos": n_placebos,
            "closure": closure,
        },
    )


def component_rows(model: TransformerBridge, layers: Sequence[int], first: str) -> pd.DataFrame:
    """Names of the components of some blocks, in the order of `component_contributions`.

    Args:
        model: A hooked model.
        layers: Its blocks.
        first: Name of the term that is no component of a block.

    Returns:
        Columns ``component, kind, layer, head``; layer and head are missing where there is none.
    """
    rows: list[tuple[str, str, int | None, int | None]] = [(first, first, None, None)]
    for layer in layers:
        attn = model.blocks[layer].attn
        for head in range(attn.W_O.shape[0]):
            rows.append((f"L{layer}H{head}", "head", layer, head))
        if getattr(own_module(attn.o), "bias", None) is not None:
            rows.append((f"L{layer} bias", "bias", layer, None))
        rows.append((f"L{layer} MLP", "mlp", layer, None))
    table = pd.DataFrame(rows, columns=["component", "kind", "layer", "head"])
    return table.astype({"layer": "Int64", "head": "Int64"})


def component_contributions(
    model: TransformerBridge,
    parts: Parts,
    layers: Sequence[int],
    directions: Float[Tensor, "direction d_model"],
) -> Float[Tensor, "row component direction"]:
    """What heads, biases and MLPs of some blocks wrote along directions; float64, on the CPU."""
    columns = []
    for layer in layers:
        attention = head_contributions(model, layer, parts.z[layer], parts.attn[layer], directions)
        columns.append(attention.heads)
        if attention.bias is not None:
            columns.append(attention.bias[:, None])
        columns.append((parts.mlp[layer].cpu().double() @ directions.double().T)[:, None])
    return torch.cat(columns, dim=1)


def placebo_directions(n: int, d_model: int, seed: int) -> Float[Tensor, "direction d_model"]:
    """Random unit directions, uniform on the sphere."""
    generator = torch.Generator().manual_seed(seed)
    noise: Tensor = torch.randn(n, d_model, generator=generator, dtype=torch.float32)
    return torch.nn.functional.normalize(noise, dim=-1)


def component_columns(
    name: str,
    values: Float[Array, "pair component direction"],
    queries: Sequence[int],
    total: float,
) -> pd.DataFrame:
    """Means of direction 0 with intervals and shares, beside the range of the others (placebos)."""
    mean, low, high = mean_interval(values[..., 0], queries)
    placebo = values[..., 1:].mean(0)
    placebo_low, placebo_high = np.percentile(placebo, INTERVAL, axis=1)
    return pd.DataFrame(
        {
            name: mean,
            "low": low,
            "high": high,
            "share": mean / total if total else np.nan,
            "placebo": placebo.mean(1),
            "placebo_low": placebo_low,
            "placebo_high": placebo_high,
        }
    )


def check_closure(
    total: Float[Array, "row"],
    whole: Float[Array, "row"],
    norms: Float[Array, "row"],
    model: TransformerBridge,
) -> float:
    """Largest difference of sum and whole, in residual norms; `ModelError` beyond rounding."""
    closure = float((np.abs(total - whole) / norms).max())
    if not closure <= tolerance(model):
        raise ModelError(
            f"the parts of this model do not sum to its residual stream (off by {closure:.2g} of "
            "its norm): something beside attention and MLPs writes to it; use patching instead"
        )
    return closure


def provenance(model: TransformerBridge, pairs: ContrastSet) -> dict[str, Any]:
    """What a result on these pairs needs to be computed again."""
    info = model_info(model)
    return {
        "model": info.reference,
        "weights_hash": info.weights_hash,
        "dtype": info.dtype,
        "data_hash": pairs.data_hash,
    }


def check_numbers(n_placebos: int, batch_size: int, seed: int) -> None:
    """`SteeringError` when a number is out of range."""
    if n_placebos < 2 or batch_size < 1 or not 0 <= seed < 2**32:
        raise SteeringError(
            "at least 2 n_placebos, a batch_size of at least 1 and a seed from 0 to "
            f"{2**32 - 1} are needed; got {n_placebos}, {batch_size} and {seed}"
        )
