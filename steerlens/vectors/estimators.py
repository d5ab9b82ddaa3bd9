r"""Estimators: from residuals of contrast pairs to one direction a layer.

Each takes a `ResidualCache` and gives a `SteeringVector`; *where* residuals were read
(``last_prompt``, ``response_mean``, any token) is decided when the cache is made
(`steerlens.activations.cache`). With instructed and uninstructed residuals :math:`h^+_{il},
h^-_{il}` of pair *i* at layer *l*, and their means :math:`\bar h^+_l, \bar h^-_l`:

======================  ==========================================================================
`difference_of_means`   :math:`u \propto \bar h^+ - \bar h^-`
`pca_of_differences`    :math:`u = \arg\max_{\|u\|=1} \sum_i (u \cdot (h^+_i - h^-_i))^2`
`mean_centred`          :math:`u \propto \bar h^+ - \bar h_\text{pool}`
`linear_probe`          :math:`u \propto` weights of logistic regression between the two sides
`linear_discriminant`   :math:`u \propto \Sigma^{-1} (\bar h^+ - \bar h^-)`
`from_directions`       *u* given by you
`random_direction`      *u* at random: the placebo
======================  ==========================================================================

Whatever the direction, the numbers that go with it mean the same:

.. math:: g_l = u_l \cdot (\bar h^+_l - \bar h^-_l), \qquad z_l = u_l \cdot \bar h^+_l, \qquad
          b_l = u_l \cdot \bar h^-_l

gap, projection target and baseline; the sign of *u* is such that :math:`g > 0`, towards the
instructed side. So ``add`` at strength 1 closes the gap *along u*, however little of the mean
difference that is: for a probe or a discriminant, which look for what separates and not for what
differs most, the gap is a fraction of :math:`\|\bar h^+ - \bar h^-\|`, and an equal push takes a
larger strength (`steerlens.behaviour.calibration` finds it).

>>> import torch
>>> generator = torch.Generator().manual_seed(0)
>>> noise = torch.randn(2, 40, 1, 8, generator=generator)
>>> shift = torch.eye(8)[2] * 4                              # the sides differ along one axis
>>> cache = ResidualCache.from_tensors(noise[0] + shift, noise[1])
>>> [round(float(estimate(cache).directions[0, 2]), 1) for estimate in ESTIMATORS.values()]
[1.0, 1.0, 1.0, 0.9, 1.0]
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from einops import einsum
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from steerlens.activations.cache import ResidualCache
from steerlens.errors import SteeringError
from steerlens.errors.arguments import finite_number, whole_number
from steerlens.vectors.vector import SteeringVector

__all__ = [
    "ESTIMATORS",
    "Estimator",
    "difference_of_means",
    "from_directions",
    "linear_discriminant",
    "linear_probe",
    "mean_centred",
    "pca_of_differences",
    "random_direction",
]

Estimator = Callable[[ResidualCache], SteeringVector]
"""What makes a vector of a cache; a function of your own ends in `from_directions`."""

# A mean difference this small, relative to the residual norm, is rounding, not a direction.
_MIN_RELATIVE_GAP = 1e-7


# --- any direction ---


def from_directions(
    cache: ResidualCache,
    directions: Tensor,
    estimator: str = "from_directions",
    **provenance: Any,
) -> SteeringVector:
    """A vector along given directions, with gaps, targets and baselines measured on the cache.

    Args:
        cache: The residuals that say how far apart the two sides are along the directions.
        directions: One for each cached layer, ``[layer d_model]``; neither length nor sign matter.
        estimator: What to call the way they were found.
        provenance: More entries for the vector's metadata.

    Returns:
        A vector for every cached layer, pointing towards the instructed side.

    Raises:
        SteeringError: Another shape, NaN, a zero direction, or a layer where the two sides have
            the same mean along the direction.
    """
    expected = (len(cache.layers), cache.d_model)
    if directions.shape != expected:
        raise SteeringError(
            f"directions must have shape [layer d_model], {list(expected)} for this cache; got "
            f"{list(directions.shape)}"
        )
    given = directions.detach().to("cpu", torch.float64)
    # Any length will do, also one whose square does not fit float64: brought near 1 by a power of
    # two, which rounds nothing.
    _, exponents = torch.frexp(given.abs().amax(dim=-1, keepdim=True))
    given = given * torch.exp2(-exponents.double())
    norms = given.norm(dim=-1)
    usable = torch.isfinite(norms) & (norms > 0)
    if not bool(usable.all()):
        layer = cache.layers[int((~usable).nonzero()[0])]
        raise SteeringError(f"the direction at layer {layer} is zero, or not finite")
    instructed = cache.instructed.double().mean(0)
    uninstructed = cache.uninstructed.double().mean(0)
    units = given / norms[:, None]
    gaps = einsum(units, instructed - uninstructed, "layer d, layer d -> layer")
    scale = instructed.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    flat = gaps.abs() / scale < _MIN_RELATIVE_GAP
    if bool(flat.any()):
        layer = cache.layers[int(flat.nonzero()[0])]
        raise SteeringError(
            f"instructed and uninstructed residuals have the same mean at layer {layer} along the "
            "direction; there is no gap between them to close"
        )
    units = units * gaps.sign()[:, None]
    return SteeringVector(
        directions=units.float(),
        gaps=gaps.abs().float(),
        targets=einsum(units, instructed, "layer d, layer d -> layer").float(),
        baselines=einsum(units, uninstructed, "layer d, layer d -> layer").float(),
        layers=cache.layers,
        metadata={**cache.metadata, "estimator": estimator, **provenance},
    )


# --- difference of means ---


def difference_of_means(cache: ResidualCache) -> SteeringVector:
    r"""Difference of the mean instructed and mean uninstructed residual, layer by layer.

    .. math:: v_l = \bar h^+_l - \bar h^-_l, \qquad u_l = v_l / \|v_l\|, \qquad g_l = \|v_l\|

    Source: Stolfo et al. 2025, §2.2 (arXiv 2410.12877), at the last token of the prompt;
    with ``response_mean`` it is the estimator of contrastive activation addition (Rimsky et al.
    2024, arXiv 2312.06681) averaged over the answer.

    Args:
        cache: Residuals of at least two pairs.

    Returns:
        A vector for every cached layer.

    Raises:
        SteeringError: A layer where the two sides do not differ has no direction.
    """
    difference = cache.instructed.double().mean(0) - cache.uninstructed.double().mean(0)
    same = difference.norm(dim=-1) == 0
    if bool(same.any()):
        layer = cache.layers[int(same.nonzero()[0])]
        raise SteeringError(
            f"instructed and uninstructed residuals have the same mean at layer {layer}; there is "
            "no direction between them"
        )
    return from_directions(cache, difference, "difference_of_means")


# --- PCA of differences ---


def pca_of_differences(cache: ResidualCache) -> SteeringVector:
    r"""The axis along which the pairs' differences are largest, pointing to the instructed side.

    .. math:: u_l = \arg\max_{\|u\| = 1} \sum_i \bigl(u \cdot (h^+_{il} - h^-_{il})\bigr)^2

    the first right singular vector of the differences, which are *not* centred: equal to the first
    principal component of the differences in both signs. (Centring would remove the mean
    difference, which is what is looked for.)

    Source: Zou et al. 2023, *Representation Engineering* (arXiv 2310.01405, appendix C.1), who take
    differences of random pairs: their mean is near zero as well, so that centring does no harm.

    Args:
        cache: Residuals of at least two pairs.

    Raises:
        SteeringError: All differences vanish at some layer, or their main axis is orthogonal to
            their mean.
    """
    differences = (cache.instructed.double() - cache.uninstructed.double()).transpose(0, 1)
    _, sizes, axes = torch.linalg.svd(differences, full_matrices=False)
    if not bool((sizes[:, 0] > 0).all()):
        layer = cache.layers[int(sizes[:, 0].argmin())]
        raise SteeringError(
            f"the two sides of every pair are the same at layer {layer}; their differences have no "
            "axis"
        )
    explained = (sizes[:, 0] ** 2 / (sizes**2).sum(-1)).tolist()
    return from_directions(cache, axes[:, 0], "pca_of_differences", explained_share=explained)


# --- mean-centred ---


def mean_centred(
    cache: ResidualCache, pool: Sequence[ResidualCache] | None = None
) -> SteeringVector:
    r"""Instructed mean, centred on the mean of a pool of other activations.

    .. math:: v_l = \bar h^+_l - \frac{1}{|P|} \sum_{h \in P} h_l

    *P* stands for the model's activations on anything at all: residuals, both sides, of many other
    instructions' prompts. What all activations share is taken away, and no prompt is needed that
    differs from the instructed one in the instruction alone.

    Source: Jorgensen et al. 2023, *Improving Activation Steering in Language Models with
    Mean-Centring* (arXiv 2312.03813); *P* is their sample of training data.

    Args:
        cache: Residuals whose instructed side is the target.
        pool: Caches of other prompts, with the same layers; they weigh by their rows. Without one
            the pool is both sides of `cache`, and the direction is the difference of means.

    Raises:
        SteeringError: Other layers in the pool, an empty pool, or nothing to tell it from the
            instructed side.
    """
    if isinstance(pool, ResidualCache):
        pool = [pool]
    caches = [cache] if pool is None else list(pool)
    if not caches:
        raise SteeringError("the pool to centre on is empty; give caches of other prompts, or None")
    for other in caches:
        if not isinstance(other, ResidualCache):
            raise SteeringError(
                f"the pool must be a list of caches; got one with a {type(other).__name__}"
            )
        if other.layers != cache.layers or other.d_model != cache.d_model:
            raise SteeringError(
                f"the pool must hold the cache's layers and width; got {other!r} beside {cache!r}"
            )
    rows = torch.cat([side for one in caches for side in (one.instructed, one.uninstructed)])
    difference = cache.instructed.double().mean(0) - rows.double().mean(0)
    return from_directions(
        cache,
        difference,
        "mean_centred",
        pool_rows=len(rows),
        pool_hashes=[one.metadata.get("data_hash") for one in caches],
    )


# --- linear probe ---


def linear_probe(cache: ResidualCache, regularisation: float = 1.0) -> SteeringVector:
    r"""Weights of a logistic regression that tells instructed from uninstructed residuals.

    .. math:: \min_{w, c} \; \tfrac{\lambda}{2} \|w\|^2 +
              \sum_{i, \pm} \log\bigl(1 + e^{\mp (w \cdot x^\pm_{il} + c)}\bigr),
              \qquad u_l = w / \|w\|

    where *x* is *h* less the mean of both sides, in units of the root mean square of its entries:
    one number a layer, so that :math:`\lambda` weighs alike at every depth and no axis of the
    residual stream is preferred.

    Source: Alain and Bengio 2016 (arXiv 1610.01644) for probes; Li et al. 2023, *Inference-Time
    Intervention* (arXiv 2306.03341) for steering along their weights.

    Args:
        cache: Residuals of both sides.
        regularisation: :math:`\lambda`; what separates is fitted exactly when it is small.

    Raises:
        SteeringError: A regularisation that is not positive, or sides that cannot be told apart.
    """
    regularisation = finite_number("regularisation", regularisation, error=SteeringError)
    if not regularisation > 0:
        raise SteeringError(f"regularisation must be a positive number; got {regularisation}")
    probe = LogisticRegression(C=1 / regularisation, max_iter=1000)
    return _classified(cache, probe, "linear_probe", regularisation=regularisation)


# --- linear discriminant ---


def linear_discriminant(cache: ResidualCache) -> SteeringVector:
    r"""Fisher's linear discriminant, with a shrunk covariance.

    .. math:: u_l \propto \Sigma_l^{-1} (\bar h^+_l - \bar h^-_l), \qquad
              \Sigma = (1 - \gamma) S + \gamma \, \tfrac{\operatorname{tr} S}{d} I

    with *S* the covariance within the two sides (of features in units of their standard deviation)
    and :math:`\gamma` chosen by the lemma of Ledoit and Wolf, as scikit-learn does: there are fewer
    pairs than dimensions, so *S* alone has no inverse.

    Source: Fisher 1936; Ledoit and Wolf 2004 for the shrinkage; Marks and Tegmark 2023
    (arXiv 2310.06824) for the same direction as a probe of language models.

    Args:
        cache: Residuals of both sides. Takes the solution of a ``d_model``-square system a layer.

    Raises:
        SteeringError: Sides that cannot be told apart.
    """
    analysis = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    return _classified(cache, analysis, "linear_discriminant")


def _classified(
    cache: ResidualCache, classifier: Any, estimator: str, **provenance: Any
) -> SteeringVector:
    """The weights of a scikit-learn classifier, fitted at each layer, as directions."""
    labels = np.repeat([1, 0], cache.n_pairs)
    sides = torch.cat([cache.instructed, cache.uninstructed]).double().numpy()
    directions = []
    for layer, rows in zip(cache.layers, sides.transpose(1, 0, 2), strict=True):
        centred = rows - rows.mean(0)
        scale = np.sqrt((centred**2).mean())
        if scale == 0:
            raise SteeringError(
                f"all residuals are the same at layer {layer}; there is nothing to tell apart"
            )
        directions.append(classifier.fit(centred / scale, labels).coef_[0])
    found = torch.from_numpy(np.stack(directions))
    return from_directions(cache, found, estimator, **provenance)


# --- the placebo ---


def random_direction(
    cache: ResidualCache, seed: int = 0, like: SteeringVector | None = None
) -> SteeringVector:
    """The placebo of a vector: random directions with its gaps.

    Directions are uniform on the sphere and independent between layers. Gaps are those of the
    real vector, and each target lies one gap above the mean projection of the
    uninstructed residuals, so ``add`` and ``set_projection`` push as far as the real vector does:
    an effect that the placebo shows as well is an effect of the push, not of the direction.

    Args:
        cache: The residuals the real vector was fitted on.
        seed: Seed of the random directions.
        like: The real vector; the cache's difference of means by default.

    Raises:
        SteeringError: As `difference_of_means`, or the real vector has other layers.
    """
    seed = whole_number("seed", seed, error=SteeringError)
    real = difference_of_means(cache) if like is None else like
    if real.layers != cache.layers or real.d_model != cache.d_model:
        raise SteeringError(f"a placebo needs the layers of {real!r} in its cache; got {cache!r}")
    noise = torch.randn(
        real.directions.shape,
        generator=torch.Generator().manual_seed(seed),
        dtype=torch.float32,  # whatever the user's default: another dtype draws other numbers
    )
    directions = noise / noise.norm(dim=-1, keepdim=True)
    baselines = einsum(directions, cache.uninstructed.mean(0), "layer d, layer d -> layer")
    return SteeringVector(
        directions=directions,
        gaps=real.gaps,
        targets=baselines + real.gaps,
        baselines=baselines,
        layers=real.layers,
        metadata={
            **cache.metadata,
            "estimator": "random_direction",
            "instruction": f"placebo of {real.name}",
            "placebo_seed": seed,
        },
    )


ESTIMATORS: Mapping[str, Estimator] = MappingProxyType(
    {
        "difference_of_means": difference_of_means,
        "pca_of_differences": pca_of_differences,
        "mean_centred": mean_centred,
        "linear_probe": linear_probe,
        "linear_discriminant": linear_discriminant,
    }
)
"""The estimators by name (the placebo is none of them)."""
