r"""Rates and their differences: intervals, tests, and the price of choosing.

**A rate** of *k* passes in *n* prompts has Wilson's score interval (Wilson 1927), which keeps its
coverage near 0 and 1 and for the few dozen prompts an instruction has:

.. math:: \frac{\hat p + z^2/2n}{1 + z^2/n} \pm \frac{z}{1 + z^2/n}
          \sqrt{\frac{\hat p(1-\hat p)}{n} + \frac{z^2}{4n^2}}

**A difference** of two rates on the same prompts has Newcombe's interval, which joins the two
Wilson intervals by the correlation of the conditions (Newcombe 1998, *Improved confidence intervals
for the difference between binomial proportions based on paired data*, Statistics in Medicine
17:2635–2650, method 10). `mcnemar_exact` tests whether the prompts that pass under one condition
only are split evenly (McNemar 1947); `holm` adjusts several p-values together (Holm 1979).

**Choosing the best of many** settings by their rate on the same prompts makes the winner look
better than it is: among 50 settings of equal rate ½, on 30 prompts, the best shows 0.70.
`best_of_many` corrects for this by the bootstrap: choose on the prompts drawn, score the chosen
setting on the prompts left out, and average (Tsamardinos, Greasidou & Borboudakis 2018,
*Bootstrapping the out-of-sample predictions for efficient and accurate cross-validation*, Machine
Learning 107). The interval goes from the lower end of Wilson's interval at the corrected rate to
the upper end at the uncorrected rate, since a setting that truly stands out is corrected too far
down. In 30 simulated problems (10 to 200 settings, 16 or 30 prompts, 300 draws each) it held the
chosen setting's true rate in at least 95 % of draws, Wilson's at the corrected rate in 54 to 99 %.

**Several samples per prompt** are no further prompts. Rates are means over prompts of the share of
samples that pass, and intervals count prompts: such a share varies no more than a single verdict,
so they are wide enough. `mcnemar_exact` then flips the sign of each prompt's difference, which for
single verdicts is McNemar's exact test.

Caveat: an interval holds the uncertainty about prompts, given one model.

>>> wilson(8, 10)
Interval(value=0.8, low=0.490..., high=0.943...)
>>> holm([0.01, 0.04, 0.03])
[0.03, 0.06, 0.06]
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import norm

from steerlens.errors import SteerlensError

__all__ = [
    "BestOfMany",
    "Interval",
    "Z",
    "best_of_many",
    "holm",
    "mcnemar_exact",
    "median_ratio_bootstrap",
    "paired_difference",
    "score_interval",
    "wilson",
]

Array = np.ndarray
Verdicts = Sequence[bool] | Bool[Array, "prompt"]
N_RESAMPLES = 2000
Z = float(norm.ppf(0.975))


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class BestOfMany:
    """The best of many settings, and what to expect of it on new prompts.

    Attributes:
        chosen: Row of the setting with the highest rate, the first of those that tie.
        rate: Its rate on the prompts it was chosen by; too high.
        corrected: The rate to expect on new prompts, with its interval.
        chosen_share: Share of the resamples in which each setting was chosen.
    """

    chosen: int
    rate: float
    corrected: Interval
    chosen_share: tuple[float, ...]


def wilson(successes: int, n: int) -> Interval:
    """Wilson's score interval of a rate.

    Raises:
        SteerlensError: "a rate needs at least one prompt …", or successes outside 0 … n.
    """
    if n < 1:
        raise SteerlensError("a rate needs at least one prompt; none was given")
    if not 0 <= successes <= n:
        raise SteerlensError(f"successes must be between 0 and {n}; got {successes}")
    return score_interval(successes / n, n)


def score_interval(rate: float, n: float | int) -> Interval:
    """Wilson's interval of a rate; unlike scipy's, also for an effective number of prompts."""
    centre = (rate + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * (rate * (1 - rate) / n + Z**2 / (4 * n**2)) ** 0.5
    # At 0 and 1 the ends meet the rate itself, but for rounding.
    return Interval(rate, max(0.0, min(rate, centre - half)), min(1.0, max(rate, centre + half)))


def paired_difference(a: Verdicts, b: Verdicts, samples: int = 1) -> Interval:
    """Difference ``rate(a) − rate(b)`` over the same prompts, with Newcombe's interval.

    Args:
        a: Verdicts under one condition, the samples of a prompt side by side.
        b: Under the other, in the same order.
        samples: Verdicts per prompt.

    Raises:
        SteerlensError: The conditions differ in length, or are empty.
    """
    first, second = _paired(a, b)
    n = len(first) / samples
    p, q = (score_interval(float(side.mean()), n) for side in (first, second))
    # Correlation of the conditions; a positive one with Newcombe's correction for continuity.
    both, neither, only_a, only_b = (
        float(cell.sum()) / samples
        for cell in (first & second, ~first & ~second, first & ~second, second & ~first)
    )
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    product = both * neither - only_a * only_b
    product = max(product - n / 2, 0.0) if product > 0 else product
    phi = product / np.sqrt(margins) if margins else 0.0

    def joined(x: float, y: float) -> float:
        return float(np.sqrt(max(x**2 - 2 * phi * x * y + y**2, 0.0)))

    value = p.value - q.value
    low = value - joined(p.value - p.low, q.high - q.value)
    high = value + joined(p.high - p.value, q.value - q.low)
    return Interval(value, low, high)


def median_ratio_bootstrap(
    a: Sequence[float | int | None],
    b: Sequence[float | int | None],
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """Ratio ``median(a) / median(b)`` over the same prompts, with a paired bootstrap interval.

    Meant for perplexities. A prompt without a number under either condition (an empty response)
    is left out of both; None where no prompt has a number under both.

    Raises:
        SteerlensError: The conditions differ in length, or a number is not positive.
    """
    if len(a) != len(b):
        raise SteerlensError(f"conditions differ in prompts: {len(a)} and {len(b)} were given")
    known = [pair for pair in zip(a, b, strict=True) if None not in pair]
    if not known:
        return None
    values = np.array(known, dtype=float).T
    if not values.min() > 0:
        raise SteerlensError("a ratio of medians needs positive numbers")
    if n_resamples < 1:
        raise SteerlensError(f"at least 1 resample is needed; got {n_resamples}")
    index = np.random.default_rng(seed).integers(len(known), size=(n_resamples, len(known)))
    medians = np.median(values[:, index], axis=-1)
    low, high = np.percentile(medians[0] / medians[1], [2.5, 97.5])
    value = np.median(values[0]) / np.median(values[1])
    return Interval(float(value), float(low), float(high))


def mcnemar_exact(a: Verdicts, b: Verdicts, samples: int = 1) -> float:
    """Two-sided p-value that two conditions pass equally often, over the same prompts.

    Args:
        a: As for `paired_difference`.
        b: As for `paired_difference`.
        samples: Verdicts per prompt.

    Raises:
        SteerlensError: The conditions differ in length or are empty.
    """
    first, second = _paired(a, b)
    differences = (first.astype(int) - second).reshape(-1, samples).sum(-1)
    # The distribution of their sum when each sign is as likely as the other.
    likely = np.ones(1)
    for size in abs(differences[differences != 0]):
        likely = np.convolve(likely, [0.5, *[0.0] * (2 * size - 1), 0.5])
    sums = np.arange(len(likely)) - len(likely) // 2
    return min(1.0, float(likely[abs(sums) >= abs(differences.sum())].sum()))


def holm(p_values: Sequence[float | int]) -> list[float]:
    """Holm's adjusted p-values, in the order given: reject where one is below the error rate.

    Raises:
        SteerlensError: A value outside [0, 1].
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise SteerlensError(f"p-values lie between 0 and 1; got {list(p_values)}")
    values = np.array(p_values, dtype=float)
    order = values.argsort(kind="stable")
    factors = np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, factors * values[order]))
    return [float(p) for p in adjusted]


def best_of_many(
    passes: Float[Array, "setting prompt"] | Bool[Array, "setting prompt"],
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
    worth: Float[Array, "rows columns"] | None = None,
) -> BestOfMany:
    """The setting with the highest rate, and its rate corrected for having been chosen.

    Args:
        passes: Whether each setting passes each prompt, or in what share of its samples; settings
            in order of preference, because the first of those that tie is chosen ("no steering"
            first).
        n_resamples: Bootstrap resamples.
        seed: Of the resamples.
        worth: What settings are chosen by, where that is not the rate alone.

    Raises:
        SteerlensError: No setting, fewer than two prompts, or `worth` of another shape.
    """
    table = np.asarray(passes, dtype=float)
    if table.ndim != 2 or len(table) < 1 or table.shape[1] < 2:
        raise SteerlensError(
            f"choosing needs passes [setting prompt] of at least 1 × 2; got {table.shape}"
        )
    value = table if worth is None else np.asarray(worth, dtype=float)
    if value.shape != table.shape:
        raise SteerlensError(f"worth has shape {value.shape}, but passes {table.shape}")
    n_settings, n_prompts = table.shape
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(n_prompts, np.full(n_prompts, 1 / n_prompts), size=n_resamples)
    # A resample of all prompts leaves none to score on (1 in 2 for two prompts, else rare).
    drawn = drawn[(drawn == 0).any(axis=1)]
    left_out = drawn == 0
    chosen = (value @ drawn.T).argmax(axis=0)
    scores = (table[chosen] * left_out).sum(axis=1) / left_out.sum(axis=1)
    best = int(value.sum(axis=1).argmax())
    rate = float(table[best].mean())
    shares = np.bincount(chosen, minlength=n_settings) / max(len(drawn), 1)
    corrected = score_interval(float(scores.mean()), n_prompts)
    high = max(corrected.high, score_interval(rate, n_prompts).high)
    return BestOfMany(
        chosen=best,
        rate=rate,
        corrected=Interval(corrected.value, corrected.low, high),
        chosen_share=tuple(shares.tolist()),
    )


def _paired(a: Verdicts, b: Verdicts) -> tuple[Bool[Array, "prompt"], Bool[Array, "prompt"]]:
    sides = [np.asarray(side, dtype=float) for side in (a, b)]
    if not all(np.isin(side, (0, 1)).all() for side in sides):
        raise SteerlensError("a verdict is neither true nor false; leave it out")
    first, second = (side.astype(bool) for side in sides)
    if first.ndim != 1 or first.shape != second.shape or not len(first):
        raise SteerlensError(
            "two conditions need one verdict per prompt over the same prompts, at least one; got "
            f"shapes {first.shape} and {second.shape}"
        )
    return first, second
