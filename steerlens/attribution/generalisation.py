r"""Does a direction carry over: fitted on some phrasings or kinds of query, scored on others?

Pairs carry a label, for example the phrasing of their instruction or the kind of their base query
(`pair_labels`). Every test run is scored along directions that were fitted on other base queries
(the folds of `steerlens.attribution.rank_layers`) and

* from pairs of **all** labels (``train`` is ``"all"``): the reference, label seen;
* from all pairs with **other labels** (``"others"``): label unseen.

`generalise` gives the AUROC of each for every label, and over all labels together with the
difference *unseen − seen*: near 0, the direction is the instruction's; well below, it is partly
the phrasing's or the kind's. Unseen directions are also fitted on fewer pairs, which costs a little
by itself.

Intervals: `steerlens.stats.separability`; of the difference, the delete-one jackknife over base
queries. The summary compares runs of all labels, so it is not the mean of the labels' AUROCs.

>>> import torch
>>> noise = torch.randn(2, 60, 1, 16, generator=torch.Generator().manual_seed(0))
>>> labels = ["please", "must"] * 30
>>> noise[0, ::2, 0, 0] += 3.0                             # each phrasing has its own direction
>>> noise[0, 1::2, 0, 1] += 3.0
>>> result = generalise(ResidualCache.from_tensors(noise[0], noise[1]), labels)
>>> bool(result.summary.difference_high[0] < 0)
True
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from steerlens.activations.cache import ResidualCache
from steerlens.attribution.held_out import (
    Folds,
    Runs,
    check_rankable,
    difference_scores,
    group_numbers,
    layer_runs,
)
from steerlens.errors import ActivationError, unknown_name
from steerlens.stats.queries import jackknife_reach
from steerlens.stats.separability import auroc_of, fit_noise_share, held_out_measures
from steerlens.tasks import SPLITS, base_queries
from steerlens.tasks.pairs import ContrastSet
from steerlens.views import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Generalisation", "generalise", "pair_labels"]

Array = np.ndarray


@dataclass(frozen=True, eq=False, repr=False)
class Generalisation(Result):
    """Result of `generalise`.

    Attributes:
        table: One row per layer, training set and test label: ``layer, train, test, n_train``
            (pairs with the training label), ``n_test, auroc, auroc_low, auroc_high``.
        summary: One row per layer, all labels together: ``layer``; ``seen, unseen, difference``,
            each with ``…_low`` and ``…_high``.
        labels: The labels, in order of first appearance.
    """

    table: pd.DataFrame
    summary: pd.DataFrame
    labels: tuple[str, ...]

    def plot(self) -> "go.Figure":
        """AUROC over layers, on labels that the direction was fitted on and on others."""
        from steerlens.views.layers import auroc_curves

        return auroc_curves(self.summary, {"seen": "labels fitted on", "unseen": "other labels"})

    def _card(self) -> Mapping[str, Any]:
        return {"table": self.summary}

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
) -> Generalisation:
    """Score every label along directions fitted with and without it.

    Args:
        cache: Residuals of both sides.
        labels: A label for each pair; see `pair_labels`.
        seed: Seed of the folds.
        n_folds: Cross-validation folds.

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
    rows: list[dict[str, object]] = []
    summary: list[dict[str, object]] = []
    for layer, runs in zip(cache.layers, layer_runs(cache), strict=True):
        noise = fit_noise_share(runs[0] - runs[1], groups, n_folds)
        seen = _scores(runs, folds, code >= 0)
        unseen = np.zeros_like(seen)
        for n in range(len(names)):
            unseen[:, code == n] = _scores(runs, folds, code != n)[:, code == n]
        summary.append({"layer": layer, **_summary(seen, unseen, groups, noise)})
        for n, test in enumerate(names):
            members = code == n
            n_test = int(members.sum())
            # Fitted without the label, no product of two of its pairs enters twice.
            for train, scores, n_train, shared in (
                ("all", seen, len(code), noise),
                ("others", unseen, len(code) - n_test, 0.0),
            ):
                auroc = _auroc(scores[:, members], groups[members], shared)
                rows.append(
                    {"layer": layer, "train": train, "test": test, "n_train": n_train}
                    | {"n_test": n_test, **auroc}
                )
    return Generalisation(pd.DataFrame(rows), pd.DataFrame(summary), names)


def _scores(runs: Runs, folds: Folds, members: Bool[Array, "pair"]) -> Float[Array, "side run"]:
    """Held-out scores of all runs along directions fitted on some of the pairs."""
    result: Array = difference_scores(runs, folds, counts=members[None].astype(np.float64))[:, 0]
    return result


def _auroc(
    scores: Float[Array, "side pair"], groups: Int[Array, "pair"], fit_noise: float
) -> dict[str, float]:
    values = held_out_measures(scores, group_numbers(groups), fit_noise)["auroc"]
    return dict(zip(("auroc", "auroc_low", "auroc_high"), values.tolist(), strict=True))


def _summary(
    seen: Float[Array, "side pair"],
    unseen: Float[Array, "side pair"],
    groups: Int[Array, "pair"],
    fit_noise: float,
) -> dict[str, float]:
    """AUROC over all labels, label seen and unseen, and the difference with its interval."""
    row: dict[str, float] = {}
    for name, scores in (("seen", seen), ("unseen", unseen)):
        value, low, high = held_out_measures(scores, groups, fit_noise)["auroc"]
        row |= {name: value, f"{name}_low": low, f"{name}_high": high}
    keep = (np.arange(groups.max() + 1)[:, None] != groups).astype(np.float64)
    without = [
        auroc_of(np.broadcast_to(plus, keep.shape), np.broadcast_to(minus, keep.shape), keep)
        for plus, minus in (seen, unseen)
    ]
    reach = float(jackknife_reach(without[1] - without[0])) * (1 + fit_noise) ** 0.5
    difference = row["unseen"] - row["seen"]
    ends = {"difference_low": difference - reach, "difference_high": difference + reach}
    return {**row, "difference": difference, **ends}
