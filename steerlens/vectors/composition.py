r"""Composition: several steerings at once, looked at before anything is run.

`compose_report` takes interventions in order of application and computes, from their directions,
gaps, targets and baselines alone:

* **cosines** :math:`u_i \cdot u_j`;
* **shared energy**: the share of :math:`\|u_i\|^2` in the span of the other directions;
* **expected** projection on each direction after all are applied, and how far it **misses** the
  projection it would have alone, in gaps. Projections start at the baselines, and intervention *k*
  moves all of them, :math:`p_j \leftarrow p_j + (a_k + \beta_k\, p_k)\, u_k \cdot u_j`, with the
  coefficients of `steerlens.steering.operations`. Interventions meet only on tokens that both
  scopes touch; where prompt and response differ, the larger miss counts;
* **order spread**: how far the expected projection varies over the orders of interventions at one
  layer, in gaps;
* **jointly missed**: the miss when `joint_projection` is used instead.

**Joint projection.** One after another, only the last ``set_projection`` holds. The smallest change
that meets all targets is

.. math:: x \leftarrow x + U (U^\top U)^{-1} (z - U^\top x), \qquad U = [u_1 \dots u_k]

With :math:`U = Q \Sigma V^\top` it is :math:`x + Q\,(\Sigma^{-1} V^\top z - Q^\top x)`: an ordinary
``set_projection`` along each of the *orthonormal* columns of *Q*, with targets
:math:`\Sigma^{-1} V^\top z`, in any order and at any common strength. Singular values below a
cutoff (a share of the largest) are left out: conflicting targets of dependent directions are met in
the sense of least squares.

Caveat: what the blocks between two layers make of a change is not known before running, and a
projection is not behaviour.

>>> def towards(*u):
...     options = {"gap": 1.0, "target": 1.0, "baseline": 0.0, "operation": "set_projection"}
...     return Steering((Intervention(3, torch.tensor(u), **options),))
>>> both = [towards(1.0, 0.0), towards(0.6, 0.8)]
>>> report = compose_report(both)
>>> report.table[["missed", "jointly_missed"]].abs().round(2).values.tolist()
[[0.24, 0.0], [0.0, 0.0]]
>>> len(joint_projection(both).interventions)
2
"""

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from steerlens.errors import SteeringError
from steerlens.errors.arguments import arguments
from steerlens.steering.interventions import Steering
from steerlens.steering.operations import Intervention, Role
from steerlens.views.result import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Composition", "compose_report", "joint_projection"]

Array = np.ndarray
# Two directions are 1.1° apart where the smaller singular value is this share of the larger.
CUTOFF = 0.01
# All orders of five interventions; of more, this many at random.
_MOST_ORDERS = 120


@dataclass(frozen=True, eq=False, repr=False)
class Composition(Result):
    """What to expect of several interventions together; the module defines each number.

    Attributes:
        table: One row per intervention, in order of application: ``intervention, layer, operation,
            strength, scope, alone, expected, missed, order_spread, jointly_missed,
            shared_energy``. ``alone`` and ``expected`` are projections (residual-stream units);
            ``missed``, ``order_spread`` and ``jointly_missed`` are in gaps. NaN where baselines are
            unknown, or no joint projection exists.
        cosines: Of the directions, named by label and layer.
        push: Length of the expected change of the mean uninstructed residual at each layer
            (residual-stream units).
        joint_push: The same for the joint projection; NaN where there is none.
    """

    table: pd.DataFrame
    cosines: pd.DataFrame
    push: pd.Series
    joint_push: pd.Series

    @property
    def order_matters(self) -> bool:
        """Whether some order moves a projection by more than a hundredth of its gap."""
        return bool((self.table.order_spread > 0.01).any())

    def __repr__(self) -> str:
        off_diagonal = self.cosines.to_numpy()[~np.eye(len(self.cosines), dtype=bool)]
        largest = off_diagonal[np.abs(off_diagonal).argmax()] if len(off_diagonal) else 0.0
        jointly = self.table.jointly_missed.abs().max()
        joint = "no joint projection" if math.isnan(jointly) else f"jointly {jointly:.2g}"
        return (
            f"Composition({len(self.table)} interventions, largest cosine {largest:.2f}, misses up "
            f"to {self.table.missed.abs().max():.2g} gaps ({joint}), order "
            f"{'matters' if self.order_matters else 'does not matter'})"
        )

    def plot(self) -> "go.Figure":
        """Cosines of the directions."""
        from steerlens.views import cosine_matrix

        return cosine_matrix(
            list(map(str, self.cosines)), np.clip(self.cosines.to_numpy(), -1, 1).tolist()
        )


@arguments
def compose_report(
    steerings: Steering | Sequence[Steering], cutoff: float = CUTOFF, seed: int = 0
) -> Composition:
    """What to expect of steerings applied one after another; nothing is run.

    Args:
        steerings: In order of application; in a forward pass lower layers come first anyway.
        cutoff: Of the joint projection; see `joint_projection`.
        seed: Draws the orders to try when there are more than five interventions.

    Raises:
        SteeringError: No intervention, or directions of different widths.
    """
    interventions = sorted(_interventions(steerings), key=lambda each: each.layer)
    directions = _Directions(interventions)
    alone = np.array(
        [p + each.amount(p) for each, p in zip(interventions, directions.start, strict=True)]
    )
    gaps = np.array([each.gap if each.gap > 0 else math.nan for each in interventions])
    expected, push = directions.after(interventions)
    orders = np.stack([directions.after(order)[0] for order in _orders(interventions, seed)])
    joint = [] if _why_not_joint(interventions) else _joint(interventions, cutoff)
    jointly, joint_push = _Directions([*interventions, *joint]).after(joint)
    if not joint:
        jointly, joint_push = np.full_like(expected, math.nan), {}
    names = [f"{each.label} @{each.layer}" for each in interventions]
    settings = ("layer", "operation", "strength", "scope")
    table = pd.DataFrame(
        {
            "intervention": [each.label for each in interventions],
            **{name: [getattr(each, name) for each in interventions] for name in settings},
            "alone": alone,
            "expected": _farthest(expected, alone),
            "missed": (_farthest(expected, alone) - alone) / gaps,
            # In the role, prompt or response, where it is larger.
            "order_spread": np.fmax(*np.ptp(orders, axis=0)) / gaps,
            "jointly_missed": (_farthest(jointly[:, : len(names)], alone) - alone) / gaps,
            "shared_energy": _shared_energy(directions.units),
        }
    )
    return Composition(
        table=table,
        cosines=pd.DataFrame(directions.gram, index=names, columns=names),
        push=pd.Series(push, name="push", dtype=float).rename_axis("layer"),
        joint_push=pd.Series(joint_push, name="push", dtype=float).rename_axis("layer"),
    )


@arguments
def joint_projection(
    steerings: Steering | Sequence[Steering],
    strengths: Sequence[float] | None = None,
    cutoff: float = CUTOFF,
) -> Steering:
    """``set_projection`` on several directions at once, so that all targets hold.

    At each layer the interventions are replaced by as many along orthonormal directions, at their
    common strength. `Steering.scaled` moves all projections by the same share of their way.

    Args:
        steerings: ``set_projection`` interventions, at each layer of one scope and strength.
        strengths: One number per intervention, to balance them: the target of the *i*-th becomes
            ``baseline + strengths[i] · (target − baseline)``.
        cutoff: Singular values below this share of a layer's largest are left out.

    Raises:
        SteeringError: Another operation, different scopes or strengths at a layer, the wrong number
            of strengths, a target to scale whose baseline is unknown, or a cutoff outside [0, 1).
    """
    interventions = _interventions(steerings)
    obstacle = _why_not_joint(interventions)
    if obstacle:
        raise SteeringError(f"no joint projection: {obstacle}")
    if not 0 <= cutoff < 1:
        raise SteeringError(f"cutoff must be at least 0 and below 1; got {cutoff}")
    if strengths is not None:
        if len(strengths) != len(interventions):
            raise SteeringError(
                f"one strength per intervention is needed; got {len(strengths)} for "
                f"{len(interventions)}"
            )
        interventions = list(map(_rescaled, interventions, strengths))
    return Steering(tuple(_joint(interventions, cutoff)))


def _interventions(steerings: Steering | Sequence[Steering]) -> list[Intervention]:
    several = [steerings] if isinstance(steerings, Steering) else list(steerings)
    interventions = [each for steering in several for each in steering.interventions]
    if not interventions:
        raise SteeringError("there is nothing to compose: no steering holds an intervention")
    for name, values in (
        ("widths", {each.unit.shape[0] for each in interventions}),
        ("model depths", {each.n_layers for each in interventions} - {None}),
    ):
        if len(values) > 1:
            raise SteeringError(
                f"interventions of different {name} do not compose: {sorted(values, key=str)}"
            )
    return interventions


class _Directions:
    """Directions with their cosines, and the projections of a mean uninstructed residual."""

    def __init__(self, interventions: Sequence[Intervention]) -> None:
        self.interventions = interventions
        units = torch.stack([each.unit.detach().double().cpu() for each in interventions])
        self.units = (units / units.norm(dim=-1, keepdim=True)).numpy()
        self.gram: Array = self.units @ self.units.T
        self.layers = np.array([each.layer for each in interventions])
        baselines = [each.baseline for each in interventions]
        self.start = np.array([math.nan if b is None else b for b in baselines])

    def after(
        self, applied: Sequence[Intervention]
    ) -> tuple[Float[Array, "role direction"], dict[int, float]]:
        """Expected projections on all directions once some were applied, in order.

        Returns:
            One row for tokens of the prompt and one for those of the response (NaN where a
            direction's own scope leaves them alone), and the length of the change at each layer.
        """
        row_of = {id(each): i for i, each in enumerate(self.interventions)}
        projections = np.tile(self.start, (2, 1))
        push: dict[int, float] = {}
        for row, role in enumerate(get_args(Role)):
            change: dict[int, Array] = {}
            for each in applied:
                if not each.touches(role):
                    continue
                k = row_of[id(each)]
                amount = each.amount(projections[row, k])
                # A change at a layer is there at the layers above, and not below.
                projections[row] += amount * self.gram[k] * (self.layers >= each.layer)
                change[each.layer] = change.get(each.layer, 0.0) + amount * self.units[k]
            for layer, moved in change.items():
                push[layer] = max(push.get(layer, 0.0), float(np.linalg.norm(moved)))
            projections[row, [not each.touches(role) for each in self.interventions]] = math.nan
        return projections, push


def _farthest(
    projections: Float[Array, "role direction"], alone: Float[Array, "direction"]
) -> Float[Array, "direction"]:
    """Of prompt and response, the projection that is farther from what it would be alone."""
    distance = np.nan_to_num(np.abs(projections - alone), nan=-1.0)
    farthest: Array = np.take_along_axis(projections, distance.argmax(0)[None], axis=0)[0]
    return farthest


def _orders(interventions: Sequence[Intervention], seed: int) -> list[list[Intervention]]:
    """Orders to apply interventions in; those of different layers have only one."""
    if math.factorial(len(interventions)) <= _MOST_ORDERS:
        orders = [list(order) for order in itertools.permutations(interventions)]
    else:
        rng = random.Random(seed)
        orders = [rng.sample(interventions, len(interventions)) for _ in range(_MOST_ORDERS)]
        orders.append(list(interventions))
    return [sorted(order, key=lambda each: each.layer) for order in orders]


def _shared_energy(units: Float[Array, "direction d_model"]) -> list[float]:
    """For each unit vector, the squared length of its part in the span of the others."""
    shared = []
    for i, unit in enumerate(units):
        others = np.delete(units, i, axis=0).T
        inside = others @ np.linalg.lstsq(others, unit, rcond=None)[0] if others.size else 0 * unit
        shared.append(float(inside @ inside))
    return shared


def _why_not_joint(interventions: Sequence[Intervention]) -> str | None:
    """Why these interventions have no joint projection; ``None`` when they have one."""
    for each in interventions:
        if each.operation != "set_projection" or each.only_below or each.only_above:
            return f"it is made of plain set_projection interventions; {each.describe()} is none"
    for layer in sorted({each.layer for each in interventions}):
        here = [each for each in interventions if each.layer == layer]
        if len({each.scope for each in here}) > 1:
            return f"the interventions at layer {layer} have different scopes"
        if len({each.strength for each in here}) > 1:
            return (
                f"the interventions at layer {layer} have different strengths; give them strength "
                "1 and balance them with strengths=…"
            )
    return None


def _rescaled(intervention: Intervention, strength: float) -> Intervention:
    """The intervention with its target moved in proportion to its distance from the baseline."""
    baseline = intervention.baseline
    if baseline is None:
        raise SteeringError(f"{intervention.label} has no baseline to scale its target from")
    if not math.isfinite(strength):
        raise SteeringError(f"strengths must be finite numbers; got {strength}")
    return replace(intervention, target=baseline + strength * (intervention.target - baseline))


def _joint(interventions: Sequence[Intervention], cutoff: float) -> list[Intervention]:
    """At each layer, interventions along orthonormal directions that meet all targets."""
    joint: list[Intervention] = []
    for layer in sorted({each.layer for each in interventions}):
        here = [each for each in interventions if each.layer == layer]
        units = torch.stack([each.unit.detach().double().cpu() for each in here], dim=1)
        left, singular, right = torch.linalg.svd(units, full_matrices=False)
        projections = [[each.target, each.baseline or 0.0] for each in here]
        targets, baselines = (
            right @ torch.tensor(projections, dtype=torch.float64) / singular[:, None]
        ).T.tolist()
        known = all(each.baseline is not None for each in here)
        label = " & ".join(each.label for each in here)
        rank = int((singular > cutoff * singular[0]).sum())
        joint += [
            replace(
                here[0],
                direction=left[:, j].to(here[0].direction),
                gap=abs(targets[j] - baselines[j]),
                target=targets[j],
                label=f"{label} ({j + 1} of {rank})" if rank > 1 else label,
                n_layers=next((each.n_layers for each in here if each.n_layers is not None), None),
                baseline=baselines[j] if known else None,
                adaptive=max(each.adaptive for each in here),
            )
            for j in range(rank)
        ]
    return joint
