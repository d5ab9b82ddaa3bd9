r"""Intervals of means and recoveries over base queries, by Student's t; draws of base queries.

A ratio :math:`r = \sum_g a_g / \sum_g b_g` over *G* base queries *g* (a mean, when :math:`b_g`
counts the query's pairs) has the jackknife variance

.. math:: V = \frac{G - 1}{G} \sum_g (r_{-g} - r)^2, \qquad
          r_{-g} - r = -\frac{a_g - r\, b_g}{\sum_{k \neq g} b_k}

and the 95 % interval :math:`r \pm t_{G-1}\sqrt V`; for a mean that is Student's interval. Pairs of
one base query stay together because they are not independent. The interval is NaN where one query
has all the weight.

>>> estimate, low, high = mean_interval(np.array([[1.0], [2.0], [3.0]]), ["a", "b", "c"])
>>> estimate.tolist(), low.round(2).tolist(), high.round(2).tolist()
([2.0], [-0.48], [4.48])
"""

from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float, UInt16
from scipy.stats import t

from steerlens.errors import SteerlensError

__all__ = [
    "PERCENTILES",
    "best_ratio",
    "jackknife_reach",
    "jackknife_variance",
    "mean_interval",
    "numbered_queries",
    "query_draws",
    "ratio_interval",
    "recovery_interval",
]

Array = np.ndarray
Interval = tuple[Float[Array, "column"], Float[Array, "column"], Float[Array, "column"]]
PERCENTILES = (2.5, 97.5)


def mean_interval(values: Float[Array, "pair column"], queries: Sequence[Hashable]) -> Interval:
    """Mean over pairs of each column, with the ends of its 95 % interval.

    Raises:
        SteerlensError: All pairs share one base query.
    """
    return ratio_interval(values, np.ones(len(values)), queries)


def recovery_interval(
    remaining: Float[Array, "pair column"],
    whole: Float[Array, "pair"],
    queries: Sequence[Hashable],
) -> Interval:
    """``1 − Σ remaining / Σ whole`` of each column, with the ends of its 95 % interval.

    Raises:
        SteerlensError: All pairs share one base query.
    """
    share, low, high = ratio_interval(remaining, whole, queries)
    return 1 - share, 1 - high, 1 - low


def ratio_interval(
    above: Float[Array, "pair column"], below: Float[Array, "pair"], queries: Sequence[Hashable]
) -> Interval:
    """``Σ above / Σ below`` of each column, with the ends of its 95 % interval.

    Raises:
        SteerlensError: All pairs share one base query.
    """
    groups = numbered_queries(queries)
    n_groups = max(groups) + 1
    member = np.eye(n_groups)[groups]
    total = below.sum()
    ratio = above.sum(axis=0) / total
    misfit = member.T @ (above - np.outer(below, ratio))
    rest = (total - member.T @ below)[:, None]
    without = np.divide(misfit, rest, out=np.full(misfit.shape, np.nan), where=rest > 0)
    variance = (n_groups - 1) / n_groups * (without**2).sum(axis=0)
    reach = t.ppf(0.975, n_groups - 1) * np.sqrt(variance)
    return ratio, ratio - reach, ratio + reach


def best_ratio(
    above: Float[Array, "setting pair"],
    below: Float[Array, "pair"],
    queries: Sequence[Hashable],
    seed: int = 0,
) -> tuple[int, float]:
    """The setting with the highest ``Σ above / Σ below``, and that ratio corrected for the choice.

    Choosing is repeated on bootstrap samples of base queries, and the setting chosen is scored on
    the queries that a sample leaves out: what is chosen is not what it is scored on. The first of
    settings that tie is chosen.

    >>> above = np.array([[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 2.0, 2.0], [9.0, 0.0, 0.0, 0.0]])
    >>> chosen, corrected = best_ratio(above, np.full(4, 2.0), list("abcd"))
    >>> chosen, bool(corrected < above[2].mean() / 2)
    (2, True)

    Raises:
        SteerlensError: All pairs share one base query.
    """
    drawn = query_draws(queries, seed=seed).astype(float)
    drawn = drawn[(drawn == 0).any(axis=1)]
    left_out = (drawn == 0).astype(float)
    chosen = ((drawn @ above.T) / (drawn @ below)[:, None]).argmax(axis=1)
    scores = (above[chosen] * left_out).sum(axis=1) / (left_out @ below)
    return int(above.sum(axis=1).argmax()), float(scores.mean())


def jackknife_variance(leave_one: Float[Array, "query *rest"]) -> Float[Array, "*rest"]:
    """Variance of a statistic from its values without each base query in turn."""
    return np.asarray((len(leave_one) - 1) * leave_one.var(axis=0))


def jackknife_reach(leave_one: Float[Array, "query *rest"]) -> Float[Array, "*rest"]:
    """Half the width of the 95 % jackknife interval, by Student's t."""
    t_ppf = t.ppf(0.975, len(leave_one) - 1)
    return np.asarray(t_ppf * np.sqrt(jackknife_variance(leave_one)))


def query_draws(
    queries: Sequence[Hashable], n_resamples: int = 1000, seed: int = 0
) -> UInt16[Array, "resample pair"]:
    """How often each pair occurs when base queries are drawn with replacement.

    >>> counts = query_draws(["rome", "rome", "cats"], n_resamples=4, seed=0)
    >>> bool((counts[:, 0] == counts[:, 1]).all()), counts.shape
    (True, (4, 3))

    Raises:
        SteerlensError: All pairs share one base query.
    """
    groups = numbered_queries(queries)
    n_groups = max(groups) + 1
    rng = np.random.default_rng(seed)
    even = np.full(n_groups, 1 / n_groups)
    counts = np.empty((n_resamples, n_groups), dtype=np.uint16)
    # A hundred at a time: for 20,000 queries a thousand rows of int64 would be 160 MB.
    for start in range(0, n_resamples, 100):
        block = counts[start : start + 100]
        block[:] = rng.multinomial(n_groups, even, size=len(block))
    return counts[:, groups]


def numbered_queries(queries: Sequence[Hashable]) -> list[int]:
    """Base queries as numbers 0, 1, … in the order of their first occurrence.

    Raises:
        SteerlensError: All pairs share one base query.
    """
    numbers: dict[Hashable, int] = {}
    groups = [numbers.setdefault(query, len(numbers)) for query in queries]
    if len(numbers) < 2:
        raise SteerlensError(
            f"all {len(groups)} pairs come from one base query, so nothing can be said about "
            "others; add pairs of other base queries"
        )
    return groups
