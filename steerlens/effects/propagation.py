r"""How an intervention propagates: what of it is left at every later layer.

Over one text let :math:`x_{lt}` be the baseline's residual at layer *l* and token *t*,
:math:`\tilde x_{lt}` the steered one (after the interventions of that layer). An intervention along
the unit direction *u* at layer :math:`l_0` has moved the projection at a layer by
:math:`\delta_{lt} = u \cdot (\tilde x_{lt} - x_{lt})`, and the **share that survives** there is

.. math:: s_{lt} = \delta_{lt} / \delta_{l_0 t}

1 where it starts. Later blocks may erase it (towards 0), keep it, amplify it (above 1) or answer
against it (below 0). It is undefined (NaN) below :math:`l_0`, and at tokens the intervention did
not move there. The **shift**
:math:`\|\tilde x_{lt} - x_{lt}\|` is everything that changed, along *u* or not, and the **change of
norm** :math:`\|\tilde x_{lt}\| - \|x_{lt}\|` says how far the stream has left its usual length.

Caveat: *u* is the direction of layer :math:`l_0`. What it stands for may lie along another
direction later; a share near 0 does not say that its effect is gone (the shift does).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from steerlens.steering.interventions import Steering
from steerlens.views import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Propagation", "PropagationRecorder"]

_SHARES = ("survival", "survival_low", "survival_high")
# A projection moved by less than this share of the residual's norm was not moved: rounding.
_MOVED = 1e-5


@dataclass(frozen=True, eq=False, repr=False)
class Propagation(Result):
    """What is left of interventions over layers × positions, in residual-stream units.

    Attributes:
        layers: The layers recorded, ascending.
        starts: The layer of each intervention.
        projection_change: Change of the projection on each intervention's direction.
        shift: Norm of the whole change.
        norm_baseline: Norm of the baseline's residual.
        norm_steered: Norm of the steered one.
        survival: Share of the projection's change at its own layer that is left.
    """

    layers: tuple[int, ...]
    starts: tuple[int, ...]
    projection_change: Float[Tensor, "intervention layer pos"]
    shift: Float[Tensor, "layer pos"]
    norm_baseline: Float[Tensor, "layer pos"]
    norm_steered: Float[Tensor, "layer pos"]
    survival: Float[Tensor, "intervention layer pos"]

    @property
    def norm_change(self) -> Float[Tensor, "layer pos"]:
        """Norm of the steered residual minus that of the baseline's."""
        return self.norm_steered - self.norm_baseline

    @property
    def table(self) -> pd.DataFrame:
        """One row per intervention and layer from its own on, over the tokens it moved.

        ``survival`` is the median share, ``survival_low`` and ``survival_high`` the 10th and 90th
        percentile over tokens; ``projection_change``, ``shift``, ``norm_change`` are means, and
        ``relative_shift`` is the mean shift in units of the mean baseline norm.
        """
        rows = []
        for number, start in enumerate(self.starts):
            moved = torch.isfinite(self.survival[number]).any(0)
            for place, layer in enumerate(self.layers):
                if layer < start:
                    continue
                share = self.survival[number, place, moved].numpy()
                ends = np.quantile(share, (0.5, 0.1, 0.9)) if share.size else np.full(3, np.nan)
                shift = float(self.shift[place, moved].mean())
                change = self.projection_change[number, place, moved]
                rows.append(
                    {
                        "intervention": number,
                        "layer": layer,
                        **dict(zip(_SHARES, ends.tolist(), strict=True)),
                        "projection_change": float(change.mean()),
                        "shift": shift,
                        "relative_shift": shift / float(self.norm_baseline[place, moved].mean()),
                        "norm_change": float(self.norm_change[place, moved].mean()),
                        "n_tokens": int(moved.sum()),
                    }
                )
        return pd.DataFrame(rows)

    def plot(self, names: dict[int, str] | None = None) -> "go.Figure":
        """The share that survives over layers, median and 10th to 90th percentile over tokens.

        Args:
            names: Of the interventions, for the legend.
        """
        from steerlens.views import survival_curve

        title = "Share of the intervention left at later layers"
        return survival_curve(self.table, names, title=title)

    def _card(self) -> dict[str, Any]:
        # Of several interventions what is left of each at the end; of one how it gets there.
        return (
            {} if len(self.starts) == 1 else {"table": self.table.groupby("intervention").tail(1)}
        )

    def __repr__(self) -> str:
        last = self.table.groupby("intervention").tail(1)
        shares = ", ".join(f"{share:.2f}" for share in last.survival)
        return (
            f"Propagation({len(self.layers)} layers {self.layers[0]}–{self.layers[-1]}, "
            f"{self.shift.shape[1]} tokens, median share left at layer {self.layers[-1]}: {shares})"
        )


class PropagationRecorder:
    """Fills a `Propagation` while the steered pass runs; residuals are not kept.

    Args:
        steering: What is applied.
        layers: Layers that will be observed; those of the interventions must be among them.
        n_tokens: Length of the text.
    """

    def __init__(self, steering: Steering, layers: Sequence[int], n_tokens: int) -> None:
        self.layers = tuple(sorted(set(layers)))
        self.starts = tuple(part.layer for part in steering.interventions)
        self.directions = torch.stack([part.unit.float() for part in steering.interventions])
        n_layers, n_interventions = len(self.layers), len(self.starts)
        zeros = partial(torch.zeros, dtype=torch.float32)  # whatever torch's default is
        self.change = zeros(n_interventions, n_layers, n_tokens)
        self.shift, self.norm_baseline, self.norm_steered = zeros(3, n_layers, n_tokens)
        # Projections at the interventions' own layers, as `TokenEffects` shows them.
        self.baseline, self.before, self.after = zeros(3, n_interventions, n_tokens)

    def observe(
        self,
        layer: int,
        baseline: Float[Tensor, "pos d_model"],
        before: Float[Tensor, "pos d_model"],
        after: Float[Tensor, "pos d_model"],
    ) -> None:
        """Called by `steerlens.effects.streams.both_streams` at each layer."""
        place = self.layers.index(layer)
        self.directions = self.directions.to(after.device)
        unsteered, steered = baseline.float(), after.float()
        difference = steered - unsteered
        self.change[:, place] = self._project(difference).cpu()
        self.shift[place] = difference.norm(dim=-1).cpu()
        self.norm_baseline[place] = unsteered.norm(dim=-1).cpu()
        self.norm_steered[place] = steered.norm(dim=-1).cpu()
        here = [number for number, start in enumerate(self.starts) if start == layer]
        if here:
            self.baseline[here] = self._project(unsteered)[here].cpu()
            self.before[here] = self._project(before.float())[here].cpu()
            self.after[here] = self._project(steered)[here].cpu()

    def _project(self, resid: Float[Tensor, "pos d_model"]) -> Float[Tensor, "intervention pos"]:
        return einsum(self.directions, resid, "intervention d, pos d -> intervention pos")

    def propagation(self) -> Propagation:
        """What was recorded."""
        places = [self.layers.index(start) for start in self.starts]
        first = self.change[torch.arange(len(places)), places]
        is_moved = first.abs() > _MOVED * self.norm_baseline[places]
        survival = self.change / torch.where(is_moved, first, torch.nan)[:, None]
        below = torch.tensor(self.layers)[None] < torch.tensor(self.starts)[:, None]
        return Propagation(
            layers=self.layers,
            starts=self.starts,
            projection_change=self.change,
            shift=self.shift,
            norm_baseline=self.norm_baseline,
            norm_steered=self.norm_steered,
            survival=survival.masked_fill(below[..., None], torch.nan),
        )
