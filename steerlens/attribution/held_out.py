r"""Held-out scores: each run is scored along a direction fitted without its base query.

Base queries are dealt into folds, so that no query is on both sides. For each fold the difference
of means :math:`v = \bar h^+ - \bar h^-` is fitted on the pairs of the other folds, and a run *h* of
the fold is scored by

.. math:: s(h) = \frac{v \cdot h - v \cdot m}{\|v\|^2}, \qquad m = \tfrac12 (\bar h^+ + \bar h^-)

with means over the training pairs, so scores of different folds share one scale: 0 is the midpoint
and the training means lie at ±½.

A resample of the pairs changes their weights in the means; swapping the sides of a pair changes the
sign of its difference and leaves *m* alone. So a thousand resamples or permutations are a few
matrix products. Scores depend only on inner products of runs, and `layer_runs` gives runs as
coordinates in their own span where that is smaller than the residual stream.

>>> runs = np.array([[[1.0, 0.0], [2.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])   # side pair d_model
>>> folds = [(np.array([0]), np.array([1])), (np.array([1]), np.array([0]))]
>>> difference_scores(runs, folds)[:, 0, 1].tolist()
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
    "centred",
    "check_rankable",
    "difference_scores",
    "group_numbers",
    "in_span",
    "layer_runs",
    "raw_runs",
    "scores_along",
]

Array = np.ndarray
Runs = Float[Array, "side pair d"]
Residuals = ResidualCache | ShardedResiduals
"""Residuals in memory, or in shards on disk."""
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

    Returns:
        Indices of the training and of the test pairs of each fold, as scikit-learn's
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
    for layer, runs in zip(cache.layers, raw_runs(cache), strict=True):
        if not np.isfinite(runs).all():
            side, pair = np.argwhere(~np.isfinite(runs))[0, :2]
            raise ActivationError(
                f"layer {layer} holds NaN or infinity, first in the "
                f"{('instructed', 'uninstructed')[side]} run of pair {pair}; no layer is ranked; "
                f"cache again, or rank the others (layers=…) if only this one overflows"
            )
        size = float(np.linalg.norm(runs, axis=-1).max())
        means = runs.mean(axis=1, dtype=np.float64)
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


def raw_runs(cache: Residuals) -> Iterator[Float[Array, "side pair d_model"]]:
    """The runs of each layer in float32, instructed side first."""
    if isinstance(cache, ShardedResiduals):
        yield from map(cache.runs, cache.layers)
    else:
        instructed, uninstructed = cache.instructed.numpy(), cache.uninstructed.numpy()
        for index in range(len(cache.layers)):
            yield np.stack([instructed[:, index], uninstructed[:, index]])


def layer_runs(cache: Residuals, span: bool = True) -> Iterator[Runs]:
    """The runs of each layer in float64, instructed side first; see `centred`.

    Args:
        cache: Residuals of both sides.
        span: Give coordinates in the span of the runs where that is smaller.
    """
    for runs in raw_runs(cache):
        yield in_span(centred(runs)) if span else centred(runs)


def centred(runs: Runs) -> Runs:
    """The runs from their common mean, in float64.

    The mean cancels in every score and would cost digits: residual streams lie far from the origin.
    """
    result: Array = runs - runs.mean(axis=(0, 1), dtype=np.float64)
    return result


def in_span(runs: Runs) -> Float[Array, "side pair coordinate"]:
    """The runs in an orthonormal basis of their span, where it is smaller: same inner products."""
    _, n_pairs, width = runs.shape
    if 2 * n_pairs >= width:
        return runs
    basis, _ = np.linalg.qr(runs.reshape(-1, width).T)
    result: Array = runs @ basis
    return result


def difference_scores(
    runs: Runs,
    folds: Folds,
    counts: Float[Array, "resample pair"] | None = None,
    signs: Float[Array, "resample pair"] | None = None,
) -> Float[Array, "side resample run"]:
    """Held-out scores *s* along differences of means, for many weightings of the pairs at once.

    Args:
        runs: Runs of one layer, instructed side first.
        folds: Training and test pairs; each pair is held out in one fold.
        counts: How often each pair is in each resample's training data; once by default.
        signs: −1 where a pair's sides are swapped in training. Scores keep their places: the first
            row is that of the runs which were truly instructed.

    Returns:
        Scores; 0 where a resample leaves a fold without training pairs or without a direction.
    """
    n_pairs = runs.shape[1]
    if counts is None:
        counts = np.ones((1 if signs is None else len(signs), n_pairs))
    signs = np.ones_like(counts) if signs is None else signs
    differences, midpoints = runs[0] - runs[1], (runs[0] + runs[1]) / 2
    weights = counts * signs
    total = counts.sum(axis=1, keepdims=True)
    direction, midpoint = weights @ differences, counts @ midpoints
    scores = np.zeros((2, len(counts), n_pairs))
    for _, test in folds:
        # Each pair is held out once, so the training pairs are all but those of this fold.
        n_train = total - counts[:, test].sum(axis=1, keepdims=True)
        share = np.divide(1.0, n_train, out=np.zeros_like(n_train), where=n_train > 0)
        fitted = (direction - weights[:, test] @ differences[test]) * share
        middle = (midpoint - counts[:, test] @ midpoints[test]) * share
        scores[:, :, test] = scores_along(runs[:, test], fitted, middle)
    return scores


def scores_along(
    runs: Float[Array, "side run d"],
    directions: Float[Array, "direction d"],
    midpoints: Float[Array, "direction d"],
) -> Float[Array, "side direction run"]:
    """Scores *s* of runs along directions; 0 along a direction of length 0."""
    along = directions @ runs.transpose(0, 2, 1)
    along -= (directions * midpoints).sum(axis=1)[:, None]
    length = (directions**2).sum(axis=1)[:, None]
    result: Array = np.divide(along, length, out=np.zeros_like(along), where=length > 0)
    return result
