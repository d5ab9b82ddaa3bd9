r"""How sure held-out scores are: AUROC, d′ and balanced accuracy with 95 % intervals.

From the held-out scores of a layer (`steerlens.attribution.held_out`):

* **AUROC**: probability that a random instructed run scores above a random uninstructed one;
  ties count half.
* **d′** = (mean⁺ − mean⁻) / √((var⁺ + var⁻)/2), the distance in standard deviations.
* **balanced accuracy** of the rule *s* > 0: the mean of the shares of both sides that are right.

**Variance.** A statistic's variance :math:`\hat V` is the delete-one jackknife over base queries
with the fitted directions kept. That is not all of it: two queries in different folds each help to
fit the direction the other is scored along, so the noise they share enters twice. For the mean of
the projections this adds exactly the share :math:`\rho` of the scores' variance that comes from
noise in the fitted direction, and

.. math:: V = (1 + \rho)\, \hat V, \qquad
          \rho = \frac{\zeta / n_\mathrm{train}}{\zeta / n_\mathrm{train} + \lambda}

where the products :math:`d_g \cdot d_h` of two queries' differences have variance :math:`\lambda`
through their one-query means and :math:`\zeta` beyond (the two terms of Hoeffding's decomposition).
:math:`\rho` is 0 for a strong signal in few dimensions and 1 without a signal; leaving it out makes
95 % intervals of pure noise cover 80 to 90 %.

**Intervals** keep their coverage at perfect separation, where a bootstrap of the scores would
claim certainty: AUROC by Newcombe's method 5 (Newcombe 2006, *Confidence intervals for an effect
size measure based on the Mann-Whitney statistic, part 2*, Statistics in Medicine 25:559–573: the
values whose Hanley-McNeil variance puts the estimate within 1.96 standard errors), accuracy by
Wilson's, both with the number of queries that would give variance *V*; d′ by Student's *t* with one
degree of freedom less than queries. They cover the mean performance, on new queries, of the
directions fitted on the folds. ``analyses/calibration.py`` measures the coverage.

>>> scores = np.stack([np.arange(20.0) + 20, np.arange(20.0)])
>>> measure = held_out_measures(scores, np.arange(20), fit_noise=0.0)
>>> measure["auroc"].round(3).tolist()                          # estimate, low, high
[1.0, 0.899, 1.0]
"""

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import norm, t

__all__ = ["auroc_of", "d_prime_of", "fit_noise_share", "held_out_measures", "newcombe_auroc"]

Array = np.ndarray
Measure = Float[Array, "3"]
_Z = float(norm.ppf(0.975))
_BISECTIONS = 60
# How many times the number of queries the effective sample size may be: runs of a pair that vary
# together make comparisons more precise, but a small variance may also be luck.
_MOST_GAIN = 4.0


def held_out_measures(
    scores: Float[Array, "side pair"], groups: Int[Array, "pair"], fit_noise: float
) -> dict[str, Measure]:
    """Estimate, lower and upper end for ``auroc``, ``d_prime`` and ``accuracy``.

    Args:
        scores: Held-out scores, instructed side first; 0 is the decision threshold.
        groups: Base-query number of each pair, 0, 1, …
        fit_noise: :math:`\\rho` of the module's text; see `fit_noise_share`.

    Returns:
        Measures; ends are NaN where one base query leaves nothing to compare.
    """
    n_groups = int(groups.max()) + 1
    variances = _jackknife_variances(scores, groups, n_groups) * (1 + fit_noise)
    ones = np.ones((1, scores.shape[1]))
    auroc = float(auroc_of(scores[0][None], scores[1][None], ones)[0])
    d_prime = float(d_prime_of(scores[:, None], ones)[0])
    accuracy = float(_right(scores).mean())
    reach = t.ppf(0.975, max(n_groups - 1, 1)) * np.sqrt(variances[1])
    return {
        "auroc": np.array([auroc, *newcombe_auroc(auroc, float(variances[0]), n_groups)]),
        "d_prime": np.array([d_prime, d_prime - reach, d_prime + reach]),
        "accuracy": np.array([accuracy, *_wilson(accuracy, float(variances[2]), n_groups)]),
    }


def auroc_of(
    plus: Float[Array, "resample pair"],
    minus: Float[Array, "resample pair"],
    counts: Float[Array, "resample pair"],
) -> Float[Array, "resample"]:
    """AUROC of each resample, each pair counted so often; ties count half."""
    below = np.zeros(len(plus))
    both = np.concatenate([minus, plus], axis=1)
    weights_minus = np.concatenate([counts, np.zeros_like(counts)], axis=1)
    weights_plus = np.concatenate([np.zeros_like(counts), counts], axis=1)
    # A stable sort puts ties in the order given: once minus first, once plus first. The mean of
    # the two orders counts a tie half.
    for flip in (False, True):
        pieces = [both, weights_minus, weights_plus]
        scores, light, heavy = [piece[:, ::-1] for piece in pieces] if flip else pieces
        order = np.argsort(scores, axis=1, kind="stable")
        cumulative = np.take_along_axis(light, order, axis=1).cumsum(axis=1)
        below += (np.take_along_axis(heavy, order, axis=1) * cumulative).sum(axis=1) / 2
    result: Array = below / counts.sum(axis=1) ** 2
    return result


def d_prime_of(
    scores: Float[Array, "side resample pair"], counts: Float[Array, "resample pair"]
) -> Float[Array, "resample"]:
    """d′ of each resample, each pair counted so often."""
    total = counts.sum(axis=1)
    mean = (scores * counts).sum(axis=-1) / total
    square = (scores**2 * counts).sum(axis=-1) / total
    # Counts are frequencies, so the unbiased divisor is their sum less one.
    variance = np.maximum(square - mean**2, 0.0) * total / np.maximum(total - 1, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        result: Array = (mean[0] - mean[1]) / np.sqrt(variance.mean(axis=0))
    return result


def fit_noise_share(
    gram: Float[Array, "pair pair"], groups: Int[Array, "pair"], n_folds: int
) -> float:
    """:math:`\\rho` of the module's text: the share of the scores' variance due to fitting.

    Args:
        gram: Products of the pairs' differences with each other.
        groups: Base-query number of each pair, 0, 1, …
        n_folds: Folds; a direction is fitted on all queries but those of one fold.
    """
    member = np.eye(int(groups.max()) + 1)[groups]
    member /= member.sum(axis=0)
    kernel: Array = member.T @ gram @ member
    n = len(kernel)
    if n < 4:
        return 1.0
    np.fill_diagonal(kernel, 0.0)
    means = kernel.sum(axis=1) / (n - 1)
    rest = kernel - means[:, None] - means[None, :] + kernel.sum() / (n * (n - 1))
    np.fill_diagonal(rest, 0.0)
    beyond = float((rest**2).sum()) / ((n - 1) * (n - 2))
    through_means = max(float(means.var(ddof=1)) - beyond / (n - 1), 0.0)
    noise = beyond * n_folds / (n * (n_folds - 1))
    return float(noise / (noise + through_means)) if noise > 0 else 0.0


def _right(scores: Float[Array, "side pair"]) -> Float[Array, "pair"]:
    """Share of the pair's two runs that the rule gets right."""
    right: Array = ((scores[0] > 0).astype(np.float64) + (scores[1] < 0)) / 2
    return right


def _jackknife_variances(
    scores: Float[Array, "side pair"], groups: Int[Array, "pair"], n_groups: int
) -> Float[Array, "3"]:
    """Jackknife variances over base queries of AUROC, d′ and accuracy, directions kept."""
    size = np.bincount(groups, minlength=n_groups)
    left = len(groups) - size

    def without(values: Float[Array, "pair"]) -> Float[Array, "group"]:
        own: Array = np.bincount(groups, weights=values, minlength=n_groups)
        rest: Array = values.sum() - own
        return rest

    # Wins of each run over all of the other side, from ranks: no table of pairs by pairs.
    plus, minus = scores
    won = _below(minus, plus)
    lost = len(plus) - _below(plus, minus)
    within = _wins_within(scores, groups, size)
    auroc = (without(won) - (lost.sum() - without(lost)) + within) / left**2
    mean = np.stack([without(side) for side in scores]) / left
    square = np.stack([without(side**2) for side in scores]) / left
    variance = np.maximum(square - mean**2, 0.0) * left / np.maximum(left - 1, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        d_prime = (mean[0] - mean[1]) / np.sqrt(variance.mean(axis=0))
    accuracy = without(_right(scores)) / left
    leave_one = np.stack([auroc, d_prime, accuracy])
    # d′ of runs that do not vary is infinite; its variance is then NaN, and so are its ends.
    with np.errstate(invalid="ignore"):
        centred = leave_one - leave_one.mean(axis=1, keepdims=True)
        result: Array = (n_groups - 1) / n_groups * (centred**2).sum(axis=1)
    return result


def _below(values: Float[Array, "pair"], of: Float[Array, "pair"]) -> Float[Array, "pair"]:
    """How many of `values` lie below each entry of `of`; ties count half."""
    ordered = np.sort(values)
    sides: list[Array] = [np.searchsorted(ordered, of, side) for side in ("left", "right")]
    both: Array = (sides[0] + sides[1]) / 2
    return both


def _wins_within(
    scores: Float[Array, "side pair"], groups: Int[Array, "pair"], size: Int[Array, "group"]
) -> Float[Array, "group"]:
    """Wins of each base query's instructed runs over its own uninstructed ones."""
    order = np.argsort(groups, kind="stable")
    starts = np.concatenate([[0], size.cumsum()[:-1]])
    wins = np.zeros(len(size))
    for n in np.unique(size):
        same = np.flatnonzero(size == n)
        plus, minus = scores[:, order[starts[same][:, None] + np.arange(n)]]
        # One run at a time against the query's others: never more than a column a query.
        for i in range(n):
            one = plus[:, i, None]
            wins[same] += ((one > minus) + 0.5 * (one == minus)).sum(axis=1)
    return wins


def _hanley_mcneil(auroc: float, n: float) -> float:
    """Variance of the AUROC of `n` runs a side (Hanley & McNeil 1982, Radiology 143:29–36)."""
    above_two, below_two = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    return (auroc * (1 - auroc) + (n - 1) * (above_two + below_two - 2 * auroc**2)) / n**2


def newcombe_auroc(auroc: float, variance: float, n_queries: int) -> tuple[float, float]:
    """Newcombe's interval (method 5) with the sample size that would give `variance`.

    At perfect separation the variance is unknown and the number of base queries is used.

    >>> [round(end, 3) for end in newcombe_auroc(1.0, 0.0, 64)]
    [0.969, 1.0]
    """
    edge = 0.5 / n_queries**2
    inside = min(max(auroc, edge), 1 - edge)
    size = float(n_queries)
    if variance > 0:
        size *= _hanley_mcneil(inside, size) / variance
    # Near the ends the jackknife sees too few errors to tell a variance; never trust it beyond
    # the number of queries there.
    near_end = not 1 / n_queries <= auroc <= 1 - 1 / n_queries
    most = (1.0 if near_end else _MOST_GAIN) * n_queries
    size = min(max(size, 2.0), most)

    def outermost(end: float) -> float:
        """Bisection for the value farthest towards `end` that the estimate does not refute."""
        inner, outer = auroc, end
        for _ in range(_BISECTIONS):
            middle = (inner + outer) / 2
            if (auroc - middle) ** 2 <= _Z**2 * _hanley_mcneil(middle, size):
                inner = middle
            else:
                outer = middle
        return inner

    low = 0.0 if auroc == 0 else outermost(0.0)
    high = 1.0 if auroc == 1 else outermost(1.0)
    return low, high


def _wilson(rate: float, variance: float, n_queries: int) -> tuple[float, float]:
    """Wilson's interval with the sample size that would give `variance`."""
    size = float(n_queries)
    if variance > 0 and 0 < rate < 1:
        size = min(max(rate * (1 - rate) / variance, 2.0), _MOST_GAIN * n_queries)
    centre = (rate + _Z**2 / (2 * size)) / (1 + _Z**2 / size)
    reach = _Z * np.sqrt(rate * (1 - rate) / size + _Z**2 / (4 * size**2)) / (1 + _Z**2 / size)
    return float(max(centre - reach, 0.0)), float(min(centre + reach, 1.0))
