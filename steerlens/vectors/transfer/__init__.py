"""Vectors on other models than the one they were made for.

| module | what |
|---|---|
| `paired` | residuals of two models on the same texts |
| `maps` | ridge and orthogonal Procrustes maps between them, with held-out R² per layer |
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

__all__ = [
    "LayerMap",
    "LayerMaps",
    "PairedResiduals",
    "Transfer",
    "fit_layer_maps",
    "fit_maps",
    "linear_cka",
    "map_texts",
    "paired_residuals",
    "transfer_vector",
]
