r"""Geometry: is a direction the same at another layer, or for another instruction?

The cosine of two estimated directions says less than it seems to: noise of each pulls it down, and
noise both share (the same prompts, layer after layer) pulls it up. Two directions that are truly
one may show 0.8. So every cosine stands beside

* its **ceiling** :math:`\sqrt{\rho_a \rho_b}`, the cosine to expect between two estimates of one
  direction from independent pairs. The reliability :math:`\rho = \mu^2 / \|v\|^2` is the share of a
  mean difference's squared length that is not noise.
* the **corrected** cosine, an estimate of that of the true mean differences,

.. math:: \frac{\langle a, b \rangle}{\sqrt{\langle a, a \rangle \langle b, b \rangle}}, \qquad
          \langle a, b \rangle = \underset{i \ne j}{\mathrm{mean}}\; d^a_i \cdot d^b_j, \qquad
          d_i = h^+_i - h^-_i

  where *i* and *j* are never the same base query: noise, shared or not, then averages to zero
  (cross-validated distances; Walther et al. 2016). It may exceed 1; around 1 the two are one.
  Its 95 % interval is the jackknife's over base queries: bootstrap resamples hold queries twice,
  which look like agreement.

Caveat: activations of neighbouring layers share most of the residual stream, so a cosine near 1
between them is the rule. A few dimensions of very large activations can dominate cosines.

>>> import torch
>>> from steerlens.activations.cache import ResidualCache
>>> g = torch.Generator().manual_seed(0)
>>> noise = torch.randn(2, 40, 3, 64, generator=g)
>>> noise[0, :, :2, 0] += 2.0                      # layers 0 and 1 carry it along one axis,
>>> noise[0, :, 2, 1] += 2.0                       # layer 2 along another
>>> geometry = layer_geometry(ResidualCache.from_tensors(noise[0], noise[1]))
>>> geometry.span(0), geometry.span(2)
((0, 1), (2, 2))
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from steerlens.activations.cache import ResidualCache
from steerlens.errors import ActivationError, SteerlensError
from steerlens.errors.arguments import arguments
from steerlens.stats.queries import jackknife_reach
from steerlens.views import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = [
    "DirectionCosines",
    "InstructionGeometry",
    "LayerGeometry",
    "instruction_geometry",
    "layer_geometry",
]

Array = np.ndarray
# Metadata entries in which caches of comparable directions agree.
_SAME = ("weights_hash", "configuration_hash", "position")
# Caches of earlier versions do not name this one.
_MAY_LACK = "configuration_hash"


@dataclass(frozen=True, eq=False)
class DirectionCosines:
    """Cosines between estimated directions, with what is needed to judge them.

    Attributes:
        cosines: As estimated.
        ceilings: To be expected if the two were one direction.
        corrected: Estimates for the true directions; NaN where one is not told from noise.
        low: Lower end of the 95 % interval of `corrected`.
        high: Upper end.
        reliability: Share of each squared mean difference that is not noise; may be below 0.
        norms: Norm of each mean difference, in residual-stream units.
    """

    cosines: Float[Array, "one other"]
    ceilings: Float[Array, "one other"]
    corrected: Float[Array, "one other"]
    low: Float[Array, "one other"]
    high: Float[Array, "one other"]
    reliability: Float[Array, "one"]
    norms: Float[Array, "one"]


@dataclass(frozen=True, eq=False, repr=False)
class LayerGeometry(Result):
    """One instruction's direction, layer against layer.

    Attributes:
        table: One row per layer: ``layer, gap`` (norm of the mean difference), ``reliability``,
            ``next_cosine, next_low, next_high`` (corrected, to the next cached layer; missing for
            the last), ``from_layer, to_layer`` (`span` at `above`).
        layers: The layer of each row of the matrices.
        cosines: The matrices.
        above: The corrected cosine from which on a direction counts as held, in the table.
        n_pairs: Pairs used.
        metadata: Provenance of the activations.
    """

    table: pd.DataFrame
    layers: tuple[int, ...]
    cosines: DirectionCosines
    above: float
    n_pairs: int
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def span(self, layer: int, above: float | None = None) -> tuple[int, int]:
        """First and last layer of the unbroken run around `layer` that has its direction.

        Args:
            layer: A cached layer.
            above: Smallest corrected cosine to this layer's direction; the table's by default.

        Raises:
            ActivationError: The layer was not cached.
        """
        if layer not in self.layers:
            raise ActivationError(f"layer {layer} is not in this geometry; it holds {self.layers}")
        index = self.layers.index(layer)
        above = self.above if above is None else above
        first, last = _unbroken(self.cosines.corrected[index], index, above)
        return self.layers[first], self.layers[last]

    def __repr__(self) -> str:
        first, _ = self.span(self.layers[-1])
        return (
            f"LayerGeometry({len(self.layers)} layers, the last one's direction holds from layer "
            f"{first} (corrected cosine ≥ {self.above:g}), {self.n_pairs} pairs)"
        )

    def plot(self) -> "go.Figure":
        """Cosines between layers, corrected for noise."""
        from steerlens.views import cosine_matrix

        names = [f"layer {layer}" for layer in self.layers]
        matrix = np.clip(self.cosines.corrected, -1, 1).tolist()
        return cosine_matrix(names, matrix, name="cosine, corrected for noise")


@dataclass(frozen=True, eq=False, repr=False)
class InstructionGeometry(Result):
    """Directions of several instructions at one layer, each against each.

    Attributes:
        table: One row per pair of instructions: ``one, other, cosine, ceiling, corrected, low,
            high``.
        ids: The instruction of each row of the matrices.
        layer: The layer compared at.
        cosines: The matrices.
        metadata: Pairs of each instruction, weights hash, position.
    """

    table: pd.DataFrame
    ids: tuple[str, ...]
    layer: int
    cosines: DirectionCosines
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        nearest = self.table.iloc[int(self.table.corrected.fillna(-np.inf).argmax())]
        return (
            f"InstructionGeometry({len(self.ids)} instructions at layer {self.layer}, nearest: "
            f"{nearest.one} and {nearest.other}, {nearest.corrected:.2f} "
            f"[{nearest.low:.2f}, {nearest.high:.2f}])"
        )

    def plot(self) -> "go.Figure":
        """Cosines between instructions, corrected for noise."""
        from steerlens.views import cosine_matrix

        matrix = np.clip(self.cosines.corrected, -1, 1).tolist()
        return cosine_matrix(self.ids, matrix, self.layer, name="cosine, corrected for noise")

    def _card(self) -> Mapping[str, Any]:
        return {"largest": "corrected"}


@arguments
def layer_geometry(cache: ResidualCache, above: float = 0.5) -> LayerGeometry:
    """Compare the difference of means between layers.

    Args:
        cache: Residuals of both sides, from at least 3 base queries.
        above: The corrected cosine from which on a direction counts as held.

    Raises:
        ActivationError: Fewer than 3 base queries, or a layer where the two sides do not differ.
        SteerlensError: `above` is not between 0 and 1.
    """
    if not 0 < above <= 1:
        raise SteerlensError(f"above is a cosine, more than 0 and at most 1; got {above}")
    differences = (cache.instructed - cache.uninstructed).numpy()
    n_layers = len(cache.layers)
    names = [f"layer {layer}" for layer in cache.layers]
    cosines = _compared(
        [differences[:, i] for i in range(n_layers)], [cache.groups] * n_layers, names
    )
    spans = [_unbroken(cosines.corrected[i], i, above) for i in range(n_layers)]

    def to_next(matrix: Float[Array, "one other"]) -> Float[Array, "one"]:
        return np.append(np.diagonal(matrix, offset=1), np.nan)

    table = pd.DataFrame(
        {
            "layer": cache.layers,
            "gap": cosines.norms,
            "reliability": cosines.reliability,
            "next_cosine": to_next(cosines.corrected),
            "next_low": to_next(cosines.low),
            "next_high": to_next(cosines.high),
            "from_layer": [cache.layers[first] for first, _ in spans],
            "to_layer": [cache.layers[last] for _, last in spans],
        }
    )
    return LayerGeometry(
        table=table,
        layers=cache.layers,
        cosines=cosines,
        above=above,
        n_pairs=cache.n_pairs,
        metadata=dict(cache.metadata),
    )


@arguments
def instruction_geometry(caches: Mapping[str, ResidualCache], layer: int) -> InstructionGeometry:
    """Compare the difference of means of several instructions at one layer.

    Args:
        caches: Residuals by instruction, of one model read at one position. Whether they come from
            the same base queries does not matter: pairs with the same group number in two caches
            are never multiplied.
        layer: A layer all of them hold.

    Raises:
        ActivationError: Fewer than 2 caches, fewer than 3 base queries in one, activations of
            different models or positions, a layer missing, or no difference between two sides.
    """
    if len(caches) < 2:
        raise ActivationError(
            f"at least 2 instructions are needed to compare directions; got {len(caches)}"
        )
    ids = tuple(caches)
    first = caches[ids[0]]
    for name in ids[1:]:
        _check_comparable(ids[0], first, name, caches[name])
    differences = []
    for cache in caches.values():
        index = cache.layer_index(layer)
        differences.append((cache.instructed[:, index] - cache.uninstructed[:, index]).numpy())
    cosines = _compared(differences, [caches[name].groups for name in ids], ids)
    one, other = np.triu_indices(len(ids), k=1)
    table = pd.DataFrame(
        {
            "one": [ids[i] for i in one],
            "other": [ids[i] for i in other],
            "cosine": cosines.cosines[one, other],
            "ceiling": cosines.ceilings[one, other],
            "corrected": cosines.corrected[one, other],
            "low": cosines.low[one, other],
            "high": cosines.high[one, other],
        }
    )
    return InstructionGeometry(
        table=table,
        ids=ids,
        layer=layer,
        cosines=cosines,
        metadata={
            "n_pairs": {name: caches[name].n_pairs for name in ids},
            **{key: first.metadata.get(key) for key in _SAME},
        },
    )


def _compared(
    differences: Sequence[Float[Array, "pair d_model"]],
    groups: Sequence[Sequence[int]],
    names: Sequence[str],
) -> DirectionCosines:
    """Cosines of mean differences; pairs of one group are never multiplied."""
    sums, counts = _group_sums(differences, groups, names)
    total, n = sums.sum(0), counts.sum(0)
    within = np.einsum("gad,gbd->gab", sums, sums)
    shared = np.einsum("ga,gb->gab", counts, counts)
    products, weights = total @ total.T, np.outer(n, n)
    between = (products - within.sum(0)) / (weights - shared.sum(0))
    norms = np.sqrt(np.diagonal(products)) / n
    if not norms.all():
        raise ActivationError(
            f"instructed and uninstructed residuals have the same mean for "
            f"{names[int(np.argmin(norms))]}; there is no direction to compare"
        )
    # The same without one group after the other, for the jackknife.
    crossed = np.einsum("gad,bd->gab", sums, total)
    left = products - crossed - crossed.transpose(0, 2, 1) + 2 * within - within.sum(0)
    n_left = n - counts
    left_weights = np.einsum("ga,gb->gab", n_left, n_left) - shared.sum(0) + shared
    corrected = _as_cosines(between)
    left_cosines = _as_cosines(left / left_weights)
    error = jackknife_reach(left_cosines)
    reliability = np.diagonal(between) / norms**2
    with np.errstate(invalid="ignore"):
        ceilings = np.sqrt(np.outer(reliability, reliability))
    ceilings[np.outer(reliability > 0, reliability > 0) == 0] = np.nan
    return DirectionCosines(
        cosines=products / np.outer(norms * n, norms * n),
        ceilings=ceilings,
        corrected=corrected,
        low=corrected - error,
        high=corrected + error,
        reliability=reliability,
        norms=norms,
    )


def _group_sums(
    differences: Sequence[Float[Array, "pair d_model"]],
    groups: Sequence[Sequence[int]],
    names: Sequence[str],
) -> tuple[Float[Array, "group direction d_model"], Int[Array, "group direction"]]:
    """Sum of the differences of each group, and how many pairs it has, for each direction."""
    numbers = np.unique(np.concatenate([np.asarray(of_pairs) for of_pairs in groups]))
    sums = np.zeros((len(numbers), len(differences), differences[0].shape[1]))
    counts = np.zeros((len(numbers), len(differences)), dtype=np.int64)
    for k, (values, of_pairs, name) in enumerate(zip(differences, groups, names, strict=True)):
        index = np.searchsorted(numbers, of_pairs)
        np.add.at(sums[:, k], index, values.astype(np.float64))
        np.add.at(counts[:, k], index, 1)
        n_groups = len(set(of_pairs))
        if n_groups < 3:
            raise ActivationError(
                "pairs of at least 3 base queries are needed to tell a direction from noise; "
                f"{name} has {n_groups}"
            )
    return sums, counts


def _as_cosines(products: Float[Array, "*group one other"]) -> Float[Array, "*group one other"]:
    """Inner products over the roots of their diagonals; NaN where a diagonal is not positive."""
    lengths = np.diagonal(products, axis1=-2, axis2=-1)
    roots = np.sqrt(np.where(lengths > 0, lengths, np.nan))
    cosines: Array = products / (roots[..., :, None] * roots[..., None, :])
    return cosines


def _unbroken(cosines: Float[Array, "layer"], index: int, above: float) -> tuple[int, int]:
    """First and last index of the unbroken run around one where cosines are at least `above`."""
    first = last = index
    while first > 0 and cosines[first - 1] >= above:
        first -= 1
    while last < len(cosines) - 1 and cosines[last + 1] >= above:
        last += 1
    return first, last


def _check_comparable(name: str, one: ResidualCache, other: str, cache: ResidualCache) -> None:
    if one.d_model != cache.d_model:
        raise ActivationError(
            f"directions of different models cannot be compared: {name} has d_model "
            f"{one.d_model}, {other} {cache.d_model}"
        )
    for key in _SAME:
        ours, theirs = one.metadata.get(key), cache.metadata.get(key)
        if ours != theirs and not (key == _MAY_LACK and None in (ours, theirs)):
            raise ActivationError(
                f"the activations of {name} and {other} differ in {key.replace('_', ' ')} "
                f"({ours} and {theirs}), so their directions cannot be compared"
            )
