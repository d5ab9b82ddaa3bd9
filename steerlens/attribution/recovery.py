"""What causal recovery gives: a curve over layers, and shares over settings and horizons."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from steerlens.errors import SteeringError
from steerlens.stats.support import caveat
from steerlens.views import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["RecoveryCurve", "ResponseRecovery"]

Array = np.ndarray


@dataclass(frozen=True, eq=False, repr=False)
class RecoveryCurve(Result):
    """First-token causal recovery over layers.

    Attributes:
        table: One row per layer: ``layer, recovery, low, high``; when a placebo was given,
            ``placebo, placebo_low, placebo_high``; when vectors of other tasks were given,
            ``other_task`` and ``specific`` (recovery − other_task), each with ``…_low`` and
            ``…_high``. Shares, no unit.
        best_layer: The layer with the highest recovery. It is there for programs that need one,
            also where no interval is above 0 and the highest may be noise; `caveat` tells.
        n_pairs: Pairs scored.
        metadata: Operation, strength, scope, vector.
    """

    table: pd.DataFrame
    best_layer: int
    n_pairs: int
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def caveat(self) -> str | None:
        """ "No layer's interval … is above 0"; ``None`` where one is."""
        return caveat("first_token_recovery", self.table["low"])

    def __repr__(self) -> str:
        row = self.table.set_index("layer").loc[self.best_layer]
        which = f"{self.caveat}; highest at layer" if self.caveat else "best layer"
        return (
            f"RecoveryCurve({which} {self.best_layer}: {row.recovery:.2f} "
            f"[{row.low:.2f}, {row.high:.2f}], {self.n_pairs} pairs)"
        )

    def plot(self) -> "go.Figure":
        """Recovery over layers beside the placebo; the best layer is marked where there is one."""
        from steerlens.views import recovery_curve

        return recovery_curve(self.table, None if self.caveat else self.best_layer)

    def _card(self) -> Mapping[str, Any]:
        return self._around_layer(self.best_layer)


@dataclass(frozen=True, eq=False, repr=False)
class ResponseRecovery(Result):
    """Causal recovery over settings and horizons.

    Attributes:
        table: One row per setting and horizon: ``layer, operation, strength, scope, horizon,
            recovery, low, high``, and the columns of controls as in `RecoveryCurve`. Horizons are
            tokens, the rest shares without unit. NaN where logits
            were no numbers (an absurd strength) or the instruction has no effect that early.
        best: The row of `table` with the highest recovery over the longest horizon; the first of
            equals.
        selection: For each layer the share of bootstrap resamples in which it holds that highest
            recovery: how sure `best_layer` is. Columns ``layer, frequency``.
        n_pairs: Pairs scored.
        samples: Recovery of each row of `table` in bootstrap resamples of base queries, the same
            resamples for all.
        metadata: Vectors, hashes, seed; ``kl_instructed_uninstructed``, the effect that could be
            recovered, in nats per pair by horizon; ``n_tokens``, the mean length of the responses.
    """

    table: pd.DataFrame
    best: Mapping[str, Any]
    selection: pd.DataFrame
    n_pairs: int
    samples: Float[Array, "row resample"]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def best_layer(self) -> int:
        """The layer of `best`, also where `caveat` says that none is supported."""
        return int(self.best["layer"])

    @property
    def caveat(self) -> str | None:
        """ "No layer's interval … is above 0" over the longest horizon; ``None`` where one is."""
        longest = int(self.table["horizon"].max())
        low = self.table.loc[self.table["horizon"] == longest, "low"]
        return caveat("recovery", low, f"recovery over {longest} tokens")

    def __repr__(self) -> str:
        best = self.best
        which = f"{self.caveat}; highest" if self.caveat else "best"
        return (
            f"ResponseRecovery({which}: layer {best['layer']}, {best['operation']} "
            f"×{best['strength']:g} on {best['scope']}, {best['horizon']} tokens: "
            f"{best['recovery']:.2f} [{best['low']:.2f}, {best['high']:.2f}], {self.n_pairs} pairs)"
        )

    def plot(self, horizon: int | None = None) -> "go.Figure":
        """Recovery over layers, in the operation, strength and scope of `best`.

        Args:
            horizon: Tokens; the longest by default.

        Raises:
            SteeringError: A horizon that was not measured.
        """
        from steerlens.views import recovery_curve

        known = sorted(set(self.table.horizon.tolist()))
        horizon = known[-1] if horizon is None else horizon
        if horizon not in known:
            raise SteeringError(f"horizon {horizon} was not measured; measured are {known}")
        same = self.table[self.table.horizon == horizon]
        for column in ("operation", "strength", "scope"):
            same = same[same[column] == self.best[column]]
        best = None if self.caveat else self.best_layer
        return recovery_curve(same.reset_index(drop=True), best)

    def _card(self) -> Mapping[str, Any]:
        longest = self.table[self.table["horizon"] == self.table["horizon"].max()]
        ranked = longest.sort_values("recovery", ascending=False, kind="stable")
        return {"facts": {"order": "highest recovery first"}, "table": ranked}
