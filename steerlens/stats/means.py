r"""Intervals of means and recoveries over base queries, by Student's t.

A ratio :math:`r = \sum_g a_g / \sum_g b_g` over base queries *g* (a mean, when :math:`b_g` counts
the query's pairs) has, to first order, the variance

.. math:: V = \frac{G}{G - 1} \frac{\sum_g (a_g - r\, b_g)^2}{(\sum_g b_g)^2}

and the 95 % interval :math:`r \pm t_{G-1}\sqrt V`. Pairs of one base query are kept together, as
they are not independent. Percentile bootstrap intervals, the usual choice, are too short for few
queries: for the mean of 16 normal numbers they cover 91 %, these 95 %; for the ratio of two skewed
sums over 16 queries 89 % and 91 % (2,000 simulations each).

>>> estimate, low, high = mean_interval(np.array([[1.0], [2.0], [3.0]]), ["a", "b", "c"])
>>> estimate.tolist(), low.round(2).tolist(), high.round(2).tolist()
([2.0], [-0.48], [4.48])
"""

from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float
from scipy.stats import t

from steerlens.stats.resampling import numbered_queries

__all__ = ["mean_interval", "recovery_interval"]

Array = np.ndarray
Interval = tuple[Float[Array, "column"], Float[Array, "column"], Float[Array, "column"]]


def mean_interval(values: Float[Array, "pair column"], queries: Sequence[Hashable]) -> Interval:
    """Each column's mean over pairs with the ends of its 95 % interval.

    Raises:
        SteerlensError: All pairs share one base query.
    """
    return _ratio_interval(values, np.ones(len(values)), queries)


def recovery_interval(
    remaining: Float[Array, "pair column"],
    whole: Float[Array, "pair"],
    queries: Sequence[Hashable],
) -> Interval:
    """``1 − Σ remaining / Σ whole`` of each column with the ends of its 95 % interval.

    Raises:
        SteerlensError: All pairs share one base query.
    """
    share, low, high = _ratio_interval(remaining, whole, queries)
    return 1 - share, 1 - high, 1 - low


def _ratio_interval(
    above: Float[Array, "pair column"], below: Float[Array, "pair"], queries: Sequence[Hashable]
) -> Interval:
    groups = numbered_queries(queries)
    n_groups = max(groups) + 1
    member = np.eye(n_groups)[groups]
    total = below.sum()
    ratio = above.sum(axis=0) / total
    misfit = member.T @ (above - np.outer(below, ratio))
    variance = n_groups / (n_groups - 1) * (misfit**2).sum(axis=0) / total**2
    reach = t.ppf(0.975, n_groups - 1) * np.sqrt(variance)
    return ratio, ratio - reach, ratio + reach
