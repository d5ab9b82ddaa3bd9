r"""How much of a task's mean difference is its own, freed of noise.

With :math:`\delta_t` the mean difference of task *t* (instructed − uninstructed, over base queries)
at a layer, and *o* the other tasks, the **own share** is what is left of the task's squared norm
after projecting on the span of all others, the **off-mean share** what is left beside their mean
:math:`\bar\delta`:

.. math:: 1 - \frac{\|U^\top \delta\|^2}{\|\delta\|^2}, \quad
          U \text{ an orthonormal basis of } \delta_o, \qquad
          1 - \frac{(\delta \cdot \bar\delta)^2}{\|\delta\|^2 \|\bar\delta\|^2}

Noise in :math:`\delta` lies mostly outside any thirty directions and would count as the task's own.
So squares and products are means over pairs of queries *i*, *j* of different **blocks**, which
share no query and no phrasing of the task: their noise is independent and averages to zero
(Walther et al. 2016, NeuroImage 137:188–200),

.. math:: \widehat{\|\delta\|^2} = \operatorname{mean}_{b(i) \ne b(j)} d_i \cdot d_j, \qquad
          \widehat{\|U^\top \delta\|^2} =
          \operatorname{mean}_{b(i) \ne b(j)} (U^\top d_i) \cdot (U^\top d_j)

In the second, *U* is fitted on one half of the queries and *i*, *j* are of the other half; the two
halves are averaged. *U* itself is estimated, and noise tilts it away from weak shared directions:
with 20 queries a half that added 0.06 to a share of 0.26. The jackknife over base queries, with *U*
fitted again, takes this away (0.005 is left) and gives the 95 % intervals, by Student's *t*;
bootstrap resamples would hold queries twice, whose noise looks like agreement. Estimates may fall
below 0 where nothing is the task's own. ``analyses/specific_calibration.py`` measures coverage.

>>> rng = np.random.default_rng(0)
>>> axes = np.eye(64)[:3]                                  # shared, the task's own, another's
>>> means = np.stack([3 * axes[0] + 3 * axes[1], 4 * axes[0] + axes[2]])
>>> differences = means[:, None] + 0.5 * rng.standard_normal((2, 40, 64))
>>> half = np.repeat([0, 1], 20)
>>> shares = own_shares(differences, half, np.arange(40), np.arange(40))
>>> shares["own_share"].round(1).tolist()
[0.5, 0.5, 0.6]
"""

import numpy as np
from jaxtyping import Float, Int

from steerlens.stats.queries import jackknife_reach

__all__ = ["corrected_cosines", "own_shares"]

Array = np.ndarray
Estimate = Float[Array, "3"]
# Directions of the others' span shorter than this share of the longest are rounding.
_SAME_DIRECTION = 1e-6


def own_shares(
    differences: Float[Array, "task query d"],
    halves: Int[Array, "query"],
    blocks: Int[Array, "query"],
    groups: Int[Array, "query"],
) -> dict[str, Estimate]:
    """``own_share`` and ``off_mean_share`` of the first task: estimate, lower and upper end.

    Args:
        differences: Instructed − uninstructed residuals at one layer, the task in question first.
        halves: 0 or 1 for each query.
        blocks: Block of each query; no block is in both halves.
        groups: Base-query numbers 0, 1, …, left out together by the jackknife.

    Returns:
        NaN for ``own_share`` where the others span the whole stream, or where a half has one block.
    """
    n_groups = int(groups.max()) + 1
    # The first row leaves nothing out, the others one group each.
    keep = np.concatenate([np.ones((1, len(groups))), np.arange(n_groups)[:, None] != groups])
    own, others = differences[0], differences[1:]
    off_mean = 1 - _squared_cosine(own, others.mean(axis=0), blocks, keep)
    values = {
        "own_share": _own_share(own, others, halves, blocks, keep),
        "off_mean_share": off_mean,
    }
    result = {}
    for name, value in values.items():
        reach = float(jackknife_reach(value[1:]))
        estimate = n_groups * value[0] - (n_groups - 1) * value[1:].mean()
        result[name] = np.array([estimate, estimate - reach, estimate + reach])
    return result


def corrected_cosines(
    differences: Float[Array, "task query d"], blocks: Int[Array, "query"]
) -> Float[Array, "other"]:
    """Cosine of the first task's mean difference with each other's, freed of noise."""
    once = np.ones((1, len(blocks)))
    own = differences[0]
    with np.errstate(invalid="ignore"):
        return np.array(
            [
                _product(own, other, blocks, once)[0]
                / np.sqrt(_product(own, own, blocks, once) * _product(other, other, blocks, once))[
                    0
                ]
                for other in differences[1:]
            ]
        )


def _squared_cosine(
    a: Float[Array, "query d"],
    b: Float[Array, "query d"],
    blocks: Int[Array, "query"],
    keep: Float[Array, "set query"],
) -> Float[Array, "set"]:
    squares = _product(a, a, blocks, keep) * _product(b, b, blocks, keep)
    result: Array = _product(a, b, blocks, keep) ** 2 / squares
    return result


def _product(
    a: Float[Array, "query d"],
    b: Float[Array, "query d"],
    blocks: Int[Array, "query"],
    keep: Float[Array, "set query"],
) -> Float[Array, "set"]:
    """Mean of :math:`a_i \\cdot b_j` over kept queries of different blocks."""
    apart = (blocks[:, None] != blocks).astype(np.float64)
    products = (a @ b.T) * apart
    total = np.einsum("si,ij,sj->s", keep, products, keep, optimize=True)
    n = np.einsum("si,ij,sj->s", keep, apart, keep, optimize=True)
    result: Array = np.divide(total, n, out=np.full_like(total, np.nan), where=n > 0)
    return result


def _own_share(
    own: Float[Array, "query d"],
    others: Float[Array, "other query d"],
    halves: Int[Array, "query"],
    blocks: Int[Array, "query"],
    keep: Float[Array, "set query"],
) -> Float[Array, "set"]:
    if len(others) >= own.shape[1]:
        return np.full(len(keep), np.nan)
    shared = whole = np.zeros(len(keep))
    for half in (0, 1):
        fit, test = halves != half, halves == half
        weights = keep[:, fit] / keep[:, fit].sum(axis=1, keepdims=True)
        spans = np.einsum("sq,oqd->sod", weights, others[:, fit], optimize=True)
        gram = spans @ spans.transpose(0, 2, 1)
        # Coordinates of the task's queries along the span: x·Dᵀ (D Dᵀ)⁺ D·y.
        along = own[test] @ spans.transpose(0, 2, 1)
        inner = along @ np.linalg.pinv(gram, rcond=_SAME_DIRECTION**2, hermitian=True)
        apart = (blocks[test][:, None] != blocks[test]).astype(np.float64)
        pairs = keep[:, test][:, :, None] * keep[:, test][:, None] * apart
        n = pairs.sum(axis=(1, 2))
        if not n.all():
            return np.full(len(keep), np.nan)
        products = inner @ along.transpose(0, 2, 1)
        shared = shared + (products * pairs).sum(axis=(1, 2)) / n
        whole = whole + ((own[test] @ own[test].T) * pairs).sum(axis=(1, 2)) / n
    result: Array = 1 - shared / whole
    return result
