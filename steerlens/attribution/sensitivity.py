r"""d′ of an instruction's direction itself, freed of the noise of fitting it.

The d′ of held-out scores is that of a direction fitted on few pairs in a wide space. Noise in the
fit adds variance along it, so it falls short of the d′ along the true difference of means
:math:`\delta`, more so for weak signals, few pairs and wide models: with 64 pairs in 576 dimensions
of unit noise a true d′ of 2 is seen as 0.8. It answers "how well does the vector I have separate
new runs?". This module answers "how well is the instruction separated at this layer?":

.. math:: d' = \frac{\|\delta\|^2}{\sqrt{\delta^\top \Sigma\, \delta}},
          \qquad \Sigma = \tfrac12 (\Sigma^+ + \Sigma^-)

Both parts are estimated without bias by products in which no query meets itself, a form of
cross-validation with every query its own fold (U-statistics). With :math:`d_i` the difference of
pair *i* and :math:`h_k` a run centred on its side, over pairs and runs of different base queries,

.. math:: \widehat{\|\delta\|^2} = \operatorname{mean}_{i \ne j} d_i \cdot d_j, \qquad
          \widehat{\delta^\top \Sigma\, \delta} =
          \operatorname{mean}_{i \ne j \ne k} (h_k \cdot d_i)(h_k \cdot d_j)

The first is the cross-validated squared distance of representational analysis (Walther et al. 2016,
*Reliability of dissimilarity measures for multi-voxel pattern analysis*, NeuroImage 137:188–200).
The second is kept above a ninth of :math:`\operatorname{tr}(\Sigma \Sigma_d)/n`, the variance that
noise in a fit adds: where less than a tenth of the variance along a fitted direction is the
direction's own, the data do not tell its d′, and without the bound pure noise would give any
number. Such layers read low, with wide intervals.

Intervals are delete-one jackknife intervals over base queries (over 64 blocks of queries when there
are more), with Student's *t*. ``analyses/calibration.py`` measures their coverage of a planted d′.

>>> rng = np.random.default_rng(0)
>>> runs = rng.standard_normal((2, 64, 50))                    # side pair d_model, unit noise
>>> runs[0, :, 0] += 2.0
>>> estimate, low, high = sensitivity(products(runs), np.arange(64))
>>> low < 2.0 < high
True
"""

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import t

from steerlens.attribution.held_out import products

__all__ = ["block_members", "products", "sensitivity", "sensitivity_along"]

Array = np.ndarray
# More blocks cost time with their cube and gain nothing: t with 63 degrees of freedom is 2.00.
_MOST_BLOCKS = 64
# Products of three different queries, and a mean of them, need this many.
_FEWEST_BLOCKS = 5
_MIN_SHARE = 1 / 9


def sensitivity(
    product: Float[Array, "side run pair"], groups: Int[Array, "pair"]
) -> tuple[float, float, float]:
    """d′ along the population's difference of means, with the ends of its 95 % interval.

    Args:
        product: `steerlens.attribution.held_out.products` of one layer.
        groups: Base-query number of each pair, 0, 1, …

    Returns:
        Estimate, lower and upper end; NaN with fewer than 5 base queries; infinite, without ends,
        where the runs of each side do not vary.
    """
    member = block_members(groups)
    return sensitivity_along(
        product @ member, member.T @ (product[0] - product[1]) @ member, member
    )


def block_members(groups: Int[Array, "pair"]) -> Float[Array, "pair block"]:
    """Which block of base queries each pair belongs to: 1 in its column, else 0."""
    blocks = groups % _MOST_BLOCKS
    members: Array = np.eye(int(blocks.max()) + 1)[blocks]
    return members


def sensitivity_along(
    along: Float[Array, "side run block"],
    gram: Float[Array, "block block"],
    member: Float[Array, "run block"],
) -> tuple[float, float, float]:
    """`sensitivity` from sums over blocks alone, which stay small with any number of pairs.

    Args:
        along: Products of each run with the sum of each block's differences.
        gram: Products of the blocks' sums of differences with each other.
        member: `block_members`.
    """
    if len(gram) < _FEWEST_BLOCKS:
        return (np.nan, np.nan, np.nan)
    n_blocks = len(gram)
    values = _with_and_without(along, gram, member)
    estimate, leave_one = values[0], values[1:]
    if not np.isfinite(values).all():
        return (float(estimate), np.nan, np.nan)
    spread = (n_blocks - 1) / n_blocks * ((leave_one - leave_one.mean()) ** 2).sum()
    reach = t.ppf(0.975, n_blocks - 1) * np.sqrt(spread)
    return (float(estimate), float(estimate - reach), float(estimate + reach))


def _with_and_without(
    along: Float[Array, "side run block"],
    gram: Float[Array, "block block"],
    member: Float[Array, "run block"],
) -> Float[Array, "deletion"]:
    """d′ of all blocks, then without each block in turn."""
    n_blocks = member.shape[1]
    sizes = member.sum(axis=0)
    keep = np.concatenate([np.ones((1, n_blocks)), 1 - np.eye(n_blocks)])
    different = 1 - np.eye(n_blocks)
    gram = gram * different
    n_products = ((keep @ (np.outer(sizes, sizes) * different)) * keep).sum(axis=1)
    squared_gap = ((keep @ gram) * keep).sum(axis=1) / n_products

    covariance = _covariances(along, member)
    same = (covariance.diagonal(axis1=1, axis2=2) * keep).sum(axis=1)
    # keepᵀ C keep of each deletion, its diagonal taken out.
    every = np.matmul(np.matmul(covariance, keep[:, :, None])[:, :, 0][:, None], keep[:, :, None])
    own = (every[:, 0, 0] - same) / n_products
    floor = _MIN_SHARE * same / (keep @ sizes) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        result: Array = squared_gap / np.sqrt(np.maximum(own, floor))
    return result


def _covariances(
    along: Float[Array, "side run block"], member: Float[Array, "run block"]
) -> Float[Array, "deletion block block"]:
    """Covariance over runs of their products with two blocks' differences, mean of both sides.

    The runs of the two blocks are left out, and those of the deleted block: of none in the first
    place, then of each block in turn.
    """
    sizes = member.sum(axis=0)
    n_blocks = len(sizes)
    index = np.arange(n_blocks)
    # Sums over the runs of block h of their products with blocks i and j.
    block_of = member.argmax(axis=1)
    moments = np.zeros((n_blocks, n_blocks, n_blocks))
    for block in index:
        for runs in along[:, block_of == block]:
            moments[block] += runs.T @ runs / 2
    moments[index, index] = 0.0
    moments[index, :, index] = 0.0
    kept = 1 - _deletions(np.eye(n_blocks))
    left = (sizes.sum() - _deletions(sizes))[:, None, None] - (
        kept[:, :, None] * (sizes[:, None] * (1 - np.eye(n_blocks))) + kept[:, None] * sizes
    )
    second = moments.sum(axis=0) - _deletions(moments)
    for side in along:
        sums = member.T @ side
        np.fill_diagonal(sums, 0.0)
        first = (sums.sum(axis=0) - _deletions(sums))[:, :, None] - kept[:, None] * sums.T
        second -= first * first.transpose(0, 2, 1) / (2 * left)
    second /= left - 1
    result: Array = second
    return result


def _deletions(by_block: Float[Array, "block ..."]) -> Float[Array, "deletion ..."]:
    """What each deletion takes away: nothing, then each block's own."""
    return np.concatenate([np.zeros_like(by_block[:1]), by_block])
