r"""`LayerRanking`: all evidence about layers side by side, and how far the kinds agree.

There is one row per layer, and for each **kind** of evidence a column with its 95 % interval in the
columns ``…_low`` and ``…_high``. `steerlens.attribution.rank_layers` makes the columns that need
only activations; `LayerRanking.with_evidence` joins kinds that need the model (causal recovery,
components), and `LayerRanking.best_by` chooses the layer by another kind.

`LayerRanking.agreement` is Spearman's rank correlation of two kinds over layers. Neighbouring
layers are alike, so its interval is a moving-block bootstrap over layers (Künsch 1989, Annals of
Statistics 17:1217–1241) with blocks of :math:`\lfloor L^{1/3} \rceil` of *L* layers. Measurement
noise in either kind pulls the correlation towards 0.

>>> table = pd.DataFrame({"layer": range(6), "auroc": [0.5, 0.6, 0.7, 0.9, 0.8, 0.8]})
>>> ranking = LayerRanking(table, 3, "highest AUROC", {}, n_pairs=8, kinds=("auroc",))
>>> recovery = pd.DataFrame({"layer": [0, 2, 4, 5], "recovery": [0.0, 0.2, 0.9, 0.8],
...                          "low": [-0.1, 0.1, 0.7, 0.6], "high": [0.1, 0.3, 1.0, 0.9]})
>>> both = ranking.with_evidence("recovery", recovery)
>>> both.best_by("recovery").best_layer, both.kinds
(4, ('auroc', 'recovery'))
>>> both.agreement().round(2)[["one", "other", "spearman", "n_layers"]].values.tolist()
[['auroc', 'recovery', 0.95, 4]]
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import rankdata, spearmanr

from steerlens.errors import ActivationError, SteerlensError, unknown_name
from steerlens.stats.queries import PERCENTILES
from steerlens.stats.support import caveat
from steerlens.views import Result
from steerlens.views.numbers import show_interval

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["LayerRanking"]

Array = np.ndarray
_FEWEST_LAYERS = 4
_ENDS = ("_low", "_high")
# Columns that a view shows beside the kinds of evidence, where the table has them.
_ALSO_SHOWN = ("d_prime", "split_half_cosine", "relative_gap", "selection_frequency")


@dataclass(frozen=True, eq=False, repr=False)
class LayerRanking(Result):
    """Layers with the evidence about them.

    Attributes:
        table: One row per layer. From separability: ``layer``; ``auroc, d_prime, d_prime_held_out,
            accuracy, split_half_cosine``, each with ``…_low`` and ``…_high``; ``gap,
            relative_gap, selection_frequency``. ``d_prime`` is that of the layer's true direction,
            ``d_prime_held_out`` that of directions fitted on these pairs. ``gap`` is in
            residual-stream units, ``relative_gap`` in units of the mean residual norm. Further
            kinds add columns; see `rank_layers`.
        best_layer: The layer chosen by `rule`, even where no layer's interval lies above chance;
            `caveat` tells.
        rule: How it was chosen, in words.
        selection_frequency: For each layer, the share of resamples of base queries that choose it
            by `rule`; empty when it was not resampled. Of separability the directions are fitted
            again in each; of recovery the held-out queries are drawn, and the vector stays.
        n_pairs: Pairs used.
        metadata: Provenance of the activations, with seed, folds and resamples.
        kinds: Columns of the table that are kinds of evidence, in the order they were joined.
        p_value: Chance of the best AUROC without any instruction; None when not tested.
        samples: Resamples of some kinds, over the same draws; what `best_by` recounts.
        chosen_by: The column that `rule` looks at.
    """

    table: pd.DataFrame
    best_layer: int
    rule: str
    selection_frequency: Mapping[int, float]
    n_pairs: int
    metadata: Mapping[str, Any] = field(default_factory=dict)
    kinds: tuple[str, ...] = ()
    p_value: float | None = None
    samples: Mapping[str, Float[Array, "layer resample"]] = field(default_factory=dict)
    chosen_by: str = "auroc"

    @property
    def caveat(self) -> str | None:
        """ "No layer's interval … is above …"; ``None`` where one is, or no interval is known."""
        low = self.table.get(f"{self.chosen_by}_low")
        return None if low is None else caveat(self.chosen_by, low)

    def with_evidence(
        self,
        name: str,
        frame: pd.DataFrame,
        value: str | None = None,
        low: str = "low",
        high: str = "high",
        samples: Float[Array, "layer resample"] | None = None,
    ) -> "LayerRanking":
        """This ranking with one more kind of evidence.

        Args:
            name: Name of the new column; its interval goes to ``name_low`` and ``name_high``.
            frame: One row per layer with ``layer``, the value and, if known, its interval; layers
                it lacks stay empty.
            value: Column of the value; `name` by default.
            low: Column of the lower end; left out of the table when the frame has none.
            high: Column of the upper end.
            samples: Resampled values, one row for each row of `frame`, for `best_by`.

        Raises:
            ActivationError: The frame lacks a column, names a layer twice or one this ranking
                does not have, the name is taken, or samples do not fit the frame.
        """
        value = name if value is None else value
        for column in ("layer", value):
            if column not in frame:
                raise ActivationError(
                    f"the evidence {name!r} lacks a column {column!r}; it has "
                    + ", ".join(map(str, frame.columns))
                )
        columns = {name: value, f"{name}_low": low, f"{name}_high": high}
        columns = {new: old for new, old in columns.items() if old in frame}
        taken = [new for new in columns if new in self.table]
        if taken:
            raise ActivationError(f"this ranking already has a column {taken[0]!r}; rename one")
        layers = frame["layer"].tolist()
        unknown = sorted(set(layers) - set(self.table["layer"]))
        if unknown or len(set(layers)) < len(layers):
            fault = f"has layer {unknown[0]}, which is not ranked" if unknown else "repeats a layer"
            raise ActivationError(f"the evidence {name!r} {fault}; give one row a ranked layer")
        if samples is not None and len(samples) != len(layers):
            raise ActivationError(
                f"{len(samples)} rows of samples do not fit the {len(layers)} layers of {name!r}"
            )
        ranked = self.table["layer"]
        by_layer = frame.set_index("layer").reindex(ranked)
        resampled = dict(self.samples)
        if samples is not None:
            resampled[name] = pd.DataFrame(samples, index=layers).reindex(ranked).to_numpy()
        return replace(
            self,
            table=self.table.assign(
                **{new: by_layer[old].to_numpy() for new, old in columns.items()}
            ),
            kinds=(*self.kinds, name),
            samples=resampled,
        )

    def with_columns(self, frame: pd.DataFrame, p_value: float | None = None) -> "LayerRanking":
        """This ranking with columns that describe layers but do not rank them.

        Args:
            frame: One row per layer with ``layer`` and the columns to add.
            p_value: Result of a test of all layers, if the columns come with one.

        Raises:
            ActivationError: The frame has other layers, or a column that is taken.
        """
        if sorted(frame["layer"]) != sorted(self.table["layer"]):
            raise ActivationError("the columns to add must have one row for each ranked layer")
        taken = sorted((set(frame.columns) & set(self.table.columns)) - {"layer"})
        if taken:
            raise ActivationError(f"this ranking already has a column {taken[0]!r}; rename one")
        return replace(
            self,
            table=self.table.merge(frame, on="layer", how="left"),
            p_value=self.p_value if p_value is None else p_value,
        )

    def best_by(self, kind: str) -> "LayerRanking":
        """This ranking with its layer chosen by the highest value of another kind.

        The selection frequency is counted again where the kind came with samples, else empty.

        Raises:
            UnknownNameError: There is no such kind.
            ActivationError: It has no value at any layer.
        """
        values = self._values(kind)
        if not np.isfinite(values).any():
            raise ActivationError(f"{kind!r} has no value at any layer, so it chooses none")
        layers = self.table["layer"].tolist()
        frequency: dict[int, float] = {}
        if kind in self.samples:
            draws = np.where(np.isnan(self.samples[kind]), -np.inf, self.samples[kind])
            counts = np.bincount(draws.argmax(axis=0), minlength=len(layers))
            frequency = dict(zip(layers, (counts / draws.shape[1]).tolist(), strict=True))
        table = self.table.assign(
            selection_frequency=[frequency.get(layer, np.nan) for layer in layers]
        )
        return replace(
            self,
            table=table,
            best_layer=layers[int(np.nanargmax(values))],
            rule=f"highest {kind}",
            selection_frequency=frequency,
            chosen_by=kind,
        )

    def agreement(
        self, kinds: Sequence[str] | None = None, seed: int = 0, n_resamples: int = 1000
    ) -> pd.DataFrame:
        """Spearman's rank correlation over layers of each two kinds, with its 95 % interval.

        Args:
            kinds: Kinds to compare; all by default.
            seed: Seed of the resamples.
            n_resamples: Resamples of blocks of layers.

        Returns:
            One row for each two kinds: ``one, other, spearman, low, high, n_layers``; only layers
            that have both count. NaN where a kind is the same at all of them.

        Raises:
            UnknownNameError: There is no such kind.
            ActivationError: Two kinds share fewer than 4 layers.
        """
        names = self.kinds if kinds is None else tuple(kinds)
        if len(names) < 2 or n_resamples < 1 or seed < 0:
            raise SteerlensError(
                "agreement needs at least two kinds of evidence, one resample and a seed of at "
                f"least 0; got {len(names)} kinds, {n_resamples} resamples, seed {seed}"
            )
        rows = []
        for one, other in combinations(names, 2):
            values = np.stack([self._values(one), self._values(other)])
            values = values[:, ~np.isnan(values).any(axis=0)]
            n_layers = values.shape[1]
            if n_layers < _FEWEST_LAYERS:
                raise ActivationError(
                    f"{one!r} and {other!r} share {n_layers} layers; their agreement needs at "
                    f"least {_FEWEST_LAYERS}; other kinds can be compared with kinds=…"
                )
            low, high = _spearman_interval(values, seed, n_resamples)
            constant = (np.ptp(values, axis=1) == 0).any()
            spearman = np.nan if constant else float(spearmanr(*values).statistic)
            rows.append((one, other, spearman, low, high, n_layers))
        return pd.DataFrame(rows, columns=["one", "other", "spearman", "low", "high", "n_layers"])

    def to_json(self) -> dict[str, Any]:
        """Plain data: what ``steerlens rank --json`` prints."""
        return {
            "model": self.metadata.get("model"),
            "instruction": self.metadata.get("instruction"),
            "n_pairs": self.n_pairs,
            "position": self.metadata.get("position"),
            "kinds": list(self.kinds),
            "p_value": self.p_value,
            "layers": self.table.to_dict("records"),
            "best_layer": self.best_layer,
            "best_layer_rule": self.rule,
            "best_layer_caveat": self.caveat,
            "metadata": dict(self.metadata),
        }

    def _values(self, kind: str) -> Float[Array, "layer"]:
        if kind not in self.kinds:
            raise unknown_name("kind of evidence", kind, self.kinds)
        return self.table[kind].to_numpy(dtype=np.float64)

    def __repr__(self) -> str:
        row = self.table.set_index("layer").loc[self.best_layer]
        which = f"{self.caveat}; highest is layer" if self.caveat else "best layer"
        parts = [f"{which} {self.best_layer} of {len(self.table)} by {self.rule}"]
        if "auroc" in row and "auroc_low" in row:
            parts.append(f"AUROC {row.auroc:.3f} [{row.auroc_low:.3f}, {row.auroc_high:.3f}]")
        if self.selection_frequency:
            share = self.selection_frequency[self.best_layer]
            parts.append(f"chosen in {share:.0%} of resamples")
        if self.p_value is not None:
            parts.append(f"p {self.p_value:.3g} that no layer separates")
        return f"LayerRanking({', '.join(parts)}, {self.n_pairs} pairs)"

    @property
    def notices(self) -> tuple[str, ...]:
        """What about the pairs may mislead, a sentence each; see `steerlens.tasks.notices`."""
        return tuple(self.metadata.get("notices", ()))

    def plot(self) -> "go.Figure":
        """Every kind of evidence over layers with its interval; a supported layer is marked."""
        from steerlens.views import evidence_curves

        kinds = [kind for kind in self.kinds if kind in self.table]
        best = None if self.caveat else self.best_layer
        return evidence_curves(self.table, kinds or ["auroc"], best)

    def _card(self) -> Mapping[str, Any]:
        beware = {"beware": "; ".join(self.notices)} if self.notices else None
        table = self._with_intervals()
        return {"facts": beware, "table": table, **self._around_layer(self.best_layer)}

    def _with_intervals(self) -> pd.DataFrame:
        """For a view: one column per kind, its interval beside its value."""
        known = [name for name in (*self.kinds, *_ALSO_SHOWN) if name in self.table]
        columns = {"layer": self.table["layer"].tolist()}
        for name in dict.fromkeys(known or ["auroc"]):
            ends = (self.table.get(f"{name}{end}", [None] * len(self.table)) for end in _ENDS)
            columns[name] = list(map(show_interval, self.table[name], *ends))
        return pd.DataFrame(columns)


def _spearman_interval(
    values: Float[Array, "kind layer"], seed: int, n_resamples: int
) -> tuple[float, float]:
    """Percentile interval over resamples of blocks of neighbouring layers."""
    n_layers = values.shape[1]
    length = max(1, round(n_layers ** (1 / 3)))
    n_blocks = -(-n_layers // length)
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, n_layers - length + 1, size=(n_resamples, n_blocks, 1))
    drawn = (starts + np.arange(length)).reshape(n_resamples, -1)[:, :n_layers]
    ranks = rankdata(values[:, drawn], axis=-1)
    centred = ranks - ranks.mean(axis=-1, keepdims=True)
    norms = np.sqrt((centred**2).sum(axis=-1).prod(axis=0))
    correlation = (centred[0] * centred[1]).sum(axis=-1)
    known = norms > 0
    if not known.any():
        return (np.nan, np.nan)
    low, high = np.percentile(correlation[known] / norms[known], PERCENTILES)
    return float(low), float(high)
