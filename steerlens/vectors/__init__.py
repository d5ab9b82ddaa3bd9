"""Steering vectors: what they hold, how they are estimated, and what can be done with them.

| module | holds |
|---|---|
| `vector` | `SteeringVector`: one direction per layer, its algebra, its file |
| `estimators` | difference of means, PCA, mean-centring, probe, discriminant, placebo |
| `composition` | several steerings at once |
| `conditional` | steering only the prompts that call for it |
| `library`, `model_cards` | vectors of one model in a folder, what a reader must know of each |
| `formats` | files and objects of other tools |
| `transfer` | a vector on another model |
"""

from steerlens.vectors.estimators import (
    ESTIMATORS,
    Estimator,
    difference_of_means,
    from_directions,
    linear_discriminant,
    linear_probe,
    mean_centred,
    pca_of_differences,
    random_direction,
)
from steerlens.vectors.vector import SteeringVector

__all__ = [
    "ESTIMATORS",
    "Estimator",
    "SteeringVector",
    "difference_of_means",
    "from_directions",
    "linear_discriminant",
    "linear_probe",
    "mean_centred",
    "pca_of_differences",
    "random_direction",
]
