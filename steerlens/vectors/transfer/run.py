r"""A vector on another model, and what is known of it before anything is steered.

`transfer_vector` takes a vector and residuals :math:`h^\pm` of contrast pairs *on the target
model*. Without maps the target must have the shape of the vector's model, and the direction
:math:`u_l` stays: the case of Stolfo et al. 2025, where a vector of an instruction-tuned model
steers the base model it was tuned from. With maps (`steerlens.vectors.transfer.maps`) the target
may have any shape. Either way the numbers of the direction are measured on the target:

.. math:: z_l = \operatorname{mean}_i u_l \cdot h^+_{il}, \qquad
          b_l = \operatorname{mean}_i u_l \cdot h^-_{il}, \qquad g_l = z_l - b_l

A layer with :math:`g_l \le 0` is one where the transfer has failed; it is left out, not turned
round. The cosine with the target's own difference of means on the same residuals stands beside each
layer: two unrelated directions of d dimensions have one of about ±1/√d.

>>> import torch
>>> shift = torch.tensor([2.0, 0.0, 0.0])
>>> source = ResidualCache.from_tensors(torch.zeros(4, 1, 3) + shift, torch.zeros(4, 1, 3))
>>> target = ResidualCache.from_tensors(torch.ones(4, 1, 3) + 2 * shift, torch.ones(4, 1, 3))
>>> transfer = transfer_vector(difference_of_means(source), target)
>>> transfer.vector.gaps.tolist(), transfer.vector.targets.tolist()
([4.0], [5.0])
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd
from einops import einsum

from steerlens.activations.cache import ResidualCache
from steerlens.errors import SteeringError
from steerlens.vectors import SteeringVector, difference_of_means
from steerlens.vectors.transfer.maps import LayerMaps
from steerlens.views.result import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Transfer", "transfer_vector"]


@dataclass(frozen=True, eq=False, repr=False)
class Transfer(Result):
    """A vector for another model.

    Attributes:
        vector: The vector for the target model, measured there.
        own: The target model's own difference of means on the same residuals: the control.
        table: One row per target layer: ``layer, source_layer, gap, own_gap, cosine_own, usable``
            and, with maps, ``r2, r2_median, cka``. Gaps are in units of the target model's
            residual stream; a layer whose gap is not positive is not usable and not in `vector`.
        method: ``"same-shape"``, ``"ridge"`` or ``"procrustes"``.
        metadata: Models, the map's texts and layer matching.
    """

    vector: SteeringVector
    own: SteeringVector
    table: pd.DataFrame
    method: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Everything but the tensors, as plain data."""
        return {
            "method": self.method,
            "instruction": self.vector.metadata.get("instruction"),
            "layers": self.table.to_dict("records"),
            "metadata": dict(self.metadata),
        }

    def plot(self) -> "go.Figure":
        """Cosine with the target's own vector, and the map's held-out R², over layers."""
        from steerlens.views import evidence_curves

        kinds = [kind for kind in ("cosine_own", "r2", "r2_median", "cka") if kind in self.table]
        return evidence_curves(self.table, kinds, title=f"{self.vector.name}: {self.method}")

    @property
    def _best(self) -> Mapping[Any, Any]:
        usable = self.table[self.table.usable].to_dict("records")
        return max(usable, key=lambda row: float(row["cosine_own"]))

    def _card(self) -> Mapping[str, Any]:
        return self._around_layer(self._best["layer"])

    def __repr__(self) -> str:
        best = self._best
        return (
            f"Transfer({self.vector.name}, {self.method}, {self.table.usable.sum()} of "
            f"{len(self.table)} layers usable, cosine with the own vector up to "
            f"{best['cosine_own']:.2f} at layer {best['layer']})"
        )


def transfer_vector(
    vector: SteeringVector, cache: ResidualCache, maps: LayerMaps | None = None
) -> Transfer:
    """Carry a vector to the model whose residuals are given.

    Args:
        vector: The vector, of another model.
        cache: Both sides of contrast pairs with the vector's instruction, on the target model.
        maps: From the vector's model to the target model; without, both must have one shape.

    Raises:
        SteeringError: Other shapes and no maps, maps of other models or widths, or a direction that
            does not tell the two sides apart at any layer of the target.
    """
    if maps is None:
        _check_same_shape(vector, cache)
        common = [layer for layer in vector.layers if layer in cache.layers]
        sources = {layer: layer for layer in common}
        units = vector.restricted_to(common).directions
    else:
        _check_maps(vector, cache, maps)
        mapped, units = maps.directions(vector)
        common = [layer for layer in mapped if layer in cache.layers]
        if not common:
            raise SteeringError(f"{cache!r} holds none of the layers the maps lead to: {mapped}")
        units = units[[mapped.index(layer) for layer in common]]
        sources = {each.layer: each.source_layer for each in maps.maps}
    rows = [cache.layer_index(layer) for layer in common]
    targets, baselines = (
        einsum(units.double(), side[:, rows].double().mean(0), "layer d, layer d -> layer")
        for side in (cache.instructed, cache.uninstructed)
    )
    gaps = targets - baselines
    kept = [i for i, gap in enumerate(gaps.tolist()) if gap > 0]
    if not kept:
        raise SteeringError(
            "the direction tells instructed from uninstructed prompts at no layer of "
            f"{cache.metadata.get('model', 'the target model')}; there is nothing to transfer"
        )
    own = difference_of_means(cache)
    own_here = own.restricted_to(common)
    table = pd.DataFrame(
        {
            "layer": common,
            "source_layer": [sources[layer] for layer in common],
            "gap": gaps.tolist(),
            "own_gap": own_here.gaps.tolist(),
            "cosine_own": einsum(units, own_here.directions, "layer d, layer d -> layer").tolist(),
            "usable": (gaps > 0).tolist(),
        }
    )
    if maps is not None:
        table = table.merge(maps.table[["layer", "r2", "r2_median", "cka"]], on="layer")
    known = ("model", "weights_hash", "configuration_hash", "data_hash", "position", "n_layers")
    method = "same-shape" if maps is None else maps.method
    record: dict[str, Any] = {
        "method": method,
        "from": {key: vector.metadata.get(key) for key in known},
        "to": {key: cache.metadata.get(key) for key in known},
    }
    if maps is not None:
        record |= {"match": maps.match, "maps": dict(maps.metadata)}
    about = {key: vector.metadata[key] for key in _OF_THE_DIRECTION if key in vector.metadata}
    carried = SteeringVector(
        directions=units[kept].float(),
        gaps=gaps[kept].float(),
        targets=targets[kept].float(),
        baselines=baselines[kept].float(),
        layers=tuple(common[i] for i in kept),
        metadata={**cache.metadata, **about, "transfer": record},
    )
    return Transfer(carried, own, table, method, record)


# Of the vector's metadata, what stays true of the direction; the rest is the target cache's.
_OF_THE_DIRECTION = ("estimator", "instruction")


def _check_same_shape(vector: SteeringVector, cache: ResidualCache) -> None:
    """Refuse residuals of a model of another width or depth, or without the vector's layers."""
    target = str(cache.metadata.get("model", "the target model"))
    advice = "between models of different shapes fit a map: give the source model as well"
    if vector.d_model != cache.d_model:
        raise SteeringError(
            f"this vector has d_model {vector.d_model}, {target} {cache.d_model}; {advice}"
        )
    depths = vector.metadata.get("n_layers"), cache.metadata.get("n_layers")
    if None not in depths and depths[0] != depths[1]:
        raise SteeringError(
            f"this vector was made for a model with {depths[0]} layers, {target} has {depths[1]}; "
            f"{advice}"
        )
    if not set(vector.layers) & set(cache.layers):
        raise SteeringError(
            f"{vector!r} and {cache!r} have no layer in common; cache the vector's layers"
        )


def _check_maps(vector: SteeringVector, cache: ResidualCache, maps: LayerMaps) -> None:
    """Refuse maps that are from, or to, other weights than the vector's and the cache's."""
    for side, metadata in (("source", vector.metadata), ("target", cache.metadata)):
        for key in ("weights_hash", "configuration_hash"):
            known, actual = maps.metadata.get(f"{side}_{key}"), metadata.get(key)
            if known is not None and actual is not None and known != actual:
                of = "vector was made for" if side == "source" else "residuals are of"
                raise SteeringError(
                    f"the maps' {side} model is {maps.metadata.get(side)} ({known[:19]}), the {of} "
                    f"{metadata.get('model')} ({actual[:19]}); fit maps between these two models"
                )
    width = maps.maps[0].weights.shape[1]
    if cache.d_model != width:
        raise SteeringError(
            f"the maps lead to a model with d_model {width}, the residuals have {cache.d_model}"
        )
