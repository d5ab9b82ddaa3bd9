"""Steering vectors: what they hold, how they are estimated, and what can be done with them.

| module | holds |
|---|---|
| `vector` | `SteeringVector`: a direction a layer, its algebra, its file |
| `estimators` | from residuals to a vector: difference of means, PCA, probe, LDA, … |
| `parts` | what the parts of a vector may be |

Every estimator has the signature `Estimator`, ``(cache) -> SteeringVector``.
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
