r"""Steering vectors: how they are estimated, what they hold, and what can be done with them.

| module | holds |
|---|---|
| `vector` | `SteeringVector`: one direction per layer, its algebra, its file |
| `means`, `classifiers` | estimators: from residuals of contrast pairs to a vector |
| `others` | the other-task control, and estimators without what tasks share |
| `composition` | several steerings at once |
| `conditional` | steering only the prompts that call for it |
| `library`, `model_cards` | vectors of one model in a folder, what a reader must know of each |
| `formats` | files and objects of other tools |
| `transfer` | a vector on another model |

An **estimator** takes a `ResidualCache`, made at a position (``last_prompt``, ``response_mean``, an
index), and returns a `SteeringVector`. With instructed and uninstructed residuals
:math:`h^\pm_{il}` of pair *i* at layer *l*, and their means :math:`\bar h^\pm_l`:

======================  ==========================================================================
`difference_of_means`   :math:`u \propto \bar h^+ - \bar h^-`
`pca_of_differences`    :math:`u = \arg\max_{\|u\|=1} \sum_i (u \cdot (h^+_i - h^-_i))^2`
`mean_centred`          :math:`u \propto \bar h^+ - \bar h_\text{pool}`
`linear_probe`          :math:`u \propto` weights of logistic regression between the two sides
`linear_discriminant`   :math:`u \propto \Sigma^{-1} (\bar h^+ - \bar h^-)`
`from_directions`       *u* given by you
`random_direction`      *u* at random: the placebo
======================  ==========================================================================

For all of them :math:`g_l = u_l \cdot (\bar h^+_l - \bar h^-_l)`, :math:`z_l = u_l \cdot \bar
h^+_l` and :math:`b_l = u_l \cdot \bar h^-_l` are gap, target and baseline, and the sign of *u*
makes :math:`g > 0`. So ``add`` at strength 1 closes the gap *along u*. For a probe or a
discriminant that is a fraction of :math:`\|\bar h^+ - \bar h^-\|`, and an equally large push needs
a larger strength (`steerlens.behaviour.calibration` finds it).

>>> import torch
>>> generator = torch.Generator().manual_seed(0)
>>> noise = torch.randn(2, 40, 1, 8, generator=generator)
>>> shift = torch.eye(8)[2] * 4                              # the sides differ along one axis
>>> cache = ResidualCache.from_tensors(noise[0] + shift, noise[1])
>>> [round(float(estimate(cache).directions[0, 2]), 1) for estimate in ESTIMATORS.values()]
[1.0, 1.0, 1.0, 0.9, 1.0]
"""

from collections.abc import Callable, Mapping

from steerlens.activations.cache import ResidualCache
from steerlens.vectors.classifiers import linear_discriminant, linear_probe
from steerlens.vectors.means import (
    difference_of_means,
    from_directions,
    mean_centred,
    pca_of_differences,
    random_direction,
)
from steerlens.vectors.others import (
    difference_from_others,
    norm_matched,
    other_task_vectors,
    own_part,
)
from steerlens.vectors.vector import SteeringVector

__all__ = [
    "ESTIMATORS",
    "Estimator",
    "SteeringVector",
    "difference_from_others",
    "difference_of_means",
    "from_directions",
    "linear_discriminant",
    "linear_probe",
    "mean_centred",
    "norm_matched",
    "other_task_vectors",
    "own_part",
    "pca_of_differences",
    "random_direction",
]

Estimator = Callable[[ResidualCache], SteeringVector]
"""A function from a cache to a vector; one of your own ends in `from_directions`."""

ESTIMATORS: Mapping[str, Estimator] = {
    "difference_of_means": difference_of_means,
    "pca_of_differences": pca_of_differences,
    "mean_centred": mean_centred,
    "linear_probe": linear_probe,
    "linear_discriminant": linear_discriminant,
}
"""The estimators by name, without the placebo."""
