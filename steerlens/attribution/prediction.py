r"""Which evidence about layers predicts where steering works?

Behaviour is the judge: responses steered at every layer, each passing its instruction's check or
not. A kind of evidence, one number a layer, is measured by two things.

**Agreement**: Spearman's rank correlation over layers between the evidence and the rate of passes,
averaged over instructions.

**Regret**: the rate at the best layer less the rate at the layer with the most evidence, in shares
of prompts. The best layer is itself chosen from counts, and the highest of many noisy rates is too
high; so prompts are split in two halves, the best layer is chosen on one and both rates are read
from the other, and the same the other way round:

.. math:: r_k = \tfrac12 \sum_{h \in \{1, 2\}} \big(\bar p_{h}(l^*_{\bar h}) - \bar p_{h}(l_k)\big),
   \quad l^*_{\bar h} = \arg\max_l \bar p_{\bar h}(l), \quad l_k = \arg\max_l e_k(l)

which can be negative: the evidence may find a better layer than half the behaviour does. Many
random halves are averaged.

Intervals are 95 % percentile bootstrap intervals over instructions: they speak about other
instructions of the same model, not about other models. An instruction that no layer steers (its
best layer gains less than `least_gain` over no steering) has nothing to predict and is left out;
which ones is part of the result.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from steerlens.attribution.resampling import INTERVAL, N_RESAMPLES
from steerlens.errors import ActivationError

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["EvidenceComparison", "compare_evidence"]

Array = np.ndarray
_N_HALVES = 200


@dataclass(frozen=True, eq=False, repr=False)
class EvidenceComparison:
    """How well kinds of evidence predict steerability.

    Attributes:
        table: One row a kind, the lowest regret first: ``kind, n_instructions, spearman,
            spearman_low, spearman_high, regret, regret_low, regret_high``; regret in shares of
            prompts.
        by_instruction: One row a steerable instruction and kind: ``instruction, kind, layer, rate,
            best_layer, best_rate, unsteered, spearman, regret``. ``best_rate`` is the highest of
            many and flattered by the choice; ``regret`` is not.
        left_out: Instructions that no layer steers.
    """

    table: pd.DataFrame
    by_instruction: pd.DataFrame
    left_out: tuple[str, ...]

    def __repr__(self) -> str:
        best = self.table.iloc[0]
        return (
            f"EvidenceComparison({len(self.table)} kinds on {best.n_instructions} instructions; "
            f"least regret: {best.kind}, {best.regret:.2f} "
            f"[{best.regret_low:.2f}, {best.regret_high:.2f}])"
        )

    def plot(self) -> "go.Figure":
        """Regret of each kind of evidence with its interval."""
        from steerlens.plots.rates import evidence_regret

        return evidence_regret(self.table)

    def _repr_html_(self) -> str:
        from steerlens.plots.summaries import summary

        return summary(repr(self), table=self.table)

    def difference(self, kind: str, minus: str, seed: int = 0) -> tuple[float, float, float]:
        """Mean regret of one kind less that of another on the same instructions, with interval."""
        wide = self.by_instruction.pivot(index="instruction", columns="kind", values="regret")
        return _mean_interval((wide[kind] - wide[minus]).to_numpy(), seed)


def compare_evidence(
    evidence: Mapping[str, pd.DataFrame],
    passed: Mapping[str, Bool[Array, "layer prompt"]],
    unsteered: Mapping[str, Bool[Array, " prompt"]],
    layers: Sequence[int],
    kinds: Sequence[str],
    least_gain: float = 0.125,
    seed: int = 0,
) -> EvidenceComparison:
    """Compare kinds of evidence by the behaviour they were to predict.

    Args:
        evidence: For each instruction a table with ``layer`` and a column for every kind, such as
            `LayerRanking.table`; an empty value never wins.
        passed: For each instruction, whether the response steered at a layer passes.
        unsteered: The same without steering.
        layers: The layers that were steered, in the order of `passed`.
        kinds: Columns to compare.
        least_gain: Gain of the best layer over no steering, in shares of prompts, from which on an
            instruction counts as steerable.
        seed: Draws halves and resamples.

    Raises:
        ActivationError: Instructions, layers or kinds that do not fit together, fewer than 2
            prompts, or no instruction that any layer steers.
    """
    if set(evidence) != set(passed) or set(passed) != set(unsteered):
        raise ActivationError("evidence and behaviour must be of the same instructions")
    rng = np.random.default_rng(seed)
    rows: list[dict[str, object]] = []
    left_out = []
    for name, found in passed.items():
        counts = np.asarray(found, dtype=float)
        if counts.ndim != 2 or len(counts) != len(layers) or counts.shape[1] < 2:
            raise ActivationError(
                f"{name}: behaviour of shape {counts.shape} does not fit {len(layers)} layers and "
                "at least 2 prompts"
            )
        rates, plain = counts.mean(axis=1), float(np.mean(unsteered[name]))
        best = int(rates.argmax())
        if rates[best] - plain < least_gain:
            left_out.append(name)
            continue
        halves = _halves(counts.shape[1], rng)
        for kind in kinds:
            values = _values(evidence[name], kind, layers, name)
            chosen = int(np.nanargmax(values))
            rows.append(
                {
                    "instruction": name,
                    "kind": kind,
                    "layer": layers[chosen],
                    "rate": rates[chosen],
                    "best_layer": layers[best],
                    "best_rate": rates[best],
                    "unsteered": plain,
                    "spearman": _spearman(values, rates),
                    "regret": _regret(counts, chosen, halves),
                }
            )
    if not rows:
        raise ActivationError(
            f"no layer gains {least_gain:.0%} on any of {len(passed)} instructions: there is "
            "nothing to predict"
        )
    by_instruction = pd.DataFrame(rows)
    table = [
        {"kind": kind, "n_instructions": len(own)}
        | _named("spearman", _mean_interval(own.spearman.to_numpy(), seed))
        | _named("regret", _mean_interval(own.regret.to_numpy(), seed))
        for kind, own in by_instruction.groupby("kind", sort=False)
    ]
    ordered = pd.DataFrame(table).sort_values("regret", kind="stable").reset_index(drop=True)
    return EvidenceComparison(ordered, by_instruction, tuple(left_out))


def _values(
    table: pd.DataFrame, kind: str, layers: Sequence[int], name: str
) -> Float[Array, " layer"]:
    if kind not in table:
        raise ActivationError(f"{name} has no evidence {kind!r}; it has {', '.join(table.columns)}")
    values: Array = table.set_index("layer")[kind].reindex(list(layers)).to_numpy(dtype=float)
    if not np.isfinite(values).any():
        raise ActivationError(f"{name}: {kind!r} is empty at every layer that was steered")
    return values


def _halves(n: int, rng: np.random.Generator) -> Bool[Array, "split prompt"]:
    """Random halves of the prompts; a split and its complement are both used."""
    order = rng.permuted(np.tile(np.arange(n), (_N_HALVES, 1)), axis=1)
    chosen: Array = order < n // 2
    return chosen


def _regret(
    counts: Float[Array, "layer prompt"], chosen: int, halves: Bool[Array, "split prompt"]
) -> float:
    total = 0.0
    for one in (halves, ~halves):
        here = counts @ one.T / one.sum(axis=1)
        there = counts @ (~one).T
        best = there.argmax(axis=0)
        total += float((here[best, np.arange(len(one))] - here[chosen]).mean())
    return total / 2


def _spearman(values: Float[Array, " layer"], rates: Float[Array, " layer"]) -> float:
    known = np.isfinite(values)
    one, other = rankdata(values[known]), rankdata(rates[known])
    if one.std() == 0 or other.std() == 0:
        return float("nan")
    return float(np.corrcoef(one, other)[0, 1])


def _mean_interval(values: Float[Array, " n"], seed: int) -> tuple[float, float, float]:
    values = values[np.isfinite(values)]
    if not len(values):
        return (float("nan"),) * 3
    rng = np.random.default_rng(seed)
    means = values[rng.integers(len(values), size=(N_RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.percentile(means, INTERVAL)
    return float(values.mean()), float(low), float(high)


def _named(name: str, interval: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), interval, strict=True))
