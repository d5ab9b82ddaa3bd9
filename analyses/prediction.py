r"""Which evidence about layers predicts where steering works?

Behaviour is the judge: responses steered at every layer, each passing its instruction's check or
not. A kind of evidence, one number a layer, is measured by two things.

**Agreement**: Spearman's rank correlation over layers between the evidence and the rate of passes,
averaged over instructions.

**Regret**: the rate at the best layer less the rate at the layer with the most evidence, in shares
of prompts. The best layer is itself chosen from counts, and the highest of many noisy rates is too
high; so it is chosen on all prompts but one and read from that one, each prompt in turn:

.. math:: r_k = \frac1n \sum_i \big(p_i(l^*_{-i}) - p_i(l_k)\big),
   \quad l^*_{-i} = \arg\max_l \bar p_{-i}(l), \quad l_k = \arg\max_l e_k(l)

with the mean over layers where several are best. It is the loss against a layer found by behaviour
on :math:`n - 1` prompts, less than that against the best layer there is, by the same amount for
every kind: it can be negative, as evidence may find a better layer than so few prompts do. The
**difference** of two kinds' regrets does not have that amount in it.

Intervals are 95 % intervals over instructions, by Student's *t*: they speak about other
instructions of the same model, not about other models. An instruction that no layer steers (its
best layer gains less than `least_gain` over no steering) has nothing to predict and is left out;
which ones is part of the result. That is a threshold, not a test: where plain responses pass at
times, the best of many layers may gain so much by chance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from steerlens.errors import ActivationError
from steerlens.stats.queries import mean_interval

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["EvidenceComparison", "compare_evidence"]

Array = np.ndarray


@dataclass(frozen=True, eq=False, repr=False)
class EvidenceComparison:
    """How well kinds of evidence predict steerability.

    Attributes:
        table: One row a kind, the lowest regret first: ``kind, n_instructions, spearman,
            spearman_low, spearman_high, regret, regret_low, regret_high``; regret in shares of
            prompts.
        by_instruction: One row per steerable task and kind: ``instruction, kind, layer, rate,
            best_layer, best_rate, oracle, unsteered, spearman, regret``. ``best_rate`` is the
            highest of many and flattered by the choice; ``regret`` is not. ``oracle`` is the rate
            if every prompt were steered at the layer that is best for it.
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
        import plotly.graph_objects as go

        from steerlens.views import Picture
        from steerlens.views.picture import themed

        centre, low, high = (
            100 * self.table[column] for column in ("regret", "regret_low", "regret_high")
        )
        figure = Picture(
            go.Scatter(
                x=centre,
                y=self.table["kind"].str.replace("_", " "),
                mode="markers",
                marker={"size": 9},
                error_x={"array": high - centre, "arrayminus": centre - low},
                hovertemplate="%{y}: %{x:.1f} points<extra></extra>",
            )
        )
        figure.add_vline(0, line={"color": "grey", "width": 1})
        figure.update_xaxes(title="regret, points of passes, 95 % interval (left is better)")
        figure.update_yaxes(autorange="reversed", showgrid=False)
        return themed(figure, height=110 + 26 * len(self.table), showlegend=False)

    def _repr_html_(self) -> str:
        from steerlens.views import summary

        return summary(repr(self), table=self.table)

    def difference(self, kind: str, minus: str, times: float = 1.0) -> tuple[float, float, float]:
        """Mean regret of one kind less that of another on the same instructions, with interval.

        Args:
            kind: The one.
            minus: The other.
            times: How often the other's regret is subtracted; with ½ the question is whether the
                one loses at most half as much.
        """
        wide = self.by_instruction.pivot(index="instruction", columns="kind", values="regret")
        return _mean_interval((wide[kind] - times * wide[minus]).to_numpy())


def compare_evidence(
    evidence: Mapping[str, pd.DataFrame],
    passed: Mapping[str, Bool[Array, "layer prompt"]],
    unsteered: Mapping[str, Bool[Array, " prompt"]],
    layers: Sequence[int],
    kinds: Sequence[str],
    least_gain: float = 0.125,
    ties: Mapping[str, str] | None = None,
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
        ties: For a kind, the column that decides among layers where it is highest; without, and
            where that is equal too, the first of them is taken.

    Raises:
        ActivationError: Instructions, layers or kinds that do not fit together, fewer than 2
            prompts, or no instruction that any layer steers.
    """
    if set(evidence) != set(passed) or set(passed) != set(unsteered):
        raise ActivationError("evidence and behaviour must be of the same instructions")
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
        best_elsewhere = _best_without_each(counts)
        for kind in kinds:
            values = _values(evidence[name], kind, layers, name)
            deciding = (ties or {}).get(kind)
            second = values if deciding is None else _values(evidence[name], deciding, layers, name)
            chosen = _highest(values, second)
            rows.append(
                {
                    "instruction": name,
                    "kind": kind,
                    "layer": layers[chosen],
                    "rate": rates[chosen],
                    "best_layer": layers[best],
                    "best_rate": rates[best],
                    "oracle": counts.max(axis=0).mean(),
                    "unsteered": plain,
                    "spearman": _spearman(values, rates),
                    "regret": float((best_elsewhere - counts[chosen]).mean()),
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
        | _named("spearman", _mean_interval(own.spearman.to_numpy()))
        | _named("regret", _mean_interval(own.regret.to_numpy()))
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


def _highest(values: Float[Array, " layer"], second: Float[Array, " layer"]) -> int:
    """Place of the highest value; among equals, of the highest second one."""
    tied = np.flatnonzero(values == np.nanmax(values))
    among = np.where(np.isfinite(second[tied]), second[tied], -np.inf)
    return int(tied[among.argmax()])


def _best_without_each(counts: Float[Array, "layer prompt"]) -> Float[Array, " prompt"]:
    """What each prompt gives at the layer that is best on all others; mean over equals."""
    others = counts.sum(axis=1, keepdims=True) - counts
    best = others == others.max(axis=0)
    passed: Array = (counts * best).sum(axis=0) / best.sum(axis=0)
    return passed


def _spearman(values: Float[Array, " layer"], rates: Float[Array, " layer"]) -> float:
    known = np.isfinite(values)
    one, other = rankdata(values[known]), rankdata(rates[known])
    if one.std() == 0 or other.std() == 0:
        return float("nan")
    return float(np.corrcoef(one, other)[0, 1])


def _mean_interval(values: Float[Array, " n"]) -> tuple[float, float, float]:
    values = values[np.isfinite(values)]
    if not len(values):
        return (float("nan"),) * 3
    if len(values) == 1:
        return (float(values[0]), float("nan"), float("nan"))
    mean, low, high = mean_interval(values[:, None], range(len(values)))
    return float(mean[0]), float(low[0]), float(high[0])


def _named(name: str, interval: tuple[float, float, float]) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), interval, strict=True))
