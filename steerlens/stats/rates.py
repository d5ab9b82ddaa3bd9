r"""Statistics of rates and differences: intervals, tests, and the price of choosing.

**A rate** of *k* passes in *n* prompts has Wilson's score interval (Wilson 1927), which keeps its
coverage near 0 and 1 and for the few dozen prompts an instruction has:

.. math:: \frac{\hat p + z^2/2n}{1 + z^2/n} \pm \frac{z}{1 + z^2/n}
          \sqrt{\frac{\hat p(1-\hat p)}{n} + \frac{z^2}{4n^2}}

**A difference** between two conditions is taken over the same prompts: `paired_bootstrap` draws
prompts with replacement, both conditions of a prompt together; `mcnemar_exact` asks whether prompts
that pass under one condition only are split evenly (exact binomial test, McNemar 1947). Several
p-values are adjusted together by `holm` (Holm 1979).

**Choosing the best of many** settings by their rate on the same prompts makes the winner look
better than it is: among 50 settings of equal rate ½, on 30 prompts, the best one shows 0.70.
`best_of_many` corrects this by the bootstrap: choose on the prompts drawn, score the chosen setting
on the prompts left out, average (Tsamardinos, Greasidou & Borboudakis 2018, *Bootstrapping the
out-of-sample predictions for efficient and accurate cross-validation*, Machine Learning 107). The
corrected rate is that of the whole procedure, "take the best of these". Its interval goes from the
lower end of Wilson's interval at the corrected rate to the upper end at the uncorrected one: since
resamples hold fewer different prompts, a setting that truly stands out is chosen less often in them
and corrected too far down. In 30 simulated problems (10 to 200 settings, 16 or 30 prompts, 300
draws each) this interval held the chosen setting's true rate in at least 95 %, Wilson's at the
corrected rate alone in 54 to 99 %, the percentiles of the resamples, which are wider, in 83 to
100 %.

Caveat: an interval here holds the uncertainty about prompts, given one model and (greedy) one
response a prompt.

>>> wilson(8, 10)
Interval(value=0.8, low=0.490..., high=0.943...)
>>> holm([0.01, 0.04, 0.03])
[0.03, 0.06, 0.06]
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import binomtest

from steerlens.errors import SteerlensError

__all__ = [
    "BestOfMany",
    "Interval",
    "best_of_many",
    "holm",
    "mcnemar_exact",
    "median_ratio_bootstrap",
    "paired_bootstrap",
    "wilson",
]

Array = np.ndarray
Statistic = Callable[[Any], Any]
Numbers = Sequence[float | int] | Array
N_RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval.

    Attributes:
        value: The estimate.
        low: Lower end.
        high: Upper end.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class BestOfMany:
    """The best of many settings, and what to expect of it on new prompts.

    Attributes:
        chosen: Row of the setting with the highest rate, the first of those that tie.
        rate: The chosen setting's rate on the prompts it was chosen by; too high.
        corrected: The rate to expect on new prompts, with its interval.
        chosen_share: Of the resamples, in how many each setting was chosen.
    """

    chosen: int
    rate: float
    corrected: Interval
    chosen_share: tuple[float, ...]


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a rate.

    Args:
        successes: Passes, 0 to `n`.
        n: Prompts, at least 1.
        level: Coverage aimed at, in (0, 1).

    Raises:
        SteerlensError: "a rate needs at least one prompt …", or numbers out of range.
    """
    if n < 1:
        raise SteerlensError("a rate needs at least one prompt; none was given")
    if not 0 <= successes <= n:
        raise SteerlensError(f"successes must be between 0 and {n}; got {successes}")
    return _score_interval(successes / n, n, level)


def paired_bootstrap(
    a: Numbers,
    b: Numbers,
    statistic: Statistic = np.mean,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
    groups: Sequence[Hashable] | None = None,
) -> Interval:
    """Difference ``statistic(a) − statistic(b)`` over the same prompts, with a bootstrap interval.

    Args:
        a: One number a prompt under one condition (a pass counts 1).
        b: The same prompts under the other condition.
        statistic: Reduces a one-dimensional array to a number.
        n_resamples: Bootstrap resamples; the interval is their percentile interval.
        seed: Of the resamples.
        level: Coverage aimed at.
        groups: What each prompt was made from, if several were made from one: then whole groups
            are drawn, since their prompts are no independent evidence.

    Raises:
        SteerlensError: The conditions differ in length, are empty, or hold a NaN.
    """
    first, second = _paired(a, b)
    samples = [
        float(statistic(first[index]) - statistic(second[index]))
        for index in _resamples(len(first), n_resamples, seed, groups)
    ]
    return Interval(float(statistic(first) - statistic(second)), *_percentiles(samples, level))


def median_ratio_bootstrap(
    a: Sequence[float | int | None],
    b: Sequence[float | int | None],
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
    groups: Sequence[Hashable] | None = None,
) -> Interval | None:
    """Ratio ``median(a) / median(b)`` over the same prompts, with a paired bootstrap interval.

    Meant for perplexities. A prompt without a number under either condition (an empty response)
    is left out of both.

    Returns:
        None when no prompt has a number under both.

    Raises:
        SteerlensError: The conditions differ in length, or a number is not positive.
    """
    if len(a) != len(b):
        raise SteerlensError(f"conditions differ in prompts: {len(a)} and {len(b)} were given")
    both = [i for i, pair in enumerate(zip(a, b, strict=True)) if None not in pair]
    if not both:
        return None
    first, second = (np.array([side[i] for i in both], dtype=float) for side in (a, b))
    if not (min(first.min(), second.min()) > 0):
        raise SteerlensError("a ratio of medians needs positive numbers")
    kept = None if groups is None else [groups[i] for i in both]
    samples = [
        float(np.median(first[index]) / np.median(second[index]))
        for index in _resamples(len(both), n_resamples, seed, kept)
    ]
    value = float(np.median(first) / np.median(second))
    return Interval(value, *_percentiles(samples, level))


def mcnemar_exact(a: Numbers, b: Numbers) -> float:
    """Two-sided p-value that two conditions pass equally often, over the same prompts.

    Only prompts that pass under exactly one condition tell; without any the p-value is 1.

    Raises:
        SteerlensError: The conditions differ in length or are empty.
    """
    first, second = (side.astype(bool) for side in _paired(a, b))
    only_a, only_b = int((first & ~second).sum()), int((second & ~first).sum())
    if only_a + only_b == 0:
        return 1.0
    return float(binomtest(only_a, only_a + only_b, 0.5).pvalue)


def holm(p_values: Sequence[float | int]) -> list[float]:
    """Holm's adjusted p-values, in the order given: reject where one is below the error rate.

    The chance of any false rejection among them then stays below that rate.

    Raises:
        SteerlensError: A value outside [0, 1].
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise SteerlensError(f"p-values lie between 0 and 1; got {list(p_values)}")
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    reached = 0.0
    for rank, i in enumerate(order):
        reached = max(reached, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = reached
    return adjusted


def best_of_many(
    passes: Bool[Array, "setting prompt"],
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
    worth: Float[Array, "rows columns"] | None = None,
) -> BestOfMany:
    """The setting with the highest rate, and its rate corrected for having been chosen.

    In each bootstrap resample of the prompts the best setting is chosen on the prompts drawn and
    scored on those left out (about 37 %); the corrected rate is the mean of these scores.

    Args:
        passes: Whether each setting passes each prompt; settings in order of preference, because
            the first of those that tie is chosen ("no steering" first).
        n_resamples: Bootstrap resamples.
        seed: Of the resamples.
        level: Coverage aimed at.
        worth: What settings are chosen by, where that is not the rate alone.

    Raises:
        SteerlensError: No setting, fewer than two prompts, or `worth` of another shape.
    """
    table = np.asarray(passes, dtype=bool)
    if table.ndim != 2 or len(table) < 1 or table.shape[1] < 2:
        raise SteerlensError(
            f"choosing needs passes [setting prompt] of at least 1 × 2; got {table.shape}"
        )
    value = table.astype(float) if worth is None else np.asarray(worth, dtype=float)
    if value.shape != table.shape:
        raise SteerlensError(f"worth has shape {value.shape}, but passes {table.shape}")
    n_settings, n_prompts = table.shape
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(n_prompts, np.full(n_prompts, 1 / n_prompts), size=n_resamples)
    # A resample of all prompts leaves none to score on (1 in 2 for two prompts, else rare).
    drawn = drawn[(drawn == 0).any(axis=1)]
    left_out = drawn == 0
    chosen = (value @ drawn.T).argmax(axis=0)
    scores = (table[chosen] & left_out).sum(axis=1) / left_out.sum(axis=1)
    rates = table.mean(axis=1)
    best = int(value.sum(axis=1).argmax())
    shares = np.bincount(chosen, minlength=n_settings) / max(len(drawn), 1)
    corrected = _score_interval(float(scores.mean()), n_prompts, level)
    uncorrected = _score_interval(float(rates[best]), n_prompts, level)
    return BestOfMany(
        chosen=best,
        rate=float(rates[best]),
        corrected=Interval(corrected.value, corrected.low, max(corrected.high, uncorrected.high)),
        chosen_share=tuple(shares.tolist()),
    )


def _score_interval(rate: float, n: int, level: float) -> Interval:
    if not 0 < level < 1:
        raise SteerlensError(f"level must be between 0 and 1; got {level}")
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (rate * (1 - rate) / n + z**2 / (4 * n**2)) ** 0.5
    # At 0 and 1 the ends meet the rate itself, but for rounding.
    return Interval(rate, max(0.0, min(rate, centre - half)), min(1.0, max(rate, centre + half)))


def _paired(a: Numbers, b: Numbers) -> tuple[Float[Array, "prompt"], Float[Array, "prompt"]]:
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if first.ndim != 1 or first.shape != second.shape or not len(first):
        raise SteerlensError(
            "two conditions need one number a prompt over the same prompts, at least one; got "
            f"shapes {first.shape} and {second.shape}"
        )
    if not np.isfinite(first).all() or not np.isfinite(second).all():
        raise SteerlensError("a condition holds a value that is no finite number; leave it out")
    return first, second


def _resamples(
    n: int, n_resamples: int, seed: int, groups: Sequence[Hashable] | None
) -> list[Int[Array, "drawn"]]:
    """Indices of prompts drawn with replacement, whole groups at a time."""
    if n_resamples < 1:
        raise SteerlensError(f"n_resamples must be at least 1; got {n_resamples}")
    rng = np.random.default_rng(seed)
    if groups is None:
        return list(rng.integers(n, size=(n_resamples, n)))
    if len(groups) != n:
        raise SteerlensError(f"one group a prompt is needed: {len(groups)} for {n} prompts")
    members: dict[Hashable, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    parts = [np.array(some) for some in members.values()]
    draws = rng.integers(len(parts), size=(n_resamples, len(parts)))
    return [np.concatenate([parts[i] for i in draw]) for draw in draws]


def _percentiles(samples: Sequence[float], level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise SteerlensError(f"level must be between 0 and 1; got {level}")
    low, high = np.percentile(samples, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)
