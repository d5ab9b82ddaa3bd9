r"""Is a task told from others better than any of them would be? A permutation null over all layers.

If it did not matter which instruction a prompt carries, the runs of one base query could change
their labels. So in each permutation the part of the task is played, block by block, by one of all
the tasks, drawn at random; directions are fitted again and the specific AUROC of every layer is
computed again. Queries of a **block** share the task's phrasing and change labels together, because
their runs are not independent: were they drawn query by query, two phrasings that happen to lie
along one another would count as evidence. Only the **maximum over layers** of each permutation is
kept (Westfall & Young 1993), so

.. math:: p_l = \frac{1 + \#\{b : M_b \ge A_l\}}{B + 1}

is the family-wise adjusted p-value of layer *l*. With *T* tasks and *K* blocks there are
:math:`T^K` arrangements; fewer than some dozens make small p-values impossible.
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Int

from steerlens.attribution.held_out import scores_along

__all__ = ["crossed_scores", "permuted_aurocs", "permuted_labels"]

Array = np.ndarray


def permuted_labels(
    n_tasks: int, blocks: Int[Array, "query"], n_permutations: int, seed: int
) -> Int[Array, "permutation query"]:
    """Which task plays the part of the first on each query; the first row is the truth."""
    _, numbers = np.unique(blocks, return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(n_tasks, size=(n_permutations, int(numbers.max()) + 1))
    drawn[0] = 0
    result: Array = drawn[:, numbers]
    return result


def crossed_scores(
    runs: Float[Array, "task query d"],
    halves: Int[Array, "query"],
    labels: Int[Array, "permutation query"],
) -> Float[Array, "permutation task query"]:
    """Scores of all runs along directions fitted on the other half, on one scale.

    The direction is the mean of the labelled task's runs − the mean of all others', and 0 lies half
    way between (`steerlens.attribution.held_out`).
    """
    n_tasks = len(runs)
    everything = runs.sum(axis=0)
    scores = np.empty((len(labels), *runs.shape[:2]))
    for half in (0, 1):
        fit, test = np.flatnonzero(halves != half), halves == half
        chosen = labels[:, fit]
        own = np.zeros((len(labels), runs.shape[-1]))
        for place, query in enumerate(fit):
            own += runs[chosen[:, place], query]
        own /= len(fit)
        others = (everything[fit].mean(axis=0) - own) / (n_tasks - 1)
        flat = runs[:, test].reshape(1, -1, runs.shape[-1])
        along = scores_along(flat, own - others, (own + others) / 2)[0]
        scores[:, :, test] = along.reshape(len(labels), n_tasks, -1)
    return scores


def permuted_aurocs(
    layers: Iterable[Float[Array, "task query d"]],
    halves: Int[Array, "query"],
    labels: Int[Array, "permutation query"],
) -> Float[Array, "layer permutation"]:
    """Specific AUROC of every layer and permutation; ties have measure zero."""
    n_permutations, n_queries = labels.shape
    aurocs = []
    for runs in layers:
        scores = crossed_scores(runs, halves, labels)
        n_runs = scores.shape[1] * n_queries
        order = scores.reshape(n_permutations, n_runs).argsort(axis=1)
        ranks = np.empty_like(order)
        np.put_along_axis(ranks, order, np.arange(1, n_runs + 1)[None], axis=1)
        own = np.take_along_axis(ranks, labels * n_queries + np.arange(n_queries), axis=1)
        wins = own.sum(axis=1) - n_queries * (n_queries + 1) / 2
        aurocs.append(wins / (n_queries * (n_runs - n_queries)))
    return np.stack(aurocs)
