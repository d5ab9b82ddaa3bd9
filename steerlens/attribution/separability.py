r"""Separability: how well a layer tells instructed from uninstructed runs, on unseen pairs.

For each of *k* folds (folds never split a base query) the difference-of-means direction *u* is
fitted on the other folds and the held-out residuals are scored by

.. math:: s(h) = \frac{u \cdot h - m}{g}, \qquad m = \tfrac12 (\bar h^+ + \bar h^-) \cdot u,
          \qquad g = \|\bar h^+ - \bar h^-\|

with means over the training pairs, so scores of different folds share one scale: 0 is the midpoint
and the training means lie at ±½. From the held-out scores of a layer:

* **AUROC**: probability that a random instructed run scores above a random uninstructed one.
* **d′** = (mean⁺ − mean⁻) / √((var⁺ + var⁻)/2), the distance in standard deviations.
* **accuracy** of the rule *s* > 0.

Intervals are 95 % percentile bootstrap intervals over base queries (both sides of a query's pairs
are drawn together) with the held-out scores fixed; they hold the uncertainty of the evaluation, not
that of fitting the direction. The latter is told by the **split-half cosine**: the cosine between
directions fitted on two random halves of the base queries.

Caveat: separability is not steerability. On chat models AUROC saturates after a few layers, where
steering does nothing yet; see `steerlens.attribution.causal`.

>>> import torch
>>> from steerlens.activations import ResidualCache
>>> noise = torch.randn(2, 40, 3, 8, generator=torch.Generator().manual_seed(0))
>>> noise[0, :, 1] += 3.0                                    # only layer 1 tells the sides apart
>>> ranking = rank_layers(ResidualCache.from_tensors(noise[0], noise[1]))
>>> ranking.best_layer, ranking.selection_frequency[1] > 0.9
(1, True)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from einops import rearrange, reduce
from jaxtyping import Float, Int
from sklearn.model_selection import GroupKFold

from steerlens.activations import ResidualCache
from steerlens.errors import ActivationError, SteerlensError

__all__ = ["BEST_LAYER_RULE", "LayerRanking", "held_out_scores", "rank_layers"]

BEST_LAYER_RULE = "highest held-out AUROC, ties broken by d′"
_INTERVAL = (2.5, 97.5)
# AUROCs closer than this differ only by rounding.
_TIE = 1e-9
Array = np.ndarray


@dataclass(frozen=True, eq=False, repr=False)
class LayerRanking:
    """Layers ranked by separability.

    Attributes:
        table: One row a layer: ``layer, auroc, auroc_low, auroc_high, d_prime, d_prime_low,
            d_prime_high, accuracy, gap, relative_gap, split_half_cosine,
            split_half_cosine_low, split_half_cosine_high, selection_frequency``. ``gap`` is in
            residual-stream units, ``relative_gap`` in units of the mean residual norm.
        best_layer: The layer chosen by `rule`.
        rule: How it was chosen, in words.
        selection_frequency: For each layer, the share of resamples that choose it.
        n_pairs: Pairs used.
        metadata: Provenance of the activations, with seed, folds and resamples.
    """

    table: pd.DataFrame
    best_layer: int
    rule: str
    selection_frequency: Mapping[int, float]
    n_pairs: int
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data: what ``steerlens rank --json`` prints."""
        return {
            "model": self.metadata.get("model"),
            "instruction": self.metadata.get("instruction"),
            "n_pairs": self.n_pairs,
            "position": self.metadata.get("position"),
            "layers": [
                {name: _plain(value) for name, value in row.items()}
                for row in self.table.to_dict("records")
            ],
            "best_layer": self.best_layer,
            "best_layer_rule": self.rule,
            "metadata": dict(self.metadata),
        }

    def __repr__(self) -> str:
        row = self.table.set_index("layer").loc[self.best_layer]
        return (
            f"LayerRanking(best layer {self.best_layer} of {len(self.table)}, AUROC "
            f"{row.auroc:.3f} [{row.auroc_low:.3f}, {row.auroc_high:.3f}], chosen in "
            f"{row.selection_frequency:.0%} of resamples, {self.n_pairs} pairs)"
        )


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def rank_layers(
    cache: ResidualCache, seed: int = 0, n_folds: int = 5, n_resamples: int = 1000
) -> LayerRanking:
    """Rank the cached layers by how well they separate the two sides on unseen pairs.

    Args:
        cache: Residuals of both sides.
        seed: Seed of folds, resamples and halves.
        n_folds: Cross-validation folds; fewer when there are fewer base queries.
        n_resamples: Bootstrap resamples.

    Raises:
        ActivationError: All pairs share one base query, or a layer does not vary at all.
        SteerlensError: Folds, resamples or seed out of range.
    """
    if n_folds < 2 or n_resamples < 1:
        raise SteerlensError(
            f"n_folds must be at least 2 and n_resamples at least 1; got {n_folds}, {n_resamples}"
        )
    if not 0 <= seed < 2**32:
        raise SteerlensError(f"seed must be between 0 and {2**32 - 1}; got {seed}")
    rng = np.random.default_rng(seed)
    _, groups = np.unique(np.asarray(cache.groups), return_inverse=True)
    n_groups = int(groups.max()) + 1
    if n_groups < 2:
        raise ActivationError(
            "all pairs come from one base query, so none can be held out; add pairs of other "
            "base queries"
        )
    instructed, uninstructed = cache.instructed.numpy(), cache.uninstructed.numpy()
    scores = held_out_scores(
        instructed, uninstructed, groups, cache.layers, min(n_folds, n_groups), seed
    )
    wins = _wins(scores)
    everything = np.ones((1, cache.n_pairs))
    resamples = _group_resamples(rng, groups, n_groups, n_resamples)
    point = _statistics(scores, wins, everything)
    boot = _statistics(scores, wins, resamples)
    chosen = _best(boot["auroc"], boot["d_prime"])
    frequency = np.bincount(chosen, minlength=len(cache.layers)) / n_resamples
    halves = _split_half_cosines(rng, instructed - uninstructed, groups, n_groups)
    gap = np.linalg.norm((instructed.mean(0) - uninstructed.mean(0)), axis=-1)
    norm = np.linalg.norm(np.concatenate([instructed, uninstructed]), axis=-1).mean(0)
    table = pd.DataFrame(
        {
            "layer": cache.layers,
            "auroc": point["auroc"][:, 0],
            **_interval("auroc", boot["auroc"]),
            "d_prime": point["d_prime"][:, 0],
            **_interval("d_prime", boot["d_prime"]),
            "accuracy": point["accuracy"][:, 0],
            **_interval("accuracy", boot["accuracy"]),
            "gap": gap,
            "relative_gap": gap / norm,
            "split_half_cosine": halves.mean(1),
            **_interval("split_half_cosine", halves),
            "selection_frequency": frequency,
        }
    )
    best = int(_best(point["auroc"], point["d_prime"])[0])
    return LayerRanking(
        table=table,
        best_layer=cache.layers[best],
        rule=BEST_LAYER_RULE,
        selection_frequency=dict(zip(cache.layers, frequency.tolist(), strict=True)),
        n_pairs=cache.n_pairs,
        metadata={
            **cache.metadata,
            "ranking_seed": seed,
            "n_folds": min(n_folds, n_groups),
            "n_resamples": n_resamples,
        },
    )


def held_out_scores(
    instructed: Float[Array, "pair layer d_model"],
    uninstructed: Float[Array, "pair layer d_model"],
    groups: Int[Array, "pair"],
    layers: Sequence[int],
    n_folds: int,
    seed: int,
) -> Float[Array, "side layer pair"]:
    """Held-out scores *s* of the module's equation, instructed side first.

    Raises:
        ActivationError: A layer where the training means of both sides coincide.
    """
    n_pairs, n_layers, _ = instructed.shape
    sides = np.stack([instructed, uninstructed])
    scores = np.empty((2, n_layers, n_pairs))
    folds = GroupKFold(n_splits=n_folds, shuffle=True, random_state=seed)
    for train, test in folds.split(np.zeros(n_pairs), groups=groups):
        means = sides[:, train].mean(axis=1, dtype=np.float64)
        difference = means[0] - means[1]
        gap = np.linalg.norm(difference, axis=-1)
        if not gap.all():
            raise ActivationError(
                f"layer {layers[int(np.argmin(gap))]} is the same with and without the "
                "instruction: nothing to rank there; leave it out, or check that the pairs differ"
            )
        direction = difference / gap[:, None]
        midpoint = np.einsum("ld,ld->l", direction, means.mean(axis=0))
        projection = np.einsum("spld,ld->slp", sides[:, test], direction)
        scores[:, :, test] = (projection - midpoint[None, :, None]) / gap[None, :, None]
    return scores


def _wins(scores: Float[Array, "side layer pair"]) -> Float[Array, "layer plus minus"]:
    """1 where an instructed run scores above an uninstructed one, ½ where they tie."""
    plus, minus = scores[0][:, :, None], scores[1][:, None, :]
    wins: Array = ((plus > minus) + 0.5 * (plus == minus)).astype(np.float32)
    return wins


def _group_resamples(
    rng: np.random.Generator, groups: Int[Array, "pair"], n_groups: int, n_resamples: int
) -> Float[Array, "resample pair"]:
    """How often each pair is drawn when base queries are drawn with replacement."""
    counts = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n_resamples)
    drawn: Array = counts[:, groups].astype(np.float64)
    return drawn


def _statistics(
    scores: Float[Array, "side layer pair"],
    wins: Float[Array, "layer plus minus"],
    weights: Float[Array, "resample pair"],
) -> dict[str, Float[Array, "layer resample"]]:
    """AUROC, d′ and accuracy of each layer under each weighting of the pairs."""
    total = weights.sum(axis=1)
    light = weights.astype(np.float32)
    auroc = np.stack([((light @ layer) * light).sum(axis=1) for layer in wins]) / total**2
    mean = np.einsum("slp,rp->slr", scores, weights) / total
    square = np.einsum("slp,rp->slr", scores**2, weights) / total
    # Weighted sample variance: frequencies are counts, so the unbiased divisor is total − 1.
    variance = np.maximum(square - mean**2, 0.0) * total / np.maximum(total - 1, 1)
    spread = np.sqrt(reduce(variance, "side layer resample -> layer resample", "mean"))
    with np.errstate(divide="ignore", invalid="ignore"):
        d_prime = (mean[0] - mean[1]) / spread
    right = np.stack([scores[0] > 0, scores[1] < 0]).mean(axis=0)
    accuracy = np.einsum("lp,rp->lr", right, weights) / total
    return {"auroc": auroc, "d_prime": d_prime, "accuracy": accuracy}


def _best(
    auroc: Float[Array, "layer resample"], d_prime: Float[Array, "layer resample"]
) -> Int[Array, "resample"]:
    tied = auroc >= auroc.max(axis=0) - _TIE
    best: Array = np.where(tied, np.nan_to_num(d_prime), -np.inf).argmax(axis=0)
    return best


def _split_half_cosines(
    rng: np.random.Generator,
    differences: Float[Array, "pair layer d_model"],
    groups: Int[Array, "pair"],
    n_groups: int,
    n_splits: int = 50,
) -> Float[Array, "layer split"]:
    """Cosine between mean differences of two random halves of the base queries."""
    order = rng.permuted(np.tile(np.arange(n_groups), (n_splits, 1)), axis=1)
    first = np.zeros((n_splits, n_groups), dtype=bool)
    np.put_along_axis(first, order[:, : n_groups // 2], True, axis=1)
    flat = rearrange(differences, "pair layer d -> pair (layer d)")
    members = first[:, groups].astype(np.float32)
    n_layers = differences.shape[1]
    halves = [
        rearrange(
            (half @ flat) / half.sum(axis=1, keepdims=True),
            "split (layer d) -> layer split d",
            layer=n_layers,
        )
        for half in (members, 1 - members)
    ]
    dot = (halves[0] * halves[1]).sum(-1)
    cosines: Array = dot / (np.linalg.norm(halves[0], axis=-1) * np.linalg.norm(halves[1], axis=-1))
    return cosines


def _interval(
    name: str, samples: Float[Array, "layer resample"]
) -> dict[str, Float[Array, "layer"]]:
    # Where the sides do not vary d′ is infinite, and an interval of infinities is undefined.
    with np.errstate(invalid="ignore"):
        low, high = np.nanpercentile(samples, _INTERVAL, axis=1)
    return {f"{name}_low": low, f"{name}_high": high}
