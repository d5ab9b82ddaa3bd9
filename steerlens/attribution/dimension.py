r"""How many dimensions carry an instruction.

Let :math:`d_i` be the differences of the training pairs and :math:`V_k` their first *k* right
singular vectors (principal components of the differences, not centred). With :math:`\bar d` the
training mean and :math:`\bar d'` that of the held-out pairs, the share of the instruction's mean
effect that *k* components carry is

.. math:: S_k = \frac{\bar d' \cdot V_k V_k^\top \bar d}{\bar d' \cdot \bar d}

both parts summed over folds: the held-out mean meets only components fitted without it, so
components that fit noise add nothing on average. The **dimension** is the smallest *k* with
:math:`S_k \ge 0.9`: 1 for an instruction that does the same to every query, more when what it does
in common is not what differences vary along most. What the other components still tell is the
**remaining AUROC**: that of held-out runs along the difference of means after the first *k*
components are projected out of it (½: nothing is left).

The interval of the dimension holds 95 % of bootstrap resamples of the held-out base queries, with
the fitted components kept.

Caveat: "dimension" depends on the stated share and grows with noise when there are few pairs.

>>> import torch
>>> noise = torch.randn(2, 40, 1, 16, generator=torch.Generator().manual_seed(0))
>>> noise[0, :, 0, 0] += 8.0                                       # the same for every query
>>> instruction_dimension(ResidualCache.from_tensors(noise[0], noise[1])).dimension.tolist()
[1.0]
"""

import numpy as np
import pandas as pd
from jaxtyping import Float, Num

from steerlens.activations.cache import ResidualCache
from steerlens.attribution.held_out import (
    Folds,
    Runs,
    check_rankable,
    group_numbers,
    layer_runs,
    scores_along,
)
from steerlens.errors import SteerlensError
from steerlens.stats.queries import PERCENTILES, query_draws
from steerlens.stats.separability import held_out_measures

__all__ = ["instruction_dimension"]

Array = np.ndarray
_DIMENSION = ("dimension", "dimension_low", "dimension_high")
_REMAINING = ("remaining_auroc", "remaining_auroc_low", "remaining_auroc_high")


def instruction_dimension(
    cache: ResidualCache,
    seed: int = 0,
    n_folds: int = 5,
    share: float = 0.9,
    n_resamples: int = 1000,
) -> pd.DataFrame:
    """Dimension of every layer.

    Args:
        cache: Residuals of both sides.
        seed: Seed of folds and resamples.
        n_folds: Cross-validation folds.
        share: Share of the held-out mean difference that the components must carry.
        n_resamples: Bootstrap resamples.

    Returns:
        One row per layer: ``layer``; ``dimension, remaining_auroc``, each with ``…_low`` and
        ``…_high``; ``first_share`` (what the first component alone carries). The dimension is
        missing where the held-out mean difference does not point the training one's way: nothing
        there is shared between queries.

    Raises:
        ActivationError: As `rank_layers`.
        SteerlensError: Share, folds, resamples or seed out of range.
    """
    if not 0 < share < 1 or n_resamples < 1:
        raise SteerlensError(
            "share must lie between 0 and 1, and at least 1 resample is needed; got "
            f"{share} and {n_resamples}"
        )
    folds = check_rankable(cache, n_folds, seed)
    groups = group_numbers(cache.groups)
    draws = query_draws(cache.groups, n_resamples, seed)
    once = np.ones((1, cache.n_pairs))
    rows = []
    for layer, runs in zip(cache.layers, layer_runs(cache), strict=True):
        differences = runs[0] - runs[1]
        carried, whole = _carried(differences, folds)
        dimension = _smallest(carried, whole, once, share)[0]
        resampled = _smallest(carried, whole, draws, share)
        known = resampled[np.isfinite(resampled)]
        ends = np.percentile(known, PERCENTILES, method="nearest") if len(known) else [np.nan] * 2
        remaining = np.full(3, np.nan)
        if np.isfinite(dimension):
            scores = _scores_without(runs, folds, int(dimension))
            # What is left of the direction is mostly noise of the fit: the largest share.
            remaining = held_out_measures(scores, groups, fit_noise=1.0)["auroc"]
        rows.append(
            {
                "layer": layer,
                **dict(zip(_DIMENSION, (dimension, *ends), strict=True)),
                **dict(zip(_REMAINING, remaining, strict=True)),
                "first_share": carried[:, 0].sum() / whole.sum(),
            }
        )
    return pd.DataFrame(rows)


def _components(differences: Float[Array, "pair d"]) -> Float[Array, "component d"]:
    """Right singular vectors :math:`V` of the differences, the largest first."""
    components: Array = np.linalg.svd(differences, full_matrices=False)[2]
    return components


def _carried(
    differences: Float[Array, "pair d"], folds: Folds
) -> tuple[Float[Array, "pair component"], Float[Array, "pair"]]:
    """Each held-out pair's part of the numerator for 1, 2, … components, and of the denominator."""
    n_pairs, width = differences.shape
    n_components = min(width, *(len(train) for train, _ in folds))
    carried, whole = np.zeros((n_pairs, n_components)), np.zeros(n_pairs)
    for train, test in folds:
        components = _components(differences[train])[:n_components]
        mean = differences[train].mean(axis=0)
        parts = (differences[test] @ components.T) * (components @ mean)
        carried[test] = parts.cumsum(axis=1)
        whole[test] = differences[test] @ mean
    return carried, whole


def _scores_without(runs: Runs, folds: Folds, k: int) -> Float[Array, "side run"]:
    """Held-out scores along the difference of means without its first `k` components."""
    scores = np.zeros(runs.shape[:2])
    for train, test in folds:
        differences = runs[0, train] - runs[1, train]
        removed = _components(differences)[:k]
        mean = differences.mean(axis=0)
        direction = mean - (removed @ mean) @ removed
        midpoint = runs[:, train].mean(axis=(0, 1))
        scores[:, test] = scores_along(runs[:, test], direction[None], midpoint[None])[:, 0]
    return scores


def _smallest(
    carried: Float[Array, "pair component"],
    whole: Float[Array, "pair"],
    counts: Num[Array, "resample pair"],
    share: float,
) -> Float[Array, "resample"]:
    """Smallest number of components that carry `share`; NaN where nothing is shared."""
    total = counts @ whole
    reached = (counts @ carried) >= share * total[:, None]
    # With all components the whole is carried, whatever rounding says.
    reached[:, -1] = True
    result: Array = np.where(total > 0, reached.argmax(axis=1) + 1.0, np.nan)
    return result
