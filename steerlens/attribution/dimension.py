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

Beside it stands the **participation ratio** of the differences' second moments :math:`M`,

.. math:: R = \frac{(\operatorname{tr} M)^2}{\operatorname{tr} M^2}
            = \frac{(\operatorname{mean}_i \|d_i\|^2)^2}
                   {\operatorname{mean}_{i \ne j} (d_i \cdot d_j)^2}

(Litwin-Kumar et al. 2017, *Optimal degrees of synaptic connectivity*, Neuron 93:1153–1164, on
second moments instead of covariances): over how many directions a single pair's difference spreads,
noise and query included. Pairs in the second mean are of different base queries, so that few pairs
in a wide space do not make it look small. Dimension 1 with a ratio of 20 reads: one shared
direction, buried in what differs from query to query.

Intervals: for the dimension, 95 % bootstrap percentiles over held-out base queries with the fitted
components kept; for the ratio, delete-one jackknife over base queries on the logarithm.

Caveat: "dimension" depends on the stated share and grows with noise when there are few pairs.

>>> import torch
>>> noise = torch.randn(2, 40, 1, 16, generator=torch.Generator().manual_seed(0))
>>> noise[0, :, 0, 0] += 8.0                                       # the same for every query
>>> instruction_dimension(ResidualCache.from_tensors(noise[0], noise[1])).dimension.tolist()
[1.0]
"""

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.stats import t

from steerlens.activations.cache import ResidualCache
from steerlens.attribution.held_out import (
    Folds,
    check_rankable,
    fold_scores,
    group_numbers,
    layer_runs,
    products,
)
from steerlens.errors import SteerlensError
from steerlens.stats.resampling import INTERVAL, query_draws
from steerlens.stats.separability import held_out_measures

__all__ = ["instruction_dimension"]

Array = np.ndarray


def instruction_dimension(
    cache: ResidualCache,
    seed: int = 0,
    n_folds: int = 5,
    share: float = 0.9,
    n_resamples: int = 1000,
) -> pd.DataFrame:
    """Dimension and participation ratio of every layer.

    Args:
        cache: Residuals of both sides.
        seed: Seed of folds and resamples.
        n_folds: Cross-validation folds.
        share: Share of the held-out mean difference that the components must carry.
        n_resamples: Bootstrap resamples.

    Returns:
        One row a layer: ``layer``; ``dimension, remaining_auroc, participation_ratio``, each with
        ``…_low`` and ``…_high``; ``first_share`` (what the first component alone carries). The
        dimension is missing where the held-out mean difference
        does not point the training one's way: nothing there is shared between queries.

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
    rows = []
    for layer, runs in zip(cache.layers, layer_runs(cache), strict=True):
        product = products(runs)
        gram = product[0] - product[1]
        carried, whole = _contributions(gram, folds)
        everything = np.ones((1, len(gram)))
        dimension = _smallest(carried, whole, everything, share)[0]
        resampled = _smallest(carried, whole, draws, share)
        known = resampled[np.isfinite(resampled)]
        low, high = (
            np.percentile(known, INTERVAL, method="nearest") if len(known) else 2 * (np.nan,)
        )
        rest = np.full(3, np.nan)
        if np.isfinite(dimension):
            left = _scores_without(product, folds, int(dimension))
            # What is left of the direction is mostly noise of the fit: the largest share.
            rest = held_out_measures(left, groups, fit_noise=1.0)["auroc"]
        ratio, ratio_low, ratio_high = _participation(gram, groups)
        rows.append(
            {
                "layer": layer,
                "dimension": dimension,
                "dimension_low": low,
                "dimension_high": high,
                "remaining_auroc": rest[0],
                "remaining_auroc_low": rest[1],
                "remaining_auroc_high": rest[2],
                "first_share": carried[:, 0].sum() / whole.sum(),
                "participation_ratio": ratio,
                "participation_ratio_low": ratio_low,
                "participation_ratio_high": ratio_high,
            }
        )
    return pd.DataFrame(rows)


def _contributions(
    gram: Float[Array, "pair pair"], folds: Folds
) -> tuple[Float[Array, "pair component"], Float[Array, "pair"]]:
    """Each held-out pair's part of the numerator for 1, 2, … components, and of the denominator.

    Right singular vectors follow from the products alone: with :math:`G = A \\Lambda A^\\top`
    over the training pairs, component *c* is :math:`D^\\top a_c / \\sqrt{\\lambda_c}`.
    """
    n_components = min(len(train) for train, _ in folds)
    carried = np.zeros((len(gram), n_components))
    whole = np.zeros(len(gram))
    for train, test in folds:
        values, vectors = np.linalg.eigh(gram[np.ix_(train, train)])
        values, vectors = values[::-1], vectors[:, ::-1]
        real = values > values[0] * 1e-12
        inverse = np.where(real, 1 / np.where(real, values, 1.0), 0.0)
        to_test = gram[np.ix_(test, train)]
        # (d' · v_c)(v_c · mean d), with both factors' 1/√λ in `inverse`.
        mean_along = vectors.T @ gram[np.ix_(train, train)].mean(axis=1)
        parts = (to_test @ vectors) * (inverse * mean_along)
        carried[test] = parts.cumsum(axis=1)[:, :n_components]
        whole[test] = to_test.mean(axis=1)
    return carried, whole


def _scores_without(
    product: Float[Array, "side run pair"], folds: Folds, k: int
) -> Float[Array, "side run"]:
    """Held-out scores along the difference of means without its first `k` components.

    In the notation of `_contributions`, the projection of the mean on component *c* is
    :math:`D^\\top a_c a_c^\\top 1 / n`.
    """
    gram = product[0] - product[1]
    scores = np.zeros(product.shape[:2])
    for train, test in folds:
        _, vectors = np.linalg.eigh(gram[np.ix_(train, train)])
        removed = vectors[:, -k:]
        share = np.full((1, len(train)), 1 / len(train))
        weights = share - (share @ removed) @ removed.T
        scores[:, test] = fold_scores(product, train, test, weights, share)[:, 0]
    return scores


def _smallest(
    carried: Float[Array, "pair component"],
    whole: Float[Array, "pair"],
    counts: Float[Array, "resample pair"],
    share: float,
) -> Float[Array, "resample"]:
    """Smallest number of components that carry `share`; NaN where nothing is shared."""
    total = counts @ whole
    reached = (counts @ carried) >= share * total[:, None]
    # With all components the whole is carried, whatever rounding says.
    reached[:, -1] = True
    result: Array = np.where(total > 0, reached.argmax(axis=1) + 1.0, np.nan)
    return result


def _participation(
    gram: Float[Array, "pair pair"], groups: Int[Array, "pair"]
) -> tuple[float, float, float]:
    member = np.eye(int(groups.max()) + 1)[groups]
    n_groups = member.shape[1]
    if n_groups < 3:
        return (np.nan, np.nan, np.nan)
    other = groups[:, None] != groups[None, :]
    keep = np.concatenate([np.ones((1, len(gram))), 1 - member.T])
    size = (keep @ gram.diagonal()) / keep.sum(axis=1)
    squares = ((keep @ (gram**2 * other)) * keep).sum(axis=1)
    squares /= ((keep @ other) * keep).sum(axis=1)
    logarithms = np.log(size**2 / squares)
    centred = logarithms[1:] - logarithms[1:].mean()
    reach = t.ppf(0.975, n_groups - 1) * np.sqrt((n_groups - 1) / n_groups * (centred**2).sum())
    low, middle, high = np.exp(logarithms[0] + np.array([-reach, 0.0, reach]))
    return (float(middle), float(low), float(high))
