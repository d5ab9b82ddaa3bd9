"""Directions from means and principal axes of the two sides, from you, and at random."""

from collections.abc import Sequence
from typing import Any

import torch
from einops import einsum
from torch import Tensor

from steerlens.activations.cache import ResidualCache
from steerlens.errors import SteeringError
from steerlens.errors.arguments import whole_number
from steerlens.vectors.vector import SteeringVector

__all__ = [
    "difference_of_means",
    "from_directions",
    "mean_centred",
    "pca_of_differences",
    "random_direction",
]

# A mean difference this small, relative to the residual norm, is rounding.
_MIN_RELATIVE_GAP = 1e-7


def from_directions(
    cache: ResidualCache,
    directions: Tensor,
    estimator: str = "from_directions",
    **provenance: Any,
) -> SteeringVector:
    """A vector along given directions, pointing towards the instructed side.

    Args:
        cache: Both sides, on which gaps, targets and baselines are measured.
        directions: One for each cached layer, ``[layer d_model]``, of any length and sign.
        estimator: What to call the way they were found.
        provenance: More entries for the vector's metadata.

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
    raw = directions.detach().to("cpu", torch.float64)
    # Bring each near 1 by a power of two, which rounds nothing: its square may not fit float64.
    _, exponents = torch.frexp(raw.abs().amax(dim=-1, keepdim=True))
    raw = raw * torch.exp2(-exponents.double())
    norms = raw.norm(dim=-1)
    usable = torch.isfinite(norms) & (norms > 0)
    if not bool(usable.all()):
        layer = cache.layers[int((~usable).nonzero()[0])]
        raise SteeringError(f"the direction at layer {layer} is zero, or not finite")
    instructed = cache.instructed.double().mean(0)
    uninstructed = cache.uninstructed.double().mean(0)
    units = raw / norms[:, None]
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


def difference_of_means(cache: ResidualCache) -> SteeringVector:
    r"""Difference of the mean instructed and mean uninstructed residual, layer by layer.

    .. math:: v_l = \bar h^+_l - \bar h^-_l, \qquad u_l = v_l / \|v_l\|, \qquad g_l = \|v_l\|

    Source: Stolfo et al. 2025, §2.2 (arXiv 2410.12877), at the last token of the prompt. With
    ``response_mean`` it is contrastive activation addition (Rimsky et al. 2024, arXiv 2312.06681)
    averaged over the answer.

    Raises:
        SteeringError: The two sides do not differ at some layer.
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


def mean_centred(
    cache: ResidualCache, pool: Sequence[ResidualCache] | None = None
) -> SteeringVector:
    r"""Instructed mean, centred on the mean of a pool P of other activations.

    .. math:: v_l = \bar h^+_l - \frac{1}{|P|} \sum_{h \in P} h_l

    Source: Jorgensen et al. 2023, *Improving Activation Steering in Language Models with
    Mean-Centring* (arXiv 2312.03813), where P is a sample of training data.

    Args:
        cache: Residuals whose instructed side is the target.
        pool: Caches of other prompts with the same layers, both sides used, weighted by their
            rows. By default both sides of `cache`: then the direction is the difference of means.

    Raises:
        SteeringError: Other layers in the pool, an empty pool, or a pool with the mean of the
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
    rows = torch.cat([side for other in caches for side in (other.instructed, other.uninstructed)])
    difference = cache.instructed.double().mean(0) - rows.double().mean(0)
    hashes = [other.metadata.get("data_hash") for other in caches]
    return from_directions(
        cache, difference, "mean_centred", pool_rows=len(rows), pool_hashes=hashes
    )


def pca_of_differences(cache: ResidualCache) -> SteeringVector:
    r"""The axis along which the differences of pairs are largest.

    .. math:: u_l = \arg\max_{\|u\| = 1} \sum_i \bigl(u \cdot (h^+_{il} - h^-_{il})\bigr)^2

    The differences are *not* centred, which would remove their mean. So this is the first principal
    component of the differences in both signs.

    Source: Zou et al. 2023, *Representation Engineering* (arXiv 2310.01405, appendix C.1), with
    differences of random pairs, whose mean is near zero anyway.

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


def random_direction(
    cache: ResidualCache, seed: int = 0, like: SteeringVector | None = None
) -> SteeringVector:
    """Random directions, uniform on the sphere, with the gaps of a vector.

    The placebo: each target lies one gap above the mean projection of the uninstructed residuals,
    so ``add`` and ``set_projection`` push as far as the vector does. An effect that it shows as
    well is an effect of the push, not of the direction.

    Args:
        cache: The residuals the vector was fitted on.
        seed: Seed of the random directions.
        like: The vector; the cache's difference of means by default.

    Raises:
        SteeringError: As `difference_of_means`, or the vector has other layers.
    """
    seed = whole_number("seed", seed, error=SteeringError)
    vector = difference_of_means(cache) if like is None else like
    if vector.layers != cache.layers or vector.d_model != cache.d_model:
        raise SteeringError(f"a placebo needs the layers of {vector!r} in its cache; got {cache!r}")
    # float32 whatever the user's default: another dtype draws other numbers.
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(vector.directions.shape, generator=generator, dtype=torch.float32)
    directions = noise / noise.norm(dim=-1, keepdim=True)
    baselines = einsum(directions, cache.uninstructed.mean(0), "layer d, layer d -> layer")
    return SteeringVector(
        directions=directions,
        gaps=vector.gaps,
        targets=baselines + vector.gaps,
        baselines=baselines,
        layers=vector.layers,
        metadata={
            **cache.metadata,
            "estimator": "random_direction",
            "instruction": f"placebo of {vector.name}",
            "placebo_seed": seed,
        },
    )
