r"""Is there anything to find? A permutation null over all layers at once, and two controls.

**Null.** If the instruction did nothing, the two runs of a pair could be swapped without changing
the joint distribution of the data. So the sides of randomly chosen base queries are swapped (all
pairs of a query together, since they share its uninstructed run), directions are fitted again, and
the held-out AUROC of every layer is computed again. Looking at the best of many layers is paid for
by keeping only the **maximum over layers** of each permutation (Westfall & Young 1993,
*Resampling-based multiple testing*): with :math:`A_l` the observed AUROC and :math:`M_b` the
maximum in permutation *b* of *B*,

.. math:: p_l = \frac{1 + \#\{b : M_b \ge A_l\}}{B + 1}

is the family-wise adjusted p-value of layer *l*. The smallest of them is the p-value of "some layer
separates". With one pair per base query the test is exact (measured: it rejects 4.97 % of 3,000
true nulls at 5 %). Where pairs share an uninstructed run, swapping changes which side repeats, and
the rate is only near it (two pairs per query: 6.1 % of 1,500, 95 % interval 5.0 to 7.4).

**Shuffled labels.** The same permutations layer by layer: what cross-validation shows of labels
that mean nothing (mean, and the range of 95 % of the permutations).

**Random directions.** Directions uniform on the sphere instead of fitted ones; only their sign and
threshold come from the training folds. Where they separate too, the sides differ in so many
dimensions, or in such large ones, that separation says little about *the* direction.

Caveat: with *G* base queries there are only :math:`2^{G-1}` different outcomes of swapping, so
below seven queries no p-value can reach 0.02.

>>> import torch
>>> noise = torch.randn(2, 40, 3, 8, generator=torch.Generator().manual_seed(0))
>>> noise[0, :, 1] += 3.0                                    # only layer 1 tells the sides apart
>>> null = permutation_null(ResidualCache.from_tensors(noise[0], noise[1]), n_permutations=199)
>>> null.p_value, null.table.p_adjusted.lt(0.05).tolist()
(0.005, [False, True, False])
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float

from steerlens.activations.cache import ResidualCache
from steerlens.attribution.held_out import (
    Folds,
    Runs,
    check_rankable,
    difference_scores,
    group_numbers,
    in_span,
    layer_runs,
)
from steerlens.errors import SteerlensError
from steerlens.stats.queries import PERCENTILES
from steerlens.stats.separability import auroc_of
from steerlens.views import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["NullTest", "permutation_null"]

Array = np.ndarray
# AUROCs closer than this differ only by rounding.
_TIE = 1e-9


@dataclass(frozen=True, eq=False, repr=False)
class NullTest(Result):
    """Result of `permutation_null`.

    Attributes:
        table: One row per layer: ``layer, auroc, p_adjusted``, then the controls
            ``shuffled_auroc`` and ``random_auroc``, each with the ends ``…_low`` and ``…_high`` of
            the range that holds 95 % of its draws.
        p_value: Chance that the best layer of a null reaches the best observed AUROC.
        threshold: AUROC that a layer must exceed to be significant at 5 % among all layers.
        maxima: The largest AUROC over layers in each permutation.
    """

    table: pd.DataFrame
    p_value: float
    threshold: float
    maxima: Float[Array, "permutation"]

    def plot(self) -> "go.Figure":
        """AUROC over layers beside shuffled labels and random directions."""
        from steerlens.views.layers import auroc_curves

        lines = {
            "auroc": "AUROC",
            "shuffled_auroc": "shuffled labels",
            "random_auroc": "random directions",
        }
        return auroc_curves(self.table, lines)

    def __repr__(self) -> str:
        n_significant = int((self.table.p_adjusted <= 0.05).sum())
        return (
            f"NullTest(p {self.p_value:.3g} that no layer separates, {n_significant} of "
            f"{len(self.table)} layers above {self.threshold:.3f}, {len(self.maxima)} permutations)"
        )


def permutation_null(
    cache: ResidualCache,
    seed: int = 0,
    n_folds: int = 5,
    n_permutations: int = 1000,
    n_directions: int = 100,
) -> NullTest:
    """Test all layers at once, beside shuffled labels and random directions.

    Args:
        cache: Residuals of both sides.
        seed: Seed of folds (those of `steerlens.attribution.rank_layers`), swaps and directions.
        n_folds: Cross-validation folds.
        n_permutations: Random swaps; the smallest p-value is 1 / (n_permutations + 1).
        n_directions: Random directions, the same in all layers.

    Raises:
        ActivationError: As `rank_layers`.
        SteerlensError: Folds, permutations, directions or seed out of range.
    """
    if n_permutations < 19 or n_directions < 1:
        raise SteerlensError(
            "at least 19 permutations (for a p-value of 0.05) and 1 direction are needed; got "
            f"{n_permutations} and {n_directions}"
        )
    folds = check_rankable(cache, n_folds, seed)
    groups = group_numbers(cache.groups)
    rng = np.random.default_rng(seed)
    swaps = rng.choice((-1.0, 1.0), size=(n_permutations, int(groups.max()) + 1))
    # The observed labels ride along in the first row.
    signs = np.concatenate([np.ones((1, cache.n_pairs)), swaps[:, groups]])
    directions = rng.standard_normal((cache.d_model, n_directions))
    permuted, random = [], []
    for runs in layer_runs(cache, span=False):
        permuted.append(_permuted_aurocs(in_span(runs), folds, signs))
        random.append(_random_aurocs(runs @ directions, folds))
    aurocs = np.stack(permuted)
    observed, shuffled = aurocs[:, 0], aurocs[:, 1:]
    maxima = shuffled.max(axis=0)
    reached = (maxima >= observed[:, None] - _TIE).sum(axis=1)
    p_adjusted = (1 + reached) / (n_permutations + 1)
    table = pd.DataFrame({"layer": cache.layers, "auroc": observed, "p_adjusted": p_adjusted})
    for name, draws in (("shuffled_auroc", shuffled), ("random_auroc", np.stack(random))):
        table[name] = draws.mean(axis=1)
        table[f"{name}_low"], table[f"{name}_high"] = np.percentile(draws, PERCENTILES, axis=1)
    # p ≤ 0.05 means: at most this many maxima, the largest ones, may reach the observed value.
    n_allowed = int(0.05 * (n_permutations + 1) + _TIE) - 1
    return NullTest(
        table=table,
        p_value=float(p_adjusted.min()),
        threshold=float(np.sort(maxima)[-1 - n_allowed]),
        maxima=maxima,
    )


def _permuted_aurocs(
    runs: Runs, folds: Folds, signs: Float[Array, "permutation pair"]
) -> Float[Array, "permutation"]:
    """Held-out AUROC with sides swapped where the sign is −1, in training and in scoring."""
    scores = difference_scores(runs, folds, signs=signs)
    plus = np.where(signs > 0, scores[0], scores[1])
    minus = np.where(signs > 0, scores[1], scores[0])
    return auroc_of(plus, minus, np.ones_like(signs))


def _random_aurocs(
    projections: Float[Array, "side pair direction"], folds: Folds
) -> Float[Array, "direction"]:
    """Held-out AUROC of directions whose sign and threshold are fitted on the training folds."""
    scores = np.empty_like(projections)
    for train, test in folds:
        means = projections[:, train].mean(axis=1)
        sign = np.sign(means[0] - means[1])
        scores[:, test] = sign * (projections[:, test] - means.mean(axis=0))
    plus, minus = scores[0].T, scores[1].T
    return auroc_of(plus, minus, np.ones_like(plus))
