r"""Separability: how well a layer tells instructed from uninstructed runs, on unseen queries.

For each of *k* folds, which never split a base query, the difference-of-means direction is fitted
on the other folds and the held-out runs are scored along it (`steerlens.attribution.held_out`).
From the scores come AUROC, d′ and accuracy (`steerlens.stats.separability`): the performance of
directions fitted on so many pairs. ``d_prime`` is that of the layer itself, along the true
difference of means (`steerlens.attribution.sensitivity`): it does not grow with the number of
pairs, only its interval shrinks.

The best layer has the highest AUROC, ties broken by held-out d′. Its **selection frequency** is the
share of 1,000 resamples of base queries that choose it, with directions fitted again in each. The
**split-half cosine**, between directions fitted on two random halves of the base queries (mean and
middle 95 % of 50 splits), tells how far the direction depends on the queries.

`rank_layers` adds further evidence on request:

* ``"probes"``: other ways to fit a direction (`steerlens.attribution.probes`);
* ``"null"``: a permutation test of all layers at once, with shuffled labels and random directions
  as controls (`steerlens.attribution.null`);
* ``"dimension"``: how many dimensions carry it (`steerlens.attribution.dimension`).

Pairs in shards on disk (`steerlens.activations.shards`) are measured layer by layer; the further
evidence needs residuals in memory.

Caveat: separability is not steerability. On chat models AUROC saturates after a few layers, where
steering does nothing yet; see `steerlens.attribution.causal`.

>>> import torch
>>> from steerlens.activations.cache import ResidualCache
>>> noise = torch.randn(2, 40, 3, 8, generator=torch.Generator().manual_seed(0))
>>> noise[0, :, 1] += 3.0                                    # only layer 1 tells the sides apart
>>> ranking = rank_layers(ResidualCache.from_tensors(noise[0], noise[1]))
>>> ranking.best_layer, ranking.selection_frequency[1] > 0.9
(1, True)
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, UInt16

from steerlens.activations.cache import ResidualCache, repeated_pairs
from steerlens.attribution.dimension import instruction_dimension
from steerlens.attribution.held_out import (
    Folds,
    Residuals,
    Runs,
    centred,
    check_rankable,
    difference_scores,
    group_numbers,
    in_span,
    raw_runs,
)
from steerlens.attribution.null import permutation_null
from steerlens.attribution.probes import probe_layers
from steerlens.attribution.ranking import LayerRanking
from steerlens.attribution.sensitivity import sensitivity
from steerlens.errors import SteerlensError, unknown_name
from steerlens.errors.arguments import whole_number
from steerlens.errors.cancellation import check_cancelled
from steerlens.stats.queries import PERCENTILES, query_draws
from steerlens.stats.separability import (
    auroc_of,
    d_prime_of,
    fit_noise_share,
    held_out_measures,
    query_sums,
)
from steerlens.tasks.notices import warn_of_pairs

__all__ = ["BEST_LAYER_RULE", "EVIDENCE", "rank_layers"]

BEST_LAYER_RULE = "highest held-out AUROC, ties broken by d′"
EVIDENCE = ("separability", "probes", "null", "dimension")
# The names the probes' columns begin with; the difference of means is the ranking's own.
_PROBES = ("first_component", "lda", "logistic")
_KINDS = ("auroc", "d_prime", "d_prime_held_out", "accuracy", "split_half_cosine")
# AUROCs closer than this differ only by rounding.
_TIE = 1e-9
_FOLDS = 5
_N_SPLITS = 50
# Scores held at once: resamples × pairs × two sides, 32 MB of float64.
_MOST_SCORES = 2**21
Array = np.ndarray


def rank_layers(
    cache: Residuals,
    seed: int = 0,
    n_folds: int | None = None,
    n_resamples: int = 1000,
    evidence: Sequence[str] = ("separability",),
) -> LayerRanking:
    """Rank the cached layers by how well they separate the two sides on unseen queries.

    Args:
        cache: Residuals of both sides, in memory or in shards.
        seed: Seed of folds, resamples, halves, permutations and directions.
        n_folds: Cross-validation folds; by default 5, or one per base query where there are fewer.
        n_resamples: Bootstrap resamples.
        evidence: Kinds from `EVIDENCE`; separability is always there. ``"probes"`` adds the kinds
            ``lda_auroc``, ``logistic_auroc``, ``first_component_auroc`` and the same with
            ``d_prime`` and ``balanced_accuracy``; ``"null"`` the columns ``p_adjusted,
            shuffled_auroc, random_auroc`` and the ranking's `p_value`; ``"dimension"`` the columns
            ``dimension, remaining_auroc, first_share``.

    Raises:
        ActivationError: Fewer base queries than folds, or only one; values that are not finite; a
            layer whose residuals are constant, or the same with and without the instruction.
        UnknownNameError: A kind of evidence that does not exist.
        SteerlensError: Folds, resamples or seed out of range; further evidence from shards.
    """
    n_resamples = whole_number("n_resamples", n_resamples, least=1)
    for name in evidence:
        if name not in EVIDENCE:
            raise unknown_name("kind of evidence", name, EVIDENCE)
    if not isinstance(cache, ResidualCache) and set(evidence) - {"separability"}:
        raise SteerlensError(
            f"{', '.join(evidence)} from shards: only separability is; for the others rank the "
            "pairs of a few shards in memory"
        )
    if n_folds is None:
        n_folds = max(2, min(_FOLDS, len(set(cache.groups))))
    n_folds, seed = whole_number("n_folds", n_folds), whole_number("seed", seed)
    folds = check_rankable(cache, n_folds, seed)
    groups = group_numbers(cache.groups)
    first_half = _random_halves(int(groups.max()) + 1, seed)
    draws = query_draws(cache.groups, n_resamples, seed)
    rows, aurocs, d_primes = [], [], []
    for layer, residuals in zip(cache.layers, raw_runs(cache), strict=True):
        check_cancelled()
        norm = np.mean([np.linalg.norm(side.astype(np.float64), axis=1) for side in residuals])
        runs = in_span(centred(residuals))
        rows.append(
            {
                "layer": layer,
                **_separability(runs, folds, groups),
                **_stability(runs, float(norm), groups, first_half),
            }
        )
        auroc, d_prime = _resampled(runs, folds, draws)
        aurocs.append(auroc)
        d_primes.append(d_prime)
    samples = {"auroc": np.stack(aurocs), "d_prime_held_out": np.stack(d_primes)}
    chosen = _best(samples["auroc"], samples["d_prime_held_out"])
    frequency = np.bincount(chosen, minlength=len(cache.layers)) / n_resamples
    table = pd.DataFrame(rows).assign(selection_frequency=frequency)
    best = int(_best(table[["auroc"]].to_numpy(), table[["d_prime_held_out"]].to_numpy())[0])
    ranking = LayerRanking(
        table=table,
        best_layer=cache.layers[best],
        rule=BEST_LAYER_RULE,
        selection_frequency=dict(zip(cache.layers, frequency.tolist(), strict=True)),
        n_pairs=cache.n_pairs,
        metadata={
            **cache.metadata,
            **_repetition(cache),
            "ranking_seed": seed,
            "n_folds": n_folds,
            "n_resamples": n_resamples,
        },
        kinds=_KINDS,
        samples=samples,
    )
    if not isinstance(cache, ResidualCache):
        return ranking
    return _with_more(ranking, cache, seed, n_folds, n_resamples, evidence)


def _repetition(cache: Residuals) -> dict[str, Any]:
    """Notices of a cache from elsewhere, whose pairs nobody has looked at; warned of here."""
    if not isinstance(cache, ResidualCache) or "identical_pairs" in cache.metadata:
        return {}
    numbers = repeated_pairs(cache.instructed, cache.uninstructed)
    n_identical = cache.n_pairs - len(set(numbers))
    if not n_identical:
        return {}
    apart = len(set(zip(numbers, cache.groups, strict=True))) > len(set(numbers))
    notice = f"{n_identical} of {cache.n_pairs} pairs have the very residuals of another one" + (
        ", and are given as other base queries: what is held out was also fitted on"
        if apart
        else "; they are held out together and add nothing"
    )
    notices = {"identical_pairs": n_identical, "notices": [notice]}
    warn_of_pairs(notices, stacklevel=4)
    return notices


def _separability(runs: Runs, folds: Folds, groups: Int[Array, "pair"]) -> dict[str, float]:
    fit_noise = fit_noise_share(runs[0] - runs[1], groups, len(folds))
    measures = held_out_measures(difference_scores(runs, folds)[:, 0], groups, fit_noise)
    named = {
        "auroc": measures["auroc"],
        "d_prime": np.array(sensitivity(runs, groups)),
        "d_prime_held_out": measures["d_prime"],
        "accuracy": measures["accuracy"],
    }
    return {
        column: float(value)
        for name, values in named.items()
        for column, value in zip((name, f"{name}_low", f"{name}_high"), values, strict=True)
    }


def _resampled(
    runs: Runs, folds: Folds, draws: UInt16[Array, "resample pair"]
) -> tuple[Float[Array, "resample"], Float[Array, "resample"]]:
    """AUROC and held-out d′ of each resample, directions fitted again."""
    aurocs, d_primes = [], []
    for block in np.array_split(draws, -(-draws.size // _MOST_SCORES)):
        counts = block.astype(np.float64)
        scores = difference_scores(runs, folds, counts)
        aurocs.append(auroc_of(scores[0], scores[1], counts))
        d_primes.append(d_prime_of(scores, counts))
    return np.concatenate(aurocs), np.concatenate(d_primes)


def _with_more(
    ranking: LayerRanking,
    cache: ResidualCache,
    seed: int,
    n_folds: int,
    n_resamples: int,
    evidence: Sequence[str],
) -> LayerRanking:
    """The ranking with the kinds of evidence asked for beyond separability."""
    if "probes" in evidence:
        frame = probe_layers(cache, seed, n_folds, _PROBES)
        for probe in _PROBES:
            rows = frame[frame.probe == probe]
            for measure in ("auroc", "d_prime", "balanced_accuracy"):
                ranking = ranking.with_evidence(
                    f"{probe}_{measure}", rows, measure, f"{measure}_low", f"{measure}_high"
                )
    if "null" in evidence:
        null = permutation_null(cache, seed, n_folds)
        ranking = ranking.with_columns(null.table.drop(columns="auroc"), p_value=null.p_value)
    if "dimension" in evidence:
        frame = instruction_dimension(cache, seed, n_folds, n_resamples=n_resamples)
        ranking = ranking.with_columns(frame)
    return ranking


def _best(
    auroc: Float[Array, "layer resample"], d_prime: Float[Array, "layer resample"]
) -> Int[Array, "resample"]:
    tied = auroc >= auroc.max(axis=0) - _TIE
    best: Array = np.where(tied, np.nan_to_num(d_prime), -np.inf).argmax(axis=0)
    return best


def _random_halves(n_queries: int, seed: int) -> Bool[Array, "split query"]:
    """Which base queries are in the first half of each random split."""
    rng = np.random.default_rng(seed)
    order = rng.permuted(np.tile(np.arange(n_queries), (_N_SPLITS, 1)), axis=1)
    first = np.zeros(order.shape, dtype=bool)
    np.put_along_axis(first, order[:, : n_queries // 2], True, axis=1)
    return first


def _stability(
    runs: Runs, norm: float, groups: Int[Array, "pair"], first_half: Bool[Array, "split query"]
) -> dict[str, float]:
    """Length of the mean difference, and how far its direction depends on the queries."""
    sums = query_sums(runs[0] - runs[1], groups)
    gap = float(np.linalg.norm(sums.sum(axis=0) / len(groups)))
    halves = [half @ sums for half in (first_half.astype(float), 1.0 - first_half)]
    lengths = np.prod([np.linalg.norm(half, axis=1) for half in halves], axis=0)
    cosines = (halves[0] * halves[1]).sum(axis=1) / lengths
    low, high = np.percentile(cosines, PERCENTILES)
    return {
        "gap": gap,
        "relative_gap": gap / norm,
        "split_half_cosine": float(cosines.mean()),
        "split_half_cosine_low": float(low),
        "split_half_cosine_high": float(high),
    }
