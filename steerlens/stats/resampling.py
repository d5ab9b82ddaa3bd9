"""Bootstrap over base queries: how much a number would move with other pairs.

Pairs of one base query are not independent, so whole queries are drawn with replacement. A draw is
a row of counts, how often each pair is in it; statistics of a resample are then products with
counts, without copying the values. Where a statistic is a mean or a ratio of means,
`steerlens.stats.means` needs no draws and covers better.

>>> counts = query_draws(["rome", "rome", "cats"], n_resamples=4, seed=0)
>>> bool((counts[:, 0] == counts[:, 1]).all()), counts.shape
(True, (4, 3))
"""

from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float

from steerlens.errors import SteerlensError

__all__ = ["INTERVAL", "N_RESAMPLES", "numbered_queries", "query_draws"]

INTERVAL = (2.5, 97.5)
N_RESAMPLES = 1000
Array = np.ndarray


def query_draws(
    queries: Sequence[Hashable], n_resamples: int = N_RESAMPLES, seed: int = 0
) -> Float[Array, "resample pair"]:
    """How often each pair occurs when base queries are drawn with replacement.

    Args:
        queries: The base query (or its number) of each pair.
        n_resamples: Resamples.
        seed: Seed of the draws.

    Raises:
        SteerlensError: All pairs share one base query.
    """
    groups = numbered_queries(queries)
    n_groups = max(groups) + 1
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n_resamples)
    drawn: Array = counts[:, groups].astype(np.float64)
    return drawn


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
