r"""Linear probes beside the difference of means, cross-validated by base query.

Four ways to fit a direction *w* and a threshold *b* on the training folds; a held-out run *h* gets
the decision value :math:`w \cdot h + b`:

=======================  ==========================================================================
``difference_of_means``  :math:`w = \bar h^+ - \bar h^-`
``first_component``      first right singular vector of the pairs' differences, not centred (that
                         is, their first principal component with both signs of each difference
                         taken, as in Zou et al. 2023, *Representation engineering*,
                         arXiv 2310.01405), turned towards the instructed side
``lda``                  Fisher's discriminant with the Ledoit-Wolf shrinkage of scikit-learn's
                         ``LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")``
``logistic``             logistic regression with L2 penalty, scikit-learn's
                         ``LogisticRegression(C=1)`` on residuals divided by one number, so that
                         the training residuals' variance is 1 on average over dimensions
=======================  ==========================================================================

The first two put the threshold midway between the training means. Decision values are divided by
the gap of the training means, so those of different folds share one scale.

Why four: the difference of means is what steering adds, and is blind to what else varies along it;
``lda`` and ``logistic`` discount directions in which runs vary anyway, so where they separate and
the difference of means does not, the instruction is there but not along the steering vector.

**Cost.** With fewer runs than dimensions the first component and the logistic probe are fitted in
the span of the runs, which contains their solution (`steerlens.attribution.held_out.in_span`).
Shrinkage towards *scaled axes* depends on the axes, so LDA is solved in the full space, where the
shrunk covariance is diagonal plus a matrix of the rank of the runs, by Woodbury's identity (7 ms
for 102 runs in 576 dimensions, where scikit-learn's solver takes 90 ms and grows with the cube).

Intervals: `steerlens.stats.separability`. The share :math:`\rho` of fitting noise is set to 1
for ``lda`` and ``logistic``, which amplify it: an upper bound, so their intervals are wide rather
than wrong.

>>> import torch
>>> noise = torch.randn(2, 40, 1, 8, generator=torch.Generator().manual_seed(0))
>>> noise[0] += 1.0
>>> frame = probe_layers(ResidualCache.from_tensors(noise[0], noise[1]), probes=["lda"])
>>> frame[["layer", "probe"]].values.tolist(), bool(frame.auroc[0] > 0.9)
([[0, 'lda']], True)
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.linalg import LinAlgError, lstsq, solve
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.linear_model import LogisticRegression

from steerlens.activations.cache import ResidualCache
from steerlens.attribution.held_out import (
    Folds,
    Runs,
    centred,
    check_rankable,
    group_numbers,
    in_span,
    layer_runs,
)
from steerlens.errors import SteerlensError, unknown_name
from steerlens.stats.separability import fit_noise_share, held_out_measures

__all__ = ["PROBES", "fit_probe", "probe_layers", "probe_scores"]

Array = np.ndarray
PROBES = ("difference_of_means", "first_component", "lda", "logistic")
_NOISY = ("lda", "logistic")


def probe_layers(
    cache: ResidualCache,
    seed: int = 0,
    n_folds: int = 5,
    probes: Sequence[str] = PROBES,
) -> pd.DataFrame:
    """Held-out separation of every layer by each probe.

    Args:
        cache: Residuals of both sides.
        seed: Seed of the folds, which are those of `steerlens.attribution.rank_layers`.
        n_folds: Cross-validation folds.
        probes: Some of `PROBES`.

    Returns:
        One row per layer and probe: ``layer, probe`` and ``auroc, d_prime, balanced_accuracy``,
        each with ``…_low`` and ``…_high``. d′ is that of held-out scores.

    Raises:
        UnknownNameError: A probe that does not exist.
        ActivationError: As `rank_layers`.
    """
    folds = check_rankable(cache, n_folds, seed)
    groups = group_numbers(cache.groups)
    for name in probes:
        _check_probe(name)
    rows = []
    for layer, runs in zip(cache.layers, layer_runs(cache, span=False), strict=True):
        share = fit_noise_share(in_span(runs)[0] - in_span(runs)[1], groups, n_folds)
        for name in probes:
            scores = probe_scores(runs, folds, name)
            measures = held_out_measures(scores, groups, 1.0 if name in _NOISY else share)
            measures["balanced_accuracy"] = measures.pop("accuracy")
            row: dict[str, object] = {"layer": layer, "probe": name}
            for measure, values in measures.items():
                columns = (measure, f"{measure}_low", f"{measure}_high")
                row |= dict(zip(columns, values.tolist(), strict=True))
            rows.append(row)
    return pd.DataFrame(rows)


def probe_scores(runs: Runs, folds: Folds, probe: str) -> Float[Array, "side pair"]:
    """Held-out decision values of one layer, in units of the training means' gap.

    Args:
        runs: Residuals, instructed side first.
        folds: Training and test pairs.
        probe: One of `PROBES`.
    """
    _check_probe(probe)
    width = runs.shape[-1]
    runs = centred(runs) if probe == "lda" else in_span(centred(runs))
    scores = np.zeros(runs.shape[:2])
    for train, test in folds:
        weights, intercept = fit_probe(runs[:, train], probe, width)
        means = runs[:, train].mean(axis=1) @ weights
        gap = means[0] - means[1]
        scores[:, test] = (runs[:, test] @ weights + intercept) / (gap if gap > 0 else 1.0)
    return scores


def fit_probe(runs: Runs, probe: str, width: int | None = None) -> tuple[Float[Array, "d"], float]:
    """Direction and intercept of one probe fitted on `runs`, instructed side positive.

    Args:
        runs: Training residuals, instructed side first.
        probe: One of `PROBES`.
        width: Dimensions of the full space where `runs` are given in their span; it sets the
            scale of the logistic penalty.

    Raises:
        SteerlensError: LDA with fewer than two pairs.
    """
    _check_probe(probe)
    if probe == "lda":
        return _lda(runs)
    if probe == "logistic":
        return _logistic(runs, width or runs.shape[-1])
    means = runs.mean(axis=1)
    direction = means[0] - means[1]
    if probe == "first_component":
        component = np.linalg.svd(runs[0] - runs[1], full_matrices=False)[2][0]
        direction = component * (1.0 if component @ direction >= 0 else -1.0)
    return direction, -float(direction @ means.mean(axis=0))


def _check_probe(name: str) -> None:
    if name not in PROBES:
        raise unknown_name("probe", name, PROBES)


def _logistic(runs: Runs, width: int) -> tuple[Float[Array, "d"], float]:
    flat = runs.reshape(-1, runs.shape[-1])
    # Rotations keep this number, so it is the same in the span and in the full space.
    squares = ((flat - flat.mean(axis=0)) ** 2).sum(axis=1)
    scale = float(np.sqrt(squares.mean() / width)) or 1.0
    labels = np.repeat([1, 0], runs.shape[1])
    probe = LogisticRegression(solver="newton-cholesky", tol=1e-8).fit(flat / scale, labels)
    return probe.coef_[0] / scale, float(probe.intercept_[0])


def _lda(runs: Runs) -> tuple[Float[Array, "d"], float]:
    n_pairs, width = runs.shape[1:]
    if n_pairs < 2:
        raise SteerlensError(
            f"LDA needs at least 2 training pairs to estimate a covariance; got {n_pairs}; "
            "difference_of_means can be fitted"
        )
    means = runs.mean(axis=1)
    factors, diagonal = [], np.zeros(width)
    for side, mean in zip(runs, means, strict=True):
        centred = side - mean
        scale = centred.std(axis=0)
        scale[scale == 0] = 1.0
        standard = centred / scale
        share = ledoit_wolf_shrinkage(standard)
        # Both sides have the same prior, ½.
        factors.append(centred * np.sqrt((1 - share) / (2 * n_pairs)))
        diagonal += 0.5 * share * standard.var(axis=0).mean() * scale**2
    weights = _solve_shrunk(np.concatenate(factors), diagonal, means[0] - means[1])
    return weights, -float(weights @ means.mean(axis=0))


def _solve_shrunk(
    factor: Float[Array, "run d"], diagonal: Float[Array, "d"], target: Float[Array, "d"]
) -> Float[Array, "d"]:
    """Solution of (factorᵀ factor + diag) x = target, in the smaller of the two dimensions."""
    n_runs, width = factor.shape
    if n_runs < width and (diagonal > 0).all():
        scaled = factor / diagonal
        inner = np.eye(n_runs) + scaled @ factor.T
        result: Array = target / diagonal - scaled.T @ solve(inner, scaled @ target, assume_a="pos")
        return result
    covariance = factor.T @ factor + np.diag(diagonal)
    try:
        result = solve(covariance, target, assume_a="pos")
    except LinAlgError:
        result = lstsq(covariance, target)[0]
    return result
