"""Transfer of a vector, and what is known of it before anything is steered.

`transfer_vector` takes a vector and residuals of contrast pairs *on the target model*. Without maps
the target must have the shape of the model that the vector was made for; with maps
(`steerlens.vectors.transfer.maps`) it may have any. Either way targets and gaps are measured on the
target model's residuals, and the cosine with the target's own difference of means on the same
residuals is reported: two unrelated directions of d dimensions have one of about ±1/√d.

What a transferred vector does is another question; `steerlens.attribution.causal` and
`steerlens.behaviour.evaluation` answer it, with the target's own vector and a placebo beside it.

>>> import torch
>>> from steerlens.vectors import difference_of_means
>>> shift = torch.tensor([2.0, 0.0, 0.0])
>>> source = ResidualCache.from_tensors(torch.zeros(4, 1, 3) + shift, torch.zeros(4, 1, 3))
>>> target = ResidualCache.from_tensors(torch.ones(4, 1, 3) + 2 * shift, torch.ones(4, 1, 3))
>>> found = transfer_vector(difference_of_means(source), target)
>>> found.vector.gaps.tolist(), found.vector.targets.tolist()
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
from steerlens.vectors.transfer.same_shape import (
    check_same_shape,
    common_layers,
    remeasured,
    with_metadata,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Transfer", "transfer_vector"]


@dataclass(frozen=True, eq=False, repr=False)
class Transfer:
    """A vector for another model.

    Attributes:
        vector: The vector for the target model, measured there.
        own: The target model's own difference of means on the same residuals: the control.
        table: One row a target layer: ``layer, source_layer, gap, own_gap, cosine_own, usable``
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
        """Plain data: everything but the tensors."""
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

    def _repr_html_(self) -> str:
        from steerlens.views import summary

        usable = self.table["cosine_own"].where(self.table["usable"], -1)
        best = int(usable.argmax())
        return summary(repr(self), table=self.table, around=best)

    def __repr__(self) -> str:
        usable = self.table[self.table.usable]
        best = usable.iloc[int(usable.cosine_own.argmax())]
        return (
            f"Transfer({self.vector.name}, {self.method}, {len(usable)} of {len(self.table)} "
            f"layers usable, cosine with the own vector up to {best.cosine_own:.2f} at layer "
            f"{int(best.layer)})"
        )


def transfer_vector(
    vector: SteeringVector, cache: ResidualCache, maps: LayerMaps | None = None
) -> Transfer:
    """Carry a vector to the model whose residuals are given.

    Args:
        vector: The vector, of another model.
        cache: Both sides of contrast pairs with the vector's instruction, on the target model.
        maps: From the vector's model to the target model; without, both must have one shape.

    Returns:
        A `Transfer`.

    Raises:
        SteeringError: Other shapes and no maps, maps of other models or widths, or a direction that
            does not tell the two sides apart at any layer of the target.
    """
    if maps is None:
        check_same_shape(vector, cache)
        layers, directions = common_layers(vector, cache)
        sources: dict[int, int] = {layer: layer for layer in layers}
    else:
        _check_maps(vector, cache, maps)
        layers, directions = maps.directions(vector)
        kept = [place for place, layer in enumerate(layers) if layer in cache.layers]
        if not kept:
            raise SteeringError(f"{cache!r} holds none of the layers the maps lead to: {layers}")
        layers, directions = tuple(layers[place] for place in kept), directions[kept]
        sources = {one.layer: one.source_layer for one in maps.maps}
    method = "same-shape" if maps is None else maps.method
    carried, gaps = remeasured(layers, directions, cache, vector.metadata)
    own = difference_of_means(cache)
    rows = [own.layer_index(layer) for layer in layers]
    table = pd.DataFrame(
        {
            "layer": layers,
            "source_layer": [sources[layer] for layer in layers],
            "gap": gaps.tolist(),
            "own_gap": own.gaps[rows].tolist(),
            "cosine_own": einsum(
                directions, own.directions[rows], "layer d, layer d -> layer"
            ).tolist(),
            "usable": (gaps > 0).tolist(),
        }
    )
    if maps is not None:
        table = table.merge(maps.table[["layer", "r2", "r2_median", "cka"]], on="layer")
    record = _record(vector, cache, maps, method)
    return Transfer(with_metadata(carried, transfer=record), own, table, method, record)


def _check_maps(vector: SteeringVector, cache: ResidualCache, maps: LayerMaps) -> None:
    """Refuse maps that are from, or to, other weights than the vector's and the cache's."""
    for side, metadata in (("source", vector.metadata), ("target", cache.metadata)):
        for key in ("weights_hash", "configuration_hash"):
            known, given = maps.metadata.get(f"{side}_{key}"), metadata.get(key)
            if known is not None and given is not None and known != given:
                of = "vector was made for" if side == "source" else "residuals are of"
                raise SteeringError(
                    f"the maps' {side} model is {maps.metadata.get(side)} ({known[:19]}), the {of} "
                    f"{metadata.get('model')} ({given[:19]}); fit maps between these two models"
                )
    width = maps.maps[0].weights.shape[1]
    if cache.d_model != width:
        raise SteeringError(
            f"the maps lead to a model with d_model {width}, the residuals have {cache.d_model}"
        )


def _record(
    vector: SteeringVector, cache: ResidualCache, maps: LayerMaps | None, method: str
) -> dict[str, Any]:
    known = ("model", "weights_hash", "configuration_hash", "data_hash", "position", "n_layers")
    record: dict[str, Any] = {
        "method": method,
        "from": {key: vector.metadata.get(key) for key in known},
        "to": {key: cache.metadata.get(key) for key in known},
    }
    if maps is not None:
        record["match"] = maps.match
        record["maps"] = dict(maps.metadata)
    return record
