"""Are the intervals and tests of layer attribution as sure as they say? Synthetic activations.

Activations are Gaussian with a direction of known d′ planted at one layer, so every quantity has a
true value that an interval covers or misses:

* ``d_prime``: the planted d′ itself;
* ``auroc``, ``d_prime_held_out``, ``accuracy``: the performance on new queries of the directions
  fitted on the folds, from the Gaussian formulas.

Worlds differ in width, in how alike the two runs of a pair are (residuals of the same query are:
correlation 0.8) and in whether all dimensions vary alike or as in a residual stream, where a few
dominate (variances 1, 1/2, 1/3, …). Beside the intervals in use stands the percentile bootstrap of
held-out scores, what is commonly reported.

    python analyses/calibration.py              # about two minutes on one core
"""

import argparse
import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest, norm

from steerlens.activations.cache import ResidualCache
from steerlens.attribution import rank_layers
from steerlens.attribution.held_out import check_rankable, difference_scores
from steerlens.attribution.null import permutation_null
from steerlens.attribution.sensitivity import sensitivity
from steerlens.stats.queries import PERCENTILES, query_draws
from steerlens.stats.separability import auroc_of, fit_noise_share, held_out_measures

Array = np.ndarray
N_FOLDS = 5


@dataclass(frozen=True)
class World:
    """How synthetic activations are drawn.

    Attributes:
        d_prime: planted d′.
        d_model: dimensions.
        n_pairs: pairs, each of its own base query.
        alike: correlation of the two runs of a pair.
        decay: variance of dimension *k* is ``k ** -decay``.
    """

    d_prime: float
    d_model: int = 576
    n_pairs: int = 64
    alike: float = 0.8
    decay: float = 1.0

    @property
    def variances(self) -> Array:
        return np.arange(1, self.d_model + 1.0) ** -self.decay

    @property
    def row(self) -> dict[str, object]:
        """The world as the first columns of a table."""
        return {"planted d′" if name == "d_prime" else name: v for name, v in vars(self).items()}

    @property
    def shift(self) -> Array:
        """The planted difference of means, spread over dimensions as their variance is."""
        towards = np.random.default_rng(5).standard_normal(self.d_model) * np.sqrt(self.variances)
        spread = np.sqrt((towards**2) @ self.variances)
        return self.d_prime * towards * spread / (towards @ towards)

    def runs(self, rng: np.random.Generator) -> Array:
        """Residuals ``[side, pair, d_model]``."""
        shape = (self.n_pairs, self.d_model)
        shared = rng.standard_normal(shape) * np.sqrt(self.alike)
        own = rng.standard_normal((2, *shape)) * np.sqrt(1 - self.alike)
        runs = (shared + own) * np.sqrt(self.variances)
        runs[0] += self.shift
        return runs

    def truth(self, runs: Array, folds: list[tuple[Array, Array]]) -> dict[str, float]:
        """What directions fitted on the folds reach on new queries, on average over folds."""
        aurocs, d_primes, accuracies = [], [], []
        for train, _ in folds:
            means = runs[:, train].mean(axis=1)
            direction = means[0] - means[1]
            spread = np.sqrt((direction**2) @ self.variances)
            threshold = means.mean(axis=0) @ direction
            reach = direction @ self.shift
            d_primes.append(reach / spread)
            aurocs.append(norm.cdf(reach / spread / np.sqrt(2)))
            right = norm.cdf(np.array([reach - threshold, threshold]) / spread)
            accuracies.append(right.mean())
        return {
            "d_prime": self.d_prime,
            "auroc": float(np.mean(aurocs)),
            "d_prime_held_out": float(np.mean(d_primes)),
            "accuracy": float(np.mean(accuracies)),
        }


def coverage(world: World, n_seeds: int) -> dict[str, object]:
    """Share of seeds in which each interval holds its true value."""
    groups = np.arange(world.n_pairs)
    held: dict[str, list[bool]] = {}
    errors: dict[str, list[float]] = {}
    for seed in range(n_seeds):
        runs = world.runs(np.random.default_rng(seed))
        sides = torch.from_numpy(runs[:, :, None]).float()
        folds = list(check_rankable(ResidualCache.from_tensors(*sides), N_FOLDS, seed))
        scores = difference_scores(runs, folds)[:, 0]
        measures = held_out_measures(
            scores, groups, fit_noise_share(runs[0] - runs[1], groups, N_FOLDS)
        )
        measures["d_prime_held_out"] = measures.pop("d_prime")
        measures["d_prime"] = np.array(sensitivity(runs, groups))
        draws = query_draws(groups.tolist(), 200, seed)
        resampled = auroc_of(*(np.broadcast_to(side, draws.shape) for side in scores), draws)
        measures["bootstrap auroc"] = np.array([np.nan, *np.percentile(resampled, PERCENTILES)])
        truth = world.truth(runs, folds)
        for name, (value, low, high) in measures.items():
            target = truth[name.removeprefix("bootstrap ")]
            # A planted d′ of 0 has no direction whose d′ it would be.
            if name != "d_prime" or world.d_prime > 0:
                held.setdefault(name, []).append(bool(low <= target <= high))
                errors.setdefault(name, []).append(value - target)
    row = world.row
    for name in ("d_prime", "d_prime_held_out", "auroc", "accuracy", "bootstrap auroc"):
        row[name] = np.mean(held[name]) if name in held else np.nan
    row["median error of d_prime"] = np.median(errors["d_prime"]) if world.d_prime else np.nan
    return row


def planted_layer(world: World, n_seeds: int, n_layers: int = 8) -> dict[str, object]:
    """Whether the planted layer is found, significant, and its d′ inside the interval."""
    found, covered, significant, false_layers = [], [], [], []
    noise = World(0.0, world.d_model, world.n_pairs, world.alike, world.decay)
    for seed in range(n_seeds):
        rng = np.random.default_rng(10_000 + seed)
        planted = int(rng.integers(n_layers))
        runs = np.stack(
            [(world if layer == planted else noise).runs(rng) for layer in range(n_layers)], axis=2
        )
        cache = ResidualCache.from_tensors(*torch.from_numpy(runs).float())
        ranking = rank_layers(cache, seed=seed, n_resamples=1)
        row = ranking.table.iloc[planted]
        null = permutation_null(cache, seed=seed, n_permutations=199, n_directions=1)
        found.append(ranking.best_layer == planted)
        covered.append(row.d_prime_low <= world.d_prime <= row.d_prime_high)
        significant.append(null.p_value <= 0.05)
        others = null.table.drop(index=planted)
        false_layers.append(bool((others.p_adjusted <= 0.05).any()))
    return {
        **world.row,
        "d′ in interval": int(np.sum(covered)),
        "layer found": int(np.sum(found)),
        "null rejected": int(np.sum(significant)),
        "another layer too": int(np.sum(false_layers)),
        "seeds": n_seeds,
    }


def null_rejections(n_seeds: int, pairs_a_query: int, n_layers: int = 4) -> dict[str, object]:
    """Rejections at 5 % where the instruction does nothing; layers are correlated."""
    rejected = 0
    n_queries, d_model = 40 // pairs_a_query, 32
    for seed in range(n_seeds):
        rng = np.random.default_rng(20_000 + seed)

        # Every layer adds to the one before, as in a residual stream. Pairs of one query share
        # their uninstructed run.
        def stream(n: int, rng: np.random.Generator = rng) -> Array:
            return rng.standard_normal((n, n_layers, d_model)).cumsum(axis=1)

        query = np.repeat(stream(n_queries), pairs_a_query, axis=0)
        plus = query + stream(len(query))
        minus = query + np.repeat(stream(n_queries), pairs_a_query, axis=0)
        groups = np.repeat(np.arange(n_queries), pairs_a_query).tolist()
        cache = ResidualCache.from_tensors(
            torch.from_numpy(plus), torch.from_numpy(minus), groups=groups
        )
        null = permutation_null(cache, seed=seed, n_permutations=99, n_directions=1)
        rejected += null.p_value <= 0.05
    low, high = binomtest(rejected, n_seeds).proportion_ci(method="wilson")
    return {
        "pairs a query": pairs_a_query,
        "rejected": rejected,
        "seeds": n_seeds,
        "rate": rejected / n_seeds,
        "low": low,
        "high": high,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=300, help="seeds a world for coverage")
    parser.add_argument("--planted", type=int, default=100, help="seeds for the planted layer")
    parser.add_argument("--null", type=int, default=1500, help="seeds for the null")
    arguments = parser.parse_args()
    started = time.monotonic()

    def show(title: str, rows: list[dict[str, object]]) -> None:
        print(f"\n{title} ({time.monotonic() - started:.0f} s)")
        print(pd.DataFrame(rows).to_string(index=False, float_format="{:.3f}".format), flush=True)

    planted = [World(2.0, 64, decay=0.0), World(2.0), World(4.0)]
    show("A planted layer among 8", [planted_layer(world, arguments.planted) for world in planted])
    worlds = [World(d) for d in (0.0, 1.0, 2.0, 4.0, 6.0)]
    worlds += [World(d, alike=0.0, decay=0.0) for d in (2.0, 4.0)]
    worlds += [World(2.0, 16, alike=0.0, decay=0.0), World(2.0, n_pairs=24)]
    show(
        "Share of 95 % intervals that hold the truth",
        [coverage(w, arguments.seeds) for w in worlds],
    )
    show("Null rejected at 5 %", [null_rejections(arguments.null, n) for n in (1, 2)])


if __name__ == "__main__":
    main()
