"""Vectors on other models than the one they were made for.

| module | what |
|---|---|
| `same_shape` | the same width and depth: the direction as it is, its numbers measured anew |
| `paired` | residuals of two models on the same texts |
| `maps` | other widths and depths: ridge and orthogonal Procrustes maps, with held-out R² a layer |
| `run` | `transfer_vector` and its result |

A transferred vector proves nothing by itself: compare it, by behaviour, with the target model's own
vector and with a placebo.
"""

from steerlens.vectors.transfer.maps import (
    LayerMap,
    LayerMaps,
    fit_layer_maps,
    fit_maps,
    linear_cka,
)
from steerlens.vectors.transfer.paired import PairedResiduals, map_texts, paired_residuals
from steerlens.vectors.transfer.run import Transfer, transfer_vector
from steerlens.vectors.transfer.same_shape import check_same_shape, remeasured

__all__ = [
    "LayerMap",
    "LayerMaps",
    "PairedResiduals",
    "Transfer",
    "check_same_shape",
    "fit_layer_maps",
    "fit_maps",
    "linear_cka",
    "map_texts",
    "paired_residuals",
    "remeasured",
    "transfer_vector",
]
