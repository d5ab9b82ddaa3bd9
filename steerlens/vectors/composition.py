r"""Composition: several steerings at once, looked at before anything is run.

`compose_report` takes interventions in the order in which they would be applied and says, from
their directions, gaps, targets and baselines alone:

* **cosines** :math:`u_i \cdot u_j`;
* **shared energy** of each: the share of :math:`\|u_i\|^2` that lies in the span of the others;
  at 1 it adds nothing of its own;
* **expected** projection on each direction after all were applied, and by how much this **misses**
  what it would have been alone, in gaps. At the mean uninstructed residual the projections are the
  baselines *b*; applying intervention *k* moves all of them,

  .. math:: p_j \leftarrow p_j + (a_k + \beta_k\, p_k)\, u_k \cdot u_j, \qquad p_j = b_j
            \text{ at first,}

  with the coefficients :math:`(a, \beta)` of `steerlens.steering.interventions`. Interventions meet
  only on tokens that the scopes of both touch; where prompt and response differ, the larger miss is
  told;
* **order spread**: how far the expected projection moves over the orders of interventions at one
  layer, in gaps;
* **jointly missed**: the same miss when `joint_projection` is used instead.

**Joint projection.** Applied one after another, ``set_projection`` holds for the last direction
only. The smallest change that makes all targets hold is

.. math:: x \leftarrow x + U (U^\top U)^{-1} (z - U^\top x), \qquad U = [u_1 \dots u_k]

and with the singular value decomposition :math:`U = Q \Sigma V^\top` it is
:math:`x + Q\,(\Sigma^{-1} V^\top z - Q^\top x)`: an ordinary ``set_projection`` along each of the
*orthonormal* columns of *Q*, with the targets :math:`\Sigma^{-1} V^\top z`. So joint projection is
*k* interventions that do not disturb each other, in any order and at any common strength. Singular
values below a cutoff (a share of the largest) are left out: where directions depend on each other
and their targets conflict, what remains meets them in the sense of least squares.

Caveat: interference *between* layers is what the residual connection carries on; what the blocks in
between make of a change is not known before running. And a projection is not behaviour.

>>> import torch
>>> from steerlens.steering.interventions import Steering
>>> from steerlens.steering.operations import Intervention
>>> def towards(direction, target):
...     return Steering((Intervention(
...         3, torch.tensor(direction), 1.0, target, "set_projection", 1.0, "all", baseline=0.0
...     ),))
>>> both = [towards([1.0, 0.0], 1.0), towards([0.6, 0.8], 1.0)]
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
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from steerlens.errors import SteeringError
from steerlens.errors.arguments import arguments
from steerlens.steering.interventions import Steering
from steerlens.steering.operations import Intervention

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Composition", "compose_report", "joint_projection"]

Array = np.ndarray
# Two directions are 1.1° apart where the smaller singular value is this share of the larger.
CUTOFF = 0.01
# All orders of five interventions; of more, this many at random.
_MOST_ORDERS = 120


@dataclass(frozen=True, eq=False, repr=False)
class Composition:
    """What to expect of several interventions together; the module says what each number means.

    Attributes:
        table: One row an intervention, in the order of application: ``intervention, layer,
            operation, strength, scope, alone, expected, missed, order_spread, jointly_missed,
            shared_energy``. ``alone`` and ``expected`` are projections (residual-stream units);
            ``missed``, ``order_spread`` and ``jointly_missed`` are in gaps. NaN where baselines are
            unknown, and under ``jointly_missed`` where no joint projection exists.
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
        """Cosines of the directions; what they share is what they disturb in each other."""
        from steerlens.views import cosine_matrix

        return cosine_matrix(
            list(map(str, self.cosines)), np.clip(self.cosines.to_numpy(), -1, 1).tolist()
        )

    def _repr_html_(self) -> str:
        from steerlens.views import summary

        return summary(repr(self), table=self.table)


@arguments
def compose_report(
    steerings: Steering | Sequence[Steering], cutoff: float = CUTOFF, seed: int = 0
) -> Composition:
    """What to expect of steerings applied one after another; nothing is run.

    Args:
        steerings: In the order of application; in a forward pass lower layers come first anyway.
        cutoff: Of the joint projection; see `joint_projection`.
        seed: Draws the orders to try when there are more than five interventions.

    Raises:
        SteeringError: No intervention, or directions of different widths.
    """
    ones = sorted(_interventions(steerings), key=lambda one: one.layer)
    everything = _Directions(ones)
    alone = np.array([p + _amount(one, p) for one, p in zip(ones, everything.start, strict=True)])
    gaps = np.array([one.gap if one.gap > 0 else math.nan for one in ones])
    expected, push = everything.after(ones)
    orders = [everything.after(order)[0] for order in _orders(ones, seed)]
    joined = [] if _why_not_joint(ones) else _joined(ones, cutoff)
    both = _Directions([*ones, *joined])
    jointly, joint_push = both.after(joined) if joined else (np.full_like(expected, math.nan), {})
    names = [f"{one.label} @{one.layer}" for one in ones]
    table = pd.DataFrame(
        {
            "intervention": [one.label for one in ones],
            "layer": [one.layer for one in ones],
            "operation": [one.operation for one in ones],
            "strength": [one.strength for one in ones],
            "scope": [one.scope for one in ones],
            "alone": alone,
            "expected": _farthest(expected, alone),
            "missed": (_farthest(expected, alone) - alone) / gaps,
            "order_spread": _spread(np.stack(orders)) / gaps,
            "jointly_missed": (_farthest(jointly[:, : len(ones)], alone) - alone) / gaps,
            "shared_energy": _shared_energy(everything.units),
        }
    )
    return Composition(
        table=table,
        cosines=pd.DataFrame(everything.gram, index=names, columns=names),
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

    At each layer the given interventions are replaced by as many along orthonormal directions.
    They have the strength that the given ones share; `Steering.scaled` changes it for all of them,
    which moves every projection by the same share of its way.

    Args:
        steerings: ``set_projection`` interventions, at one layer or several; at each layer of one
            scope and strength.
        strengths: One number an intervention, to balance them: the target of the *i*-th becomes
            ``baseline + strengths[i] · (target − baseline)``. They are met jointly as well.
        cutoff: Singular values below this share of a layer's largest are left out.

    Raises:
        SteeringError: Another operation, different scopes or strengths at a layer, the wrong number
            of strengths, a target to scale whose baseline is unknown, or a cutoff outside [0, 1).
    """
    ones = _interventions(steerings)
    refused = _why_not_joint(ones)
    if refused:
        raise SteeringError(f"no joint projection: {refused}")
    if not 0 <= cutoff < 1:
        raise SteeringError(f"cutoff must be at least 0 and below 1; got {cutoff}")
    if strengths is not None:
        if len(strengths) != len(ones):
            raise SteeringError(
                f"one strength an intervention is needed; got {len(strengths)} for {len(ones)}"
            )
        ones = [_with_target_at(one, s) for one, s in zip(ones, strengths, strict=True)]
    return Steering(tuple(_joined(ones, cutoff)))


def _interventions(steerings: Steering | Sequence[Steering]) -> list[Intervention]:
    several = [steerings] if isinstance(steerings, Steering) else list(steerings)
    ones = [one for steering in several for one in steering.interventions]
    if not ones:
        raise SteeringError("there is nothing to compose: no steering holds an intervention")
    for name, values in (
        ("widths", {one.unit.shape[0] for one in ones}),
        ("model depths", {one.n_layers for one in ones} - {None}),
    ):
        if len(values) > 1:
            raise SteeringError(
                f"interventions of different {name} do not compose: {sorted(values, key=str)}"
            )
    return ones


class _Directions:
    """Directions with their cosines, and the projections of a mean uninstructed residual."""

    def __init__(self, ones: Sequence[Intervention]) -> None:
        self.ones = ones
        directions = torch.stack([one.unit.detach().double().cpu() for one in ones])
        self.units = (directions / directions.norm(dim=-1, keepdim=True)).numpy()
        self.gram: Array = self.units @ self.units.T
        self.layers = np.array([one.layer for one in ones])
        self.start = np.array([math.nan if o.baseline is None else o.baseline for o in ones])

    def after(
        self, applied: Sequence[Intervention]
    ) -> tuple[Float[Array, "role direction"], dict[int, float]]:
        """Expected projections on all directions once some were applied, in order.

        Returns:
            One row for tokens of the prompt and one for those of the response (NaN where a
            direction's own scope leaves them alone), and the length of the change at each layer.
        """
        row_of = {id(one): i for i, one in enumerate(self.ones)}
        projections = np.tile(self.start, (2, 1))
        push: dict[int, float] = {}
        for role, other in enumerate(("response", "prompt")):
            change: dict[int, Array] = {}
            for one in applied:
                if one.scope == other:
                    continue
                k = row_of[id(one)]
                amount = _amount(one, projections[role, k])
                # What was done at a layer is there at those above, and not at those below.
                reaches = self.layers >= one.layer
                projections[role] += amount * self.gram[k] * reaches
                change[one.layer] = change.get(one.layer, 0.0) + amount * self.units[k]
            for layer, moved in change.items():
                push[layer] = max(push.get(layer, 0.0), float(np.linalg.norm(moved)))
            projections[role, [one.scope == other for one in self.ones]] = math.nan
        return projections, push


def _amount(one: Intervention, projection: float) -> float:
    """How far an intervention moves a residual along its direction."""
    offset, slope = one.coefficients
    # Without a slope the projection need not be known.
    amount = offset + (slope * projection if slope else 0.0)
    return max(amount, 0.0) if one.only_below else amount


def _farthest(
    projections: Float[Array, "role direction"], alone: Float[Array, "direction"]
) -> Float[Array, "direction"]:
    """Of prompt and response, the projection that is farther from what it would be alone."""
    distance = np.nan_to_num(np.abs(projections - alone), nan=-1.0)
    farthest: Array = np.take_along_axis(projections, distance.argmax(0)[None], axis=0)[0]
    return farthest


def _spread(projections: Float[Array, "order role direction"]) -> Float[Array, "direction"]:
    """Largest difference between orders, in the role where it is larger."""
    ranges = projections.max(0) - projections.min(0)
    widest: Array = np.fmax(ranges[0], ranges[1])
    return widest


def _orders(ones: Sequence[Intervention], seed: int) -> list[list[Intervention]]:
    """Orders to apply interventions in; those of different layers have only one."""
    if math.factorial(len(ones)) <= _MOST_ORDERS:
        shuffled = [list(order) for order in itertools.permutations(ones)]
    else:
        rng = random.Random(seed)
        shuffled = [rng.sample(ones, len(ones)) for _ in range(_MOST_ORDERS)]
    return [sorted(order, key=lambda one: one.layer) for order in (list(ones), *shuffled)]


def _shared_energy(units: Float[Array, "direction d_model"]) -> list[float]:
    """For each unit vector, the squared length of what lies in the span of the others."""
    shared = []
    for i, unit in enumerate(units):
        others = np.delete(units, i, axis=0).T
        inside = others @ np.linalg.lstsq(others, unit, rcond=None)[0] if others.size else 0 * unit
        shared.append(float(inside @ inside))
    return shared


def _why_not_joint(ones: Sequence[Intervention]) -> str | None:
    """Why these interventions have no joint projection; nothing when they have one."""
    for one in ones:
        if one.operation != "set_projection" or one.only_below:
            return f"it is made of plain set_projection interventions; {one.describe()} is none"
    for layer in sorted({one.layer for one in ones}):
        here = [one for one in ones if one.layer == layer]
        if len({one.scope for one in here}) > 1:
            return f"the interventions at layer {layer} have different scopes"
        if len({one.strength for one in here}) > 1:
            return (
                f"the interventions at layer {layer} have different strengths; give them strength "
                "1 and balance them with strengths=…"
            )
    return None


def _with_target_at(one: Intervention, strength: float) -> Intervention:
    if one.baseline is None:
        raise SteeringError(f"{one.label} has no baseline to scale its target from")
    if not math.isfinite(strength):
        raise SteeringError(f"strengths must be finite numbers; got {strength}")
    return replace(one, target=one.baseline + strength * (one.target - one.baseline))


def _joined(ones: Sequence[Intervention], cutoff: float) -> list[Intervention]:
    """At each layer, interventions along orthonormal directions that meet all targets."""
    joined: list[Intervention] = []
    for layer in sorted({one.layer for one in ones}):
        here = [one for one in ones if one.layer == layer]
        units = torch.stack([one.unit.detach().double().cpu() for one in here], dim=1)
        left, singular, right = torch.linalg.svd(units, full_matrices=False)
        kept = singular > cutoff * singular[0]
        targets = _along(right, singular, [one.target for one in here])
        known = all(one.baseline is not None for one in here)
        baselines = _along(right, singular, [one.baseline or 0.0 for one in here])
        label = " & ".join(one.label for one in here)
        rank = int(kept.sum())
        joined += [
            replace(
                here[0],
                direction=left[:, j].to(here[0].direction),
                gap=abs(float(targets[j] - baselines[j])),
                target=float(targets[j]),
                label=f"{label} ({j + 1} of {rank})" if rank > 1 else label,
                n_layers=next((one.n_layers for one in here if one.n_layers is not None), None),
                baseline=float(baselines[j]) if known else None,
            )
            for j in range(rank)
        ]
    return joined


def _along(
    right: Float[Tensor, "rank direction"],
    singular: Float[Tensor, "rank"],
    projections: Sequence[float],
) -> Float[Tensor, "rank"]:
    """Projections on the given directions, as projections on the orthonormal ones."""
    return right @ torch.tensor(projections, dtype=torch.float64) / singular
