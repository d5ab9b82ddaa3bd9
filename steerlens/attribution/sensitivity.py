r"""d′ along an instruction's true direction, freed of the noise of fitting it.

The d′ of held-out scores is that of a direction fitted on few pairs in a wide space. Noise in the
fit adds variance along it, so it falls short of the d′ along the true difference of means
:math:`\delta`: with 64 pairs in 576 dimensions of unit noise a true d′ of 2 is seen as 0.8. It
answers "how well does the vector I have separate new runs?". This module answers "how well is the
instruction separated at this layer?":

.. math:: d' = \frac{\|\delta\|^2}{\sqrt{\delta^\top \Sigma\, \delta}},
          \qquad \Sigma = \tfrac12 (\Sigma^+ + \Sigma^-)

Both parts are estimated without bias by products in which no query meets itself (U-statistics).
With :math:`d_i` the difference of pair *i* and :math:`h_k` a run centred on its side, over pairs
and runs of different base queries,

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
>>> estimate, low, high = sensitivity(runs, np.arange(64))
>>> low < 2.0 < high
True
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from steerlens.stats.queries import jackknife_reach

__all__ = ["sensitivity"]

Array = np.ndarray
# More blocks cost time with their cube and gain nothing: t with 63 degrees of freedom is 2.00.
_MOST_BLOCKS = 64
# Products of three different queries, and a mean of them, need this many.
_FEWEST_BLOCKS = 5
_MIN_SHARE = 1 / 9


def sensitivity(
    runs: Float[Array, "side pair d"], groups: Int[Array, "pair"]
) -> tuple[float, float, float]:
    """d′ along the population's difference of means, with the ends of its 95 % interval.

    Args:
        runs: Runs of one layer, instructed side first.
        groups: Base-query number of each pair, 0, 1, …

    Returns:
        Estimate, lower and upper end; NaN with fewer than 5 base queries; infinite, without ends,
        where the runs of each side do not vary.
    """
    member = np.eye(min(int(groups.max()) + 1, _MOST_BLOCKS))[groups % _MOST_BLOCKS]
    n_blocks = member.shape[1]
    if n_blocks < _FEWEST_BLOCKS:
        return (np.nan, np.nan, np.nan)
    differences = member.T @ (runs[0] - runs[1])
    along = (runs - runs.mean(axis=(0, 1))) @ differences.T
    sums = _Sums.of(along, differences @ differences.T, member)
    estimate = sums.d_prime()
    leave_one = np.array([sums.d_prime(without=block) for block in range(n_blocks)])
    if not np.isfinite([estimate, *leave_one]).all():
        return (estimate, np.nan, np.nan)
    reach = float(jackknife_reach(leave_one))
    return (estimate, estimate - reach, estimate + reach)


@dataclass(frozen=True, eq=False)
class _Sums:
    """Sums over blocks of base queries, from which d′ follows with or without any block.

    Attributes:
        sizes: Pairs in each block.
        gram: Products of two blocks' summed differences.
        first: Sum, over the runs of block *h* on each side, of their products with block *i*'s
            summed difference; 0 for a block's runs with its own difference.
        second: The same of products with blocks *i* and *j*, mean of both sides.
        total: `second` over all blocks.
    """

    sizes: Float[Array, "block"]
    gram: Float[Array, "block block"]
    first: Float[Array, "side block block"]
    second: Float[Array, "block block block"]
    total: Float[Array, "block block"]

    @classmethod
    def of(
        cls,
        along: Float[Array, "side run block"],
        gram: Float[Array, "block block"],
        member: Float[Array, "run block"],
    ) -> "_Sums":
        index = np.arange(member.shape[1])
        first = member.T @ along
        first[:, index, index] = 0.0
        blocks = [np.concatenate(along[:, member[:, block] > 0]) for block in index]
        second = np.stack([runs.T @ runs / 2 for runs in blocks])
        second[index, index] = 0.0
        second[index, :, index] = 0.0
        return cls(member.sum(axis=0), gram, first, second, second.sum(axis=0))

    def d_prime(self, without: int | None = None) -> float:
        """d′ of all blocks, or of all but one."""
        keep = np.ones(len(self.sizes))
        keep[[] if without is None else without] = 0.0
        different = 1 - np.eye(len(keep))
        # Covariance over runs of their products with two blocks, whose own runs are left out.
        left = self.sizes * keep
        n_runs = left.sum() - left[:, None] - left * different
        covariance = self.total - (0.0 if without is None else self.second[without])
        for side in self.first:
            total = (keep @ side)[:, None] - side.T
            covariance -= total * total.T / (2 * n_runs)
        covariance /= n_runs - 1
        pairs = np.outer(keep, keep) * different
        n_products = self.sizes @ pairs @ self.sizes
        squared_gap = (self.gram * pairs).sum() / n_products
        variance = (covariance * pairs).sum() / n_products
        floor = _MIN_SHARE * (np.diagonal(covariance) @ keep) / (self.sizes @ keep) ** 2
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(squared_gap / np.sqrt(max(variance, floor)))
