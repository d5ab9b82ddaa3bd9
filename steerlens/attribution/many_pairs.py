r"""Separability with many pairs: the same numbers without tables of pairs by pairs.

`steerlens.attribution.held_out` works on products of runs with pair differences, an *n* × *n* table
a side: right for 64 pairs in 576 dimensions, 3.2 GB for 20,000. Here everything is computed from
the runs themselves, a layer at a time, and memory grows with *n* alone:

* a direction fitted on the training pairs is a vector of ``d_model`` numbers. Each pair is in one
  test fold, so sums over the folds, less one fold's own, give all directions;
* a resample of base queries weights those sums. Resamples are taken some at a time, and each pair's
  scores under them are reduced to AUROC and d′ before the next;
* the fit's share of noise needs :math:`\sum_{g \ne h} (d_g \cdot d_h)^2`, which is
  :math:`\|D^\top D\|_F^2 - \sum_g \|d_g\|^4`: a ``d_model`` × ``d_model`` table.

Runs are held in float32 (a layer: 8 · n · d_model bytes) and every sum is taken in float64, block
by block. ``tests/test_shards.py`` holds both ways against each other to 1e-5.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt16

from steerlens.attribution.held_out import Folds, group_numbers
from steerlens.attribution.sensitivity import block_members, sensitivity_along
from steerlens.stats.resampling import INTERVAL, numbered_queries
from steerlens.stats.separability import auroc_of, d_prime_of, held_out_measures

__all__ = ["MANY_PAIRS", "LayerEvidence", "ManyPairs"]

Array = np.ndarray
# From here on tables of pairs by pairs (67 MB each) cost more than products with wide runs.
MANY_PAIRS = 2048
# Rows taken to float64 at once: 19 MB of both sides at 576 dimensions.
_BLOCK = 2048
# Resamples whose scores are held at once, and those whose scores are sorted at once.
_RESAMPLES = 100
_SORTED = 20
_N_SPLITS = 50


@dataclass(frozen=True, eq=False)
class LayerEvidence:
    """What is known about one layer.

    Attributes:
        row: Columns of `steerlens.attribution.LayerRanking.table`.
        auroc: AUROC of each resample.
        d_prime: Held-out d′ of each resample.
    """

    row: dict[str, float]
    auroc: Float[Array, "resample"]
    d_prime: Float[Array, "resample"]


class ManyPairs:
    """Folds, resamples and halves of the base queries, the same for every layer.

    Pairs are put in the order of their test fold and base query, so that both are contiguous.

    Args:
        groups: Base-query number of each pair.
        folds: From `steerlens.attribution.held_out.check_rankable`.
        n_resamples: Bootstrap resamples.
        seed: Their seed, and that of the halves.
    """

    def __init__(self, groups: Sequence[int], folds: Folds, n_resamples: int, seed: int) -> None:
        numbers = group_numbers(groups)
        fold_of = np.zeros(len(numbers), dtype=np.int64)
        for fold, (_, test) in enumerate(folds):
            fold_of[test] = fold
        self._order = np.lexsort((numbers, fold_of))
        self._groups = numbers[self._order]
        self._n_groups = int(numbers.max()) + 1
        stops = np.bincount(fold_of, minlength=len(folds)).cumsum()
        self._folds = [slice(a, b) for a, b in zip([0, *stops[:-1]], stops, strict=True)]
        self._drawn = _draws(groups, n_resamples, seed)
        self._drawn_column = np.array(numbered_queries(groups))[self._order]
        halves = np.random.default_rng(seed).permuted(
            np.tile(np.arange(self._n_groups), (_N_SPLITS, 1)), axis=1
        )
        first = np.zeros((_N_SPLITS, self._n_groups), dtype=bool)
        np.put_along_axis(first, halves[:, : self._n_groups // 2], True, axis=1)
        self._first_half = first

    def measure(self, runs: Float[Array, "side pair d_model"]) -> LayerEvidence:
        """Everything about one layer.

        Args:
            runs: Its runs, instructed side first, in the order of the groups given.
        """
        ordered = np.empty(runs.shape, dtype=np.float32)
        # From their common mean: it cancels in every score and would cost digits.
        centre = runs.mean(axis=(0, 1), dtype=np.float64)
        norm = 0.0
        for side in range(2):
            np.take(runs[side], self._order, axis=0, out=ordered[side])
            norm += sum(
                float(np.linalg.norm(one.astype(np.float64), axis=1).sum())
                for one in np.array_split(ordered[side], max(1, runs.shape[1] // _BLOCK))
            )
        layer = _Layer(ordered, centre)
        ones = np.ones((1, runs.shape[1]))
        scores = self._scores(layer, ones)
        noise = self._fit_noise(layer)
        measures = held_out_measures(scores[:, 0], self._groups, noise)
        gap = float(np.linalg.norm(layer.sums(ones, slice(None))[0, 0] / runs.shape[1]))
        named = {
            "auroc": measures["auroc"],
            "d_prime": np.array(self._sensitivity(layer)),
            "d_prime_held_out": measures["d_prime"],
            "accuracy": measures["accuracy"],
        }
        cosines = self._cosines(layer)
        low, high = np.percentile(cosines, INTERVAL)
        row = {
            column: float(value)
            for name, values in named.items()
            for column, value in zip((name, f"{name}_low", f"{name}_high"), values, strict=True)
        } | {
            "gap": gap,
            "relative_gap": gap / (norm / (2 * runs.shape[1])),
            "split_half_cosine": float(cosines.mean()),
            "split_half_cosine_low": float(low),
            "split_half_cosine_high": float(high),
        }
        auroc, d_prime = self._resampled(layer)
        return LayerEvidence(row, auroc, d_prime)

    def _resampled(
        self, layer: "_Layer"
    ) -> tuple[Float[Array, "resample"], Float[Array, "resample"]]:
        aurocs, d_primes = [], []
        for start in range(0, len(self._drawn), _RESAMPLES):
            counts = self._drawn[start : start + _RESAMPLES].astype(np.float64)
            counts = counts[:, self._drawn_column]
            scores = self._scores(layer, counts)
            d_primes.append(d_prime_of(scores, counts))
            for at in range(0, len(counts), _SORTED):
                some = slice(at, at + _SORTED)
                aurocs.append(_aurocs(scores[0, some], scores[1, some], counts[some]))
        return np.concatenate(aurocs), np.concatenate(d_primes)

    def _scores(
        self, layer: "_Layer", counts: Float[Array, "resample pair"]
    ) -> Float[Array, "side resample pair"]:
        """Held-out scores, as `steerlens.attribution.held_out.difference_scores` gives them."""
        # Of each fold: weighted sums of the pairs' differences and of their midpoints.
        own = np.stack([layer.sums(counts[:, fold], fold) for fold in self._folds])
        weight = np.stack([counts[:, fold].sum(axis=1) for fold in self._folds])
        scores = np.zeros((2, *counts.shape))
        for number, fold in enumerate(self._folds):
            total = (weight.sum(axis=0) - weight[number])[:, None]
            rest = own.sum(axis=0) - own[number]
            direction, middle = np.divide(rest, total, out=np.zeros_like(rest), where=total > 0)
            length = (direction**2).sum(axis=1)
            offset = (direction * middle).sum(axis=1)
            scale = np.divide(1.0, length, out=np.zeros_like(length), where=length > 0)
            for where, block in layer.blocks(fold):
                along = block @ direction.T
                along -= offset
                along *= scale
                scores[:, :, where] = along.transpose(0, 2, 1)
        return scores

    def _fit_noise(self, layer: "_Layer") -> float:
        """`steerlens.stats.separability.fit_noise_share`, from ``d_model`` × ``d_model``.

        With :math:`d_g = \\mu + x_g` the products of two queries are :math:`x_g \\cdot x_h + a_g +
        a_h`, which keeps the large common part out of the squares.
        """
        n, n_folds = self._n_groups, len(self._folds)
        if n < 4:
            return 1.0
        mean = sum(means.sum(axis=0) for means in self._query_means(layer)) / n
        width = len(mean)
        table, square = np.zeros((width, width)), np.empty(n)
        along, total, done = np.empty(n), np.zeros(width), 0
        for means in self._query_means(layer):
            rest = means - mean
            here = slice(done, done + len(rest))
            table += rest.T @ rest
            total += rest.sum(axis=0)
            square[here], along[here] = (rest**2).sum(axis=1), rest @ mean
            done += len(rest)
        apart = along + (mean @ mean) / 2
        # Rows of the table of products without its diagonal; `total` is 0 but for rounding.
        rows = -square
        means = (rows + (n - 2) * apart + apart.sum()) / (n - 1)
        shift = rows / (n - 1) - apart / (n - 1)
        level = rows.sum() / (n * (n - 1)) - 2 * apart.sum() / (n * (n - 1))
        squares = (
            (table**2).sum()
            - (square**2).sum()
            - 4 * (shift * rows).sum()
            + 2 * (n - 2) * (shift**2).sum()
            + 2 * shift.sum() ** 2
            + 2 * level * rows.sum()
            - 4 * level * (n - 1) * shift.sum()
            + level**2 * n * (n - 1)
        )
        beyond = float(squares) / ((n - 1) * (n - 2))
        through_means = max(float(means.var(ddof=1)) - beyond / (n - 1), 0.0)
        noise = beyond * n_folds / (n * (n_folds - 1))
        return float(noise / (noise + through_means)) if noise > 0 else 0.0

    def _query_means(self, layer: "_Layer") -> Iterator[Float[Array, "query d_model"]]:
        """Mean difference of each base query, some queries at a time."""
        starts = np.flatnonzero(np.diff(self._groups, prepend=-1))
        stops = np.append(starts[1:], len(self._groups))
        at = 0
        while at < len(starts):
            # Whole queries, at least one, that end within a block.
            end = max(at + 1, int(np.searchsorted(stops, starts[at] + _BLOCK, side="right")))
            here = slice(int(starts[at]), int(stops[end - 1]))
            difference = layer.difference(here)
            sums = np.add.reduceat(difference, starts[at:end] - here.start, axis=0)
            yield sums / (stops[at:end] - starts[at:end])[:, None]
            at = end

    def _sensitivity(self, layer: "_Layer") -> tuple[float, float, float]:
        member = block_members(self._groups)
        sums = layer.sums(member.T, slice(None))[0]
        along = np.empty((2, *member.shape))
        for where, block in layer.blocks(slice(None)):
            along[:, where] = block @ sums.T
        return sensitivity_along(along, sums @ sums.T, member)

    def _cosines(self, layer: "_Layer") -> Float[Array, "split"]:
        """Cosine between mean differences of two random halves of the base queries."""
        members = self._first_half[:, self._groups].astype(np.float64)
        one, other = (
            layer.sums(half, slice(None))[0] / half.sum(axis=1, keepdims=True)
            for half in (members, 1 - members)
        )
        norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        result: Array = (one * other).sum(axis=1) / norms
        return result


@dataclass(frozen=True, eq=False)
class _Layer:
    """Runs of a layer in float32; read out in float64, measured from their common mean."""

    runs: Float[Array, "side pair d_model"]
    centre: Float[Array, "d_model"]

    def blocks(self, where: slice) -> Iterator[tuple[slice, Float[Array, "side block d_model"]]]:
        start, stop, _ = where.indices(self.runs.shape[1])
        for at in range(start, stop, _BLOCK):
            here = slice(at, min(at + _BLOCK, stop))
            yield here, self.runs[:, here] - self.centre

    def difference(self, where: slice) -> Float[Array, "block d_model"]:
        plus, minus = self.runs[:, where].astype(np.float64)
        result: Array = plus - minus
        return result

    def sums(
        self, weights: Float[Array, "weighting _"], where: slice
    ) -> Float[Array, "2 weighting d_model"]:
        """Weighted sums of the pairs' differences, and of their midpoints."""
        start, _, _ = where.indices(self.runs.shape[1])
        result = np.zeros((2, len(weights), self.runs.shape[2]))
        for here, block in self.blocks(where):
            own = weights[:, here.start - start : here.stop - start]
            result[0] += own @ (block[0] - block[1])
            result[1] += own @ ((block[0] + block[1]) / 2)
        return result


def _draws(groups: Sequence[int], n_resamples: int, seed: int) -> UInt16[Array, "resample query"]:
    """The draws of `steerlens.stats.resampling.query_draws`, one number a base query."""
    n_groups = max(numbered_queries(groups)) + 1
    rng = np.random.default_rng(seed)
    even = np.full(n_groups, 1 / n_groups)
    drawn = np.empty((n_resamples, n_groups), dtype=np.uint16)
    for start in range(0, n_resamples, _RESAMPLES):
        some = drawn[start : start + _RESAMPLES]
        some[:] = rng.multinomial(n_groups, even, size=len(some))
    return drawn


def _aurocs(
    plus: Float[Array, "resample pair"],
    minus: Float[Array, "resample pair"],
    counts: Float[Array, "resample pair"],
) -> Float[Array, "resample"]:
    """`auroc_of` in one sort where no two scores are equal (0.4 of the time)."""
    both = np.concatenate([minus, plus], axis=1)
    order = np.argsort(both, axis=1)
    ordered = np.take_along_axis(both, order, axis=1)
    if (ordered[:, 1:] == ordered[:, :-1]).any():
        return auroc_of(plus, minus, counts)
    n_pairs = plus.shape[1]
    heavy = order >= n_pairs
    weights = np.take_along_axis(counts, order - n_pairs * heavy, axis=1)
    below = np.where(heavy, 0.0, weights).cumsum(axis=1)
    result: Array = (np.where(heavy, weights, 0.0) * below).sum(axis=1) / counts.sum(axis=1) ** 2
    return result
