r"""AUROC, d′ and balanced accuracy of held-out scores, with 95 % intervals.

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
from jaxtyping import Float, Int, Num
from scipy.sparse import csr_array
from scipy.stats import rankdata, t

from steerlens.stats.queries import jackknife_variance
from steerlens.stats.rates import Z, score_interval

__all__ = [
    "auroc_of",
    "d_prime_of",
    "fit_noise_share",
    "held_out_measures",
    "newcombe_auroc",
    "query_sums",
]

Array = np.ndarray
Measure = Float[Array, "3"]
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
    # d′ of runs that do not vary is infinite; its variance is then NaN, and so are its ends.
    with np.errstate(divide="ignore", invalid="ignore"):
        variances = jackknife_variance(_leave_one_out(scores, groups, n_groups)) * (1 + fit_noise)
    once = np.ones((1, scores.shape[1]))
    auroc = float(auroc_of(scores[0][None], scores[1][None], once)[0])
    d_prime = float(d_prime_of(scores[:, None], once)[0])
    accuracy = float(_correct(scores).mean())
    reach = t.ppf(0.975, max(n_groups - 1, 1)) * np.sqrt(variances[1])
    return {
        "auroc": np.array([auroc, *newcombe_auroc(auroc, float(variances[0]), n_groups)]),
        "d_prime": np.array([d_prime, d_prime - reach, d_prime + reach]),
        "accuracy": _accuracy_interval(accuracy, float(variances[2]), n_groups),
    }


def auroc_of(
    plus: Float[Array, "resample pair"],
    minus: Float[Array, "resample pair"],
    counts: Float[Array, "resample pair"],
) -> Float[Array, "resample"]:
    """AUROC of each resample, each pair counted so often; ties count half.

    One sort serves all resamples' weights; scikit-learn's takes one resample at a time.
    """
    both = np.concatenate([minus, plus], axis=1)
    none = np.zeros_like(counts)
    weights = np.stack(
        [np.concatenate([counts, none], axis=1), np.concatenate([none, counts], axis=1)]
    )
    order = np.argsort(both, axis=1, kind="stable")
    ordered = np.take_along_axis(both, order, axis=1)
    of_minus, of_plus = np.take_along_axis(weights, order[None], axis=2)
    wins = (of_plus * of_minus.cumsum(axis=1)).sum(axis=1)
    if (ordered[:, 1:] == ordered[:, :-1]).any():
        # The stable sort put minus first among ties. Put plus first, too, and take the mean.
        order = np.argsort(both[:, ::-1], axis=1, kind="stable")
        of_minus, of_plus = np.take_along_axis(weights[:, :, ::-1], order[None], axis=2)
        wins = (wins + (of_plus * of_minus.cumsum(axis=1)).sum(axis=1)) / 2
    result: Array = wins / counts.sum(axis=1) ** 2
    return result


def d_prime_of(
    scores: Float[Array, "side resample pair"], counts: Float[Array, "resample pair"]
) -> Float[Array, "resample"]:
    """d′ of each resample, each pair counted so often."""
    total = counts.sum(axis=1)
    mean = (scores * counts).sum(axis=-1) / total
    square = (scores**2 * counts).sum(axis=-1) / total
    return _d_prime(mean, square, total)


def _d_prime(
    mean: Float[Array, "side n"], square: Float[Array, "side n"], total: Num[Array, "n"]
) -> Float[Array, "n"]:
    # Counts are frequencies, so the unbiased divisor is their sum less one.
    variance = np.maximum(square - mean**2, 0.0) * total / np.maximum(total - 1, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        result: Array = (mean[0] - mean[1]) / np.sqrt(variance.mean(axis=0))
    return result


def fit_noise_share(
    differences: Float[Array, "pair d"], groups: Int[Array, "pair"], n_folds: int
) -> float:
    """:math:`\\rho` of the module's text: the share of the scores' variance due to fitting.

    Args:
        differences: The pairs' differences of residuals.
        groups: Base-query number of each pair, 0, 1, …
        n_folds: Folds; a direction is fitted on all queries but those of one fold.
    """
    sizes = np.bincount(groups)
    n = len(sizes)
    if n < 4:
        return 1.0
    # The kernel of two queries' mean differences is K_gh = x_g·x_h + b_g + b_h around their mean,
    # which keeps the large common part out of the squares below.
    means = query_sums(differences, groups) / sizes[:, None]
    mean = means.mean(axis=0)
    x = means - mean
    square, b = (x**2).sum(axis=1), x @ mean + mean @ mean / 2
    row = ((x @ x.sum(axis=0) - square) + (n - 2) * b + b.sum()) / (n - 1)
    # What one-query means do not explain, R_gh = x_g·x_h + c_g + c_h = (B S Bᵀ)_gh with
    # B = [x, c, 1], has Σ R² = tr (S BᵀB)²: a d × d table, whatever the number of queries.
    c = b - row + row.mean() / 2
    columns = np.column_stack([x, c, np.ones(n)])
    products = columns.T @ columns
    products[[-2, -1]] = products[[-1, -2]]
    beyond = float((products * products.T).sum() - ((square + 2 * c) ** 2).sum())
    beyond = max(beyond, 0.0) / ((n - 1) * (n - 2))
    through_means = max(float(row.var(ddof=1)) - beyond / (n - 1), 0.0)
    noise = beyond * n_folds / (n * (n_folds - 1))
    return float(noise / (noise + through_means)) if noise > 0 else 0.0


def query_sums(
    values: Float[Array, "pair *rest"], groups: Int[Array, "pair"]
) -> Float[Array, "query *rest"]:
    """Sum of the values of each base query's pairs."""
    member = csr_array((np.ones(len(groups)), (groups, np.arange(len(groups)))))
    result: Array = member @ values
    return result


def _correct(scores: Float[Array, "side pair"]) -> Float[Array, "pair"]:
    """Share of the pair's two runs that the rule gets right."""
    correct: Array = ((scores[0] > 0).astype(np.float64) + (scores[1] < 0)) / 2
    return correct


def _leave_one_out(
    scores: Float[Array, "side pair"], groups: Int[Array, "pair"], n_groups: int
) -> Float[Array, "query 3"]:
    """AUROC, d′ and accuracy without each base query in turn, directions kept."""
    plus, minus = scores
    left = len(groups) - np.bincount(groups, minlength=n_groups)

    def without(values: Float[Array, "pair"]) -> Float[Array, "query"]:
        rest: Array = values.sum() - query_sums(values, groups)
        return rest

    # From ranks: no table of pairs by pairs.
    won, lost = _wins(plus, minus), len(plus) - _wins(minus, plus)
    within = _wins_within(scores, groups)
    auroc = (without(won) - (lost.sum() - without(lost)) + within) / left**2
    mean = np.stack([without(side) for side in scores]) / left
    square = np.stack([without(side**2) for side in scores]) / left
    accuracy = without(_correct(scores)) / left
    return np.stack([auroc, _d_prime(mean, square, left), accuracy], axis=1)


def _wins(plus: Float[Array, "pair"], minus: Float[Array, "pair"]) -> Float[Array, "pair"]:
    """How many of `minus` lie below each of `plus`; ties count half."""
    wins: Array = rankdata(np.concatenate([plus, minus]))[: len(plus)] - rankdata(plus)
    return wins


def _wins_within(
    scores: Float[Array, "side pair"], groups: Int[Array, "pair"]
) -> Float[Array, "query"]:
    """Wins of each base query's instructed runs over its own uninstructed ones."""
    ranks = rankdata(scores, method="dense", axis=None).reshape(scores.shape)
    # Ordered by query first: a run also wins over all runs of the queries before its own.
    plus, minus = groups * scores.size + ranks.astype(np.float64)
    size = np.bincount(groups)
    before = size.cumsum() - size
    return query_sums(_wins(plus, minus) - before[groups], groups)


def _hanley_mcneil(auroc: float, n: float) -> float:
    """Variance of the AUROC of `n` runs per side (Hanley & McNeil 1982, Radiology 143:29–36)."""
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
            if (auroc - middle) ** 2 <= Z**2 * _hanley_mcneil(middle, size):
                inner = middle
            else:
                outer = middle
        return inner

    low = 0.0 if auroc == 0 else outermost(0.0)
    high = 1.0 if auroc == 1 else outermost(1.0)
    return low, high


def _accuracy_interval(rate: float, variance: float, n_queries: int) -> Measure:
    """Wilson's interval with the sample size that would give `variance`."""
    size = float(n_queries)
    if variance > 0 and 0 < rate < 1:
        size = min(max(rate * (1 - rate) / variance, 2.0), _MOST_GAIN * n_queries)
    interval = score_interval(rate, size)
    return np.array([rate, interval.low, interval.high])
