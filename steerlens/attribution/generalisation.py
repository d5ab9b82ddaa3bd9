r"""Does a direction carry over: fitted on some phrasings or kinds of query, scored on others?

Pairs carry a label, for example the phrasing of their instruction or the kind of their base query
(`pair_labels`). Every test run is scored along directions that were fitted on other base queries
(the folds of `steerlens.attribution.rank_layers`) and

* from pairs of **all** labels (``train`` is ``"all"``): the reference, label seen;
* from all pairs with **other labels** (``"others"``): label unseen;
* from the pairs of one label only (``train`` is that label), for labels with enough base queries:
  which label carries over to which.

`generalise` gives the AUROC of each for every label, and over all labels together with the
difference *unseen − seen*: near 0, the direction is the instruction's; well below, it is partly
the phrasing's or the kind's. Unseen directions are also fitted on fewer pairs, which costs a little
by itself: a tenth of the pairs when there are ten labels.

Intervals: `steerlens.stats.separability`; of the difference, the delete-one jackknife over
base queries, both directions of a query left out together. A label's own AUROC compares only runs
of that label, so the summary, which compares runs of all labels, is not their mean.

>>> import torch
>>> noise = torch.randn(2, 60, 1, 16, generator=torch.Generator().manual_seed(0))
>>> labels = ["please", "must"] * 30
>>> noise[0, ::2, 0, 0] += 3.0                             # each phrasing has its own direction
>>> noise[0, 1::2, 0, 1] += 3.0
>>> result = generalise(ResidualCache.from_tensors(noise[0], noise[1]), labels)
>>> bool(result.summary.difference_high[0] < 0)
True
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy.stats import t

from steerlens.activations.cache import ResidualCache
from steerlens.attribution.held_out import (
    Folds,
    check_rankable,
    difference_scores,
    group_numbers,
    layer_runs,
    products,
)
from steerlens.errors import ActivationError, unknown_name
from steerlens.stats.separability import auroc_of, fit_noise_share, held_out_measures
from steerlens.tasks import SPLITS, base_queries
from steerlens.tasks.pairs import ContrastSet

__all__ = ["Generalisation", "generalise", "pair_labels"]

Array = np.ndarray


@dataclass(frozen=True, eq=False, repr=False)
class Generalisation:
    """Result of `generalise`.

    Attributes:
        table: One row for each layer, training set and test label: ``layer, train, test, n_train``
            (pairs a fold is fitted on, on average), ``n_test, auroc, auroc_low, auroc_high``.
        summary: One row a layer, all labels together: ``layer``; ``seen, unseen, difference``,
            each with ``…_low`` and ``…_high``.
        labels: The labels, in order of first appearance.
        n_alone: How many of them were also trained on alone.
    """

    table: pd.DataFrame
    summary: pd.DataFrame
    labels: tuple[str, ...]
    n_alone: int

    def matrix(self, layer: int) -> pd.DataFrame:
        """AUROC at one layer, a row for each training set and a column for each test label.

        Raises:
            ActivationError: The layer was not scored.
        """
        rows = self.table[self.table.layer == layer]
        if rows.empty:
            raise ActivationError(
                f"layer {layer} was not scored; there are {sorted(set(self.table.layer))}"
            )
        order = list(dict.fromkeys(rows.train))
        matrix = rows.pivot(index="train", columns="test", values="auroc")
        return matrix.reindex(index=order, columns=list(dict.fromkeys(rows.test)))

    def __repr__(self) -> str:
        worst = self.summary.sort_values("difference").iloc[0]
        return (
            f"Generalisation({len(self.labels)} labels, {len(self.summary)} layers, largest loss "
            f"{worst.difference:.3f} [{worst.difference_low:.3f}, {worst.difference_high:.3f}] of "
            f"AUROC at layer {int(worst.layer)})"
        )


def pair_labels(pairs: ContrastSet, by: str = "phrasing") -> tuple[str, ...]:
    """A label for each pair.

    Args:
        pairs: The pairs.
        by: ``"phrasing"``, or ``"kind"`` of the base query, for queries of the catalogue.

    Raises:
        UnknownNameError: Another `by`.
        ActivationError: A pair has no phrasing, or its query is not of the catalogue.
    """
    if by not in ("phrasing", "kind"):
        raise unknown_name("label", by, ("phrasing", "kind"))
    if by == "phrasing":
        labels = [pair.phrasing for pair in pairs]
    else:
        kinds = {query.text: query.kind for split in SPLITS for query in base_queries(split)}
        labels = [kinds.get(pair.base_query) for pair in pairs]
    result = tuple(label for label in labels if label is not None)
    if len(result) < len(labels):
        what = "phrasing" if by == "phrasing" else "base query of the catalogue"
        raise ActivationError(
            f"pair {labels.index(None)} has no {what}, so pairs cannot be told apart by {by}; give "
            "generalise() labels of your own"
        )
    return result


def generalise(
    cache: ResidualCache,
    labels: Sequence[str],
    seed: int = 0,
    n_folds: int = 5,
    alone: bool = True,
) -> Generalisation:
    """Score every label along directions fitted with and without it.

    Args:
        cache: Residuals of both sides.
        labels: A label for each pair, other than "all" and "others"; see `pair_labels`.
        seed: Seed of the folds.
        n_folds: Cross-validation folds.
        alone: Also train on single labels, those with at least `n_folds` base queries.

    Raises:
        ActivationError: Labels do not fit the pairs, or there is only one, and as `rank_layers`.
    """
    if len(labels) != cache.n_pairs:
        raise ActivationError(f"{len(labels)} labels were given for {cache.n_pairs} pairs")
    labels = [str(label) for label in labels]
    names = tuple(dict.fromkeys(labels))
    if len(names) < 2:
        raise ActivationError(
            f"all {cache.n_pairs} pairs have the label {names[0]!r}: whether their direction "
            "carries over to others cannot be computed from them; how well it separates held-out "
            "queries of this label can (rank_layers)"
        )
    folds = check_rankable(cache, n_folds, seed)
    groups = group_numbers(cache.groups)
    code = np.array([names.index(label) for label in labels])
    single = [
        n for n in range(len(names)) if alone and len(np.unique(groups[code == n])) >= n_folds
    ]
    rows: list[dict[str, object]] = []
    summary: list[dict[str, object]] = []
    for layer, runs in zip(cache.layers, layer_runs(cache), strict=True):
        product = products(runs)
        noise = fit_noise_share(product[0] - product[1], groups, n_folds)
        seen = _scores(product, folds, code >= 0)
        unseen = np.zeros_like(seen)
        for n in range(len(names)):
            unseen[:, code == n] = _scores(product, folds, code != n)[:, code == n]
        summary.append({"layer": layer, **_summary(seen, unseen, groups, noise)})
        scored = {"all": seen, "others": unseen}
        scored |= {names[m]: _scores(product, folds, code == m) for m in single}
        for n, test in enumerate(names):
            members = code == n
            sizes = {"all": len(code), "others": int((~members).sum())}
            for train, scores in scored.items():
                shared = {"all": noise, test: _own_noise(product, members, groups, n_folds)}
                rows.append(
                    {
                        "layer": layer,
                        "train": train,
                        "test": test,
                        "n_train": sizes.get(train, labels.count(train)),
                        **_auroc(scores[:, members], groups[members], shared.get(train, 0.0)),
                    }
                )
    return Generalisation(pd.DataFrame(rows), pd.DataFrame(summary), names, len(single))


def _scores(
    product: Float[Array, "side run pair"], folds: Folds, members: Bool[Array, "pair"]
) -> Float[Array, "side run"]:
    """Held-out scores of all runs along directions fitted on some of the pairs."""
    result: Array = difference_scores(product, folds, counts=members[None].astype(np.float64))[:, 0]
    return result


def _own_noise(
    product: Float[Array, "side run pair"],
    members: Bool[Array, "pair"],
    groups: Int[Array, "pair"],
    n_folds: int,
) -> float:
    """Noise share of directions fitted and tested on one label.

    Tested on other labels, no product of two pairs enters twice and the share is 0.
    """
    gram = (product[0] - product[1])[np.ix_(members, members)]
    return fit_noise_share(gram, group_numbers(groups[members]), n_folds)


def _auroc(
    scores: Float[Array, "side pair"], groups: Int[Array, "pair"], fit_noise: float
) -> dict[str, Any]:
    auroc, low, high = held_out_measures(scores, group_numbers(groups), fit_noise)["auroc"]
    return {
        "n_test": scores.shape[1],
        "auroc": float(auroc),
        "auroc_low": float(low),
        "auroc_high": float(high),
    }


def _summary(
    seen: Float[Array, "side pair"],
    unseen: Float[Array, "side pair"],
    groups: Int[Array, "pair"],
    fit_noise: float,
) -> dict[str, Any]:
    """AUROC over all labels, label seen and unseen, and the difference with its interval."""
    row: dict[str, float] = {}
    for name, scores in (("seen", seen), ("unseen", unseen)):
        value, low, high = held_out_measures(scores, groups, fit_noise)["auroc"]
        row |= {name: value, f"{name}_low": low, f"{name}_high": high}
    n_groups = int(groups.max()) + 1
    keep = (np.arange(n_groups)[:, None] != groups).astype(np.float64)
    sides = [np.broadcast_to(scores[:, None], (2, *keep.shape)) for scores in (seen, unseen)]
    leave_one = auroc_of(sides[1][0], sides[1][1], keep) - auroc_of(sides[0][0], sides[0][1], keep)
    spread = (n_groups - 1) / n_groups * ((leave_one - leave_one.mean()) ** 2).sum()
    reach = float(t.ppf(0.975, n_groups - 1) * np.sqrt(spread * (1 + fit_noise)))
    difference = row["unseen"] - row["seen"]
    ends = {"difference_low": difference - reach, "difference_high": difference + reach}
    return {**row, "difference": difference, **ends}
