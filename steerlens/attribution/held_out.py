r"""Held-out scores: each run scored along a direction fitted without its base query.

Base queries are dealt into folds, so that no query is on both sides. For each fold the difference
of means :math:`v = \bar h^+ - \bar h^-` is fitted on the pairs of the other folds, and a run *h* of
the fold is scored by

.. math:: s(h) = \frac{v \cdot h - v \cdot m}{\|v\|^2}, \qquad m = \tfrac12 (\bar h^+ + \bar h^-)

with means over the training pairs, so scores of different folds share one scale: 0 is the midpoint
and the training means lie at ±½.

All of it depends on the residuals only through the **products** of runs with pair differences,
:math:`P_{ki} = h_k \cdot (h^+_i - h^-_i)`: with training weights *a* (summing to 1),
:math:`v \cdot h_k = \sum_i a_i P_{ki}` and :math:`\|v\|^2 = a^\top G a`, :math:`G = P^+ - P^-`.
So a thousand resamples or permutations of the pairs cost a thousand products with an *n* × *n*
matrix, whatever the model's width: a resample changes the weights, swapping the sides of a pair
changes the sign of its difference and leaves *m* alone.

>>> runs = np.array([[[1.0, 0.0], [2.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])   # side pair d_model
>>> products(runs).tolist()
[[[0.25, 0.5], [1.25, 2.5]], [[-0.75, -1.5], [-0.75, -1.5]]]
>>> difference_scores(products(runs), [(np.array([0]), np.array([1]))])[:, 0, 1].tolist()
[1.5, -0.5]
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int
from sklearn.model_selection import GroupKFold

from steerlens.activations.cache import ResidualCache
from steerlens.activations.shards import ShardedResiduals
from steerlens.errors import ActivationError, SteerlensError

__all__ = [
    "Folds",
    "Residuals",
    "check_rankable",
    "difference_scores",
    "fold_scores",
    "group_numbers",
    "layer_runs",
    "products",
]

Array = np.ndarray
Residuals = ResidualCache | ShardedResiduals
"""Residuals in memory, or in shards on the disk."""
# Folds differ in size, so their axes have no name.
Folds = Sequence[tuple[Int[Array, "_"], Int[Array, "_"]]]
# A mean difference below this share of the runs' norm is rounding of float32, not a direction.
_MIN_RELATIVE_GAP = 1e-7


def group_numbers(groups: Sequence[int] | Int[Array, "pair"]) -> Int[Array, "pair"]:
    """Base-query numbers as 0, 1, … without gaps."""
    _, numbers = np.unique(np.asarray(groups), return_inverse=True)
    return numbers.reshape(-1)


def check_rankable(cache: Residuals, n_folds: int, seed: int) -> Folds:
    """The folds of a cache's base queries, once it is clear that directions can be fitted.

    Args:
        cache: Residuals of both sides.
        n_folds: Folds to deal the base queries into.
        seed: Seed of the deal.

    Returns:
        Places of the training and of the test pairs of each fold, as scikit-learn's
        ``GroupKFold(n_folds, shuffle=True, random_state=seed)`` deals them.

    Raises:
        SteerlensError: Folds or seed out of range.
        ActivationError: Values that are not finite; fewer base queries than folds, or only one; a
            layer whose residuals are the same in all runs, or with and without the instruction.
    """
    if n_folds < 2:
        raise SteerlensError(f"n_folds must be at least 2 to hold pairs out; got {n_folds}")
    if not 0 <= seed < 2**32:
        raise SteerlensError(f"seed must be between 0 and {2**32 - 1}; got {seed}")
    groups = group_numbers(cache.groups)
    n_groups = int(groups.max()) + 1
    if n_groups < 2:
        raise ActivationError(
            f"all {cache.n_pairs} pairs come from one base query (near-duplicates and repeated "
            "pairs count as one), so none can be held out and nothing can be said about other "
            "queries; a steering vector can still be fitted "
            "(difference_of_means); to rank layers, add pairs of other base queries"
        )
    if n_groups < n_folds:
        raise ActivationError(
            f"{cache.n_pairs} pairs of {n_groups} base queries cannot fill {n_folds} folds, so "
            f"layers cannot be ranked that way; n_folds={n_groups} or fewer can be computed, or "
            f"give pairs of at least {n_folds} base queries"
        )
    _check_layers(cache)
    folds = GroupKFold(n_splits=n_folds, shuffle=True, random_state=seed)
    return list(folds.split(np.zeros(cache.n_pairs), groups=groups))


def _check_layers(cache: Residuals) -> None:
    constant: dict[int, str] = {}
    for layer, runs in zip(cache.layers, layer_runs(cache), strict=True):
        if not np.isfinite(runs).all():
            side, pair = np.argwhere(~np.isfinite(runs))[0, :2]
            raise ActivationError(
                f"layer {layer} holds NaN or infinity, first in the "
                f"{('instructed', 'uninstructed')[side]} run of pair {pair}; no layer is ranked; "
                f"cache again, or rank the others (layers=…) if only this one overflows"
            )
        size = max(float(np.linalg.norm(one, axis=-1).max()) for one in runs)
        means = [one.mean(0, dtype=np.float64) for one in runs]
        if not np.ptp(runs, axis=(0, 1)).any():
            constant[layer] = "is the same in all runs (constant activations)"
        elif np.linalg.norm(means[0] - means[1]) <= _MIN_RELATIVE_GAP * size:
            constant[layer] = "has the same mean with and without the instruction"
    if not constant:
        return
    layer, what = next(iter(constant.items()))
    more = f", and so it is at {len(constant) - 1} more" if len(constant) > 1 else ""
    rest = len(cache.layers) - len(constant)
    advice = f"the other {rest} layers can be ranked: cache them alone (layers=…), or "
    raise ActivationError(
        f"layer {layer} {what}{more}, so no direction can be fitted there; {advice if rest else ''}"
        "check that the pairs differ"
    )


def layer_runs(cache: Residuals) -> Iterator[Float[Array, "side pair d_model"]]:
    """The runs of each layer, instructed side first: in float64, of shards in float32."""
    if isinstance(cache, ShardedResiduals):
        for layer in cache.layers:
            yield cache.runs(layer)
        return
    instructed, uninstructed = cache.instructed.numpy(), cache.uninstructed.numpy()
    for place in range(len(cache.layers)):
        yield np.stack([instructed[:, place], uninstructed[:, place]]).astype(np.float64)


def products(runs: Float[Array, "side pair d_model"]) -> Float[Array, "side run pair"]:
    """Products :math:`P` of each run with each pair's difference.

    Runs are measured from their common mean, which cancels in every score and would otherwise
    cost digits: residual streams lie far from the origin.
    """
    result: Array = (runs - runs.mean(axis=(0, 1))) @ (runs[0] - runs[1]).T
    return result


def difference_scores(
    product: Float[Array, "side run pair"],
    folds: Folds,
    counts: Float[Array, "resample pair"] | None = None,
    signs: Float[Array, "resample pair"] | None = None,
) -> Float[Array, "side resample run"]:
    """Held-out scores *s* along differences of means, for many weightings of the pairs at once.

    Args:
        product: `products` of one layer.
        folds: Training and test pairs; runs in no test fold keep the score 0.
        counts: How often each pair is in each resample's training data; once by default.
        signs: −1 where a pair's sides are swapped in training. Scores keep their places: the first
            row is that of the runs which were truly instructed.

    Returns:
        Scores; 0 where a resample leaves a fold without training pairs or without a direction.
    """
    n_pairs = product.shape[1]
    if counts is None:
        counts = np.ones((1 if signs is None else len(signs), n_pairs))
    signs = np.ones_like(counts) if signs is None else signs
    scores = np.zeros((2, len(counts), n_pairs))
    for train, test in folds:
        drawn = counts[:, train]
        total = drawn.sum(axis=1, keepdims=True)
        share = np.divide(drawn, total, out=np.zeros_like(drawn), where=total > 0)
        scores[:, :, test] = fold_scores(product, train, test, share * signs[:, train], share)
    return scores


def fold_scores(
    product: Float[Array, "side run pair"],
    train: Int[Array, "train"],
    test: Int[Array, "test"],
    weights: Float[Array, "direction train"],
    share: Float[Array, "direction train"],
) -> Float[Array, "side direction test"]:
    """Scores of one fold's runs along weighted sums of the training pairs' differences.

    Args:
        product: `products` of one layer.
        train: Training pairs.
        test: Pairs whose runs are scored.
        weights: Weights of the differences; their sum is the direction *v*.
        share: Weights of the training pairs in the midpoint *m*, summing to 1.

    Returns:
        Scores; 0 for a direction of length 0.
    """
    inner = np.ix_(train, train)
    length = ((weights @ (product[0] - product[1])[inner]) * weights).sum(axis=1)
    midpoint = ((share @ product.mean(axis=0)[inner]) * weights).sum(axis=1)
    along = weights @ product[:, test][:, :, train].transpose(0, 2, 1)
    along -= midpoint[None, :, None]
    scale = length[None, :, None]
    result: Array = np.divide(along, scale, out=np.zeros_like(along), where=scale > 0)
    return result
