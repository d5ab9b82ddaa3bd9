"""What evidence that runs the model on contrast pairs has in common."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.components import Parts
from steerlens.engine.linear_norms import head_contributions, tolerance
from steerlens.engine.paths import slots_for
from steerlens.errors import ModelError, SteeringError
from steerlens.models.adapter.bridge import own_module
from steerlens.models.loading import model_info, tokenize_prompts
from steerlens.stats.queries import PERCENTILES, mean_interval
from steerlens.tasks.pairs import ContrastSet
from steerlens.views import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = [
    "ComponentResult",
    "check_closure",
    "check_numbers",
    "component_columns",
    "component_contributions",
    "component_rows",
    "placebo_directions",
    "prompts_per_pass",
    "provenance",
    "require_effect",
    "tokenized_sides",
]

Array = np.ndarray
# Nats per pair; below this the difference of two distributions is float32 rounding.
_MIN_EFFECT = 1e-6
_MOST_PROMPTS = 32


def tokenized_sides(
    model: TransformerBridge, pairs: ContrastSet, chat_format: str
) -> tuple[list[list[int]], list[list[int]]]:
    """Instructed and uninstructed prompts as tokens."""
    prompts = [pair.instructed for pair in pairs] + [pair.uninstructed for pair in pairs]
    rows = tokenize_prompts(model, prompts, chat_format=chat_format)
    return rows[: len(pairs)], rows[len(pairs) :]


def prompts_per_pass(
    model: TransformerBridge, rows: Sequence[Sequence[int]], batch_size: int | None
) -> int:
    """The batch size asked for; by default 32 prompts, or what memory allows."""
    if batch_size is not None:
        return batch_size
    return min(_MOST_PROMPTS, slots_for(model, max(map(len, rows)), len(rows)))


def require_effect(kl: Float[Array, "pair"], where: str) -> None:
    """`SteeringError` where the instruction's effect, in nats per pair, is nothing but rounding."""
    if not kl.sum() > _MIN_EFFECT * len(kl):
        raise SteeringError(
            f"the instruction does not change the {where} of these pairs "
            f"(mean KL {kl.mean():.1g} nats), so there is no effect to recover"
        )


def placebo_directions(n: int, d_model: int, seed: int) -> Float[Tensor, "direction d_model"]:
    """Random unit directions, uniform on the sphere."""
    generator = torch.Generator().manual_seed(seed)
    noise: Tensor = torch.randn(n, d_model, generator=generator, dtype=torch.float32)
    return torch.nn.functional.normalize(noise, dim=-1)


def provenance(model: TransformerBridge, pairs: ContrastSet) -> dict[str, Any]:
    """What is needed to compute a result on these pairs again."""
    info = model_info(model)
    return {
        "model": info.reference,
        "weights_hash": info.weights_hash,
        "dtype": info.dtype,
        "data_hash": pairs.data_hash,
    }


class ComponentResult(Result):
    """A number for each component, ``effect`` or ``contribution``, in `table`."""

    table: pd.DataFrame
    _measure: str
    _quantity: str

    def top(self, n: int = 10) -> pd.DataFrame:
        """The `n` components with the largest numbers, whatever their sign."""
        order = self.table[self._measure].abs().sort_values(ascending=False).index
        return self.table.loc[order].head(n)

    def plot(self, n: int = 12) -> "go.Figure":
        """The `n` components that do most along the direction, and against it."""
        from steerlens.views import ranked_tokens

        rows = list(zip(self.table.component, self.table[self._measure], strict=True))
        rows.sort(key=lambda row: -row[1])
        return ranked_tokens(rows, rows[::-1], n=n, quantity=self._quantity.format(self))

    def _card(self) -> Mapping[str, Any]:
        return {"largest": self._measure}


def component_rows(model: TransformerBridge, layers: Sequence[int], first: str) -> pd.DataFrame:
    """Names of the components of some blocks, in the order of `component_contributions`.

    Args:
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


def component_columns(
    name: str,
    values: Float[Array, "pair component direction"],
    queries: Sequence[int],
    total: float,
) -> pd.DataFrame:
    """Means of direction 0 with intervals and shares, beside the range of the others (placebos)."""
    mean, low, high = mean_interval(values[..., 0], queries)
    placebo = values[..., 1:].mean(0)
    placebo_low, placebo_high = np.percentile(placebo, PERCENTILES, axis=1)
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


def check_numbers(n_placebos: int, batch_size: int | None, seed: int) -> None:
    """`SteeringError` when a number is out of range."""
    least = 1 if batch_size is None else batch_size
    if n_placebos < 2 or least < 1 or not 0 <= seed < 2**32:
        raise SteeringError(
            "at least 2 n_placebos, a batch_size of at least 1 and a seed from 0 to "
            f"{2**32 - 1} are needed; got {n_placebos}, {batch_size} and {seed}"
        )
