"""Are the intervals and the null of specificity as sure as they say? Synthetic activations.

Every task of a synthetic grid shifts activations along one direction that all tasks share and along
one of its own. The first task's own shift is planted at one layer only. Queries carry a large
common part (runs of one query have correlation 0.8), and variances fall as in a residual stream
(1, 1/2, 1/3, …). So every quantity has a true value that an interval covers or misses:

* ``own_share``, ``off_mean_share``: from the planted directions;
* ``specific_auroc``, ``specific_d_prime``: the performance on new queries of the directions that
  were fitted, from the Gaussian formulas.

Recovery and specific recovery are ratios of sums of KL, which are skewed: here lognormal, with the
share that is left varying from query to query and correlated between the task's vector and others'.

    python -m analyses.specific_calibration     # about four minutes of one core
"""

import argparse
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest, norm

from steerlens.activations.grids import ResidualGrid
from steerlens.attribution.specificity import grid_specificity
from steerlens.stats.queries import recovery_interval

Array = np.ndarray


@dataclass(frozen=True)
class World:
    """How a synthetic grid is drawn.

    Attributes:
        own: length of the first task's own shift, in units of the noise along a random direction.
        shared: length of the shift that all tasks share.
        others_own: length of the own shift of each other task.
        n_tasks: tasks.
        d_model: dimensions.
        n_queries: base queries of each half.
        alike: correlation of two runs of one query.
    """

    own: float
    shared: float = 6.0
    others_own: float = 3.0
    n_tasks: int = 12
    d_model: int = 256
    n_queries: int = 20
    alike: float = 0.8


def directions(world: World) -> tuple[Array, Array, Array]:
    """Standard deviations of the dimensions, unit axes of all shifts in units of the noise."""
    rng = np.random.default_rng(7)
    deviations = np.arange(1, world.d_model + 1.0) ** -0.5
    axes = rng.standard_normal((world.n_tasks + 1, world.d_model)) * deviations
    return deviations, axes[0], axes[1:]


def drawn(world: World, seed: int, n_layers: int = 3, layer: int = 1) -> tuple[ResidualGrid, Array]:
    """A grid, and the true mean differences ``[layer task d_model]``."""
    rng = np.random.default_rng(seed)
    deviations, shared, own = directions(world)
    scale = 1 / np.sqrt(world.d_model)
    means = np.tile(world.shared * shared, (n_layers, world.n_tasks, 1)) * scale
    means[:, 1:] += world.others_own * scale * own[1:]
    means[layer, 0] += world.own * scale * own[0]
    n = 2 * world.n_queries
    shape = (n, n_layers, world.d_model)
    common = rng.standard_normal(shape) * np.sqrt(world.alike)
    private = rng.standard_normal((world.n_tasks + 1, *shape)) * np.sqrt(1 - world.alike)
    runs = (common + private) * deviations
    runs[1:] += means.transpose(1, 0, 2)[:, None]
    halves = np.repeat([0, 1], world.n_queries)
    blocks = np.concatenate([np.arange(world.n_queries) % 4, 4 + np.arange(world.n_queries) % 2])
    tensors = torch.from_numpy(runs)
    names = [f"task {i}" for i in range(world.n_tasks)]
    return ResidualGrid.from_tensors(
        names, tensors[1:], tensors[0], halves.tolist(), blocks.tolist()
    ), means


def truths(world: World, grid: ResidualGrid, means: Array, layer: int = 1) -> dict[str, float]:
    """What the intervals at a layer should hold."""
    deltas = means[layer]
    basis = np.linalg.qr(deltas[1:].T)[0]
    square = deltas[0] @ deltas[0]
    mean = deltas[1:].mean(axis=0)
    variances = directions(world)[0] ** 2
    runs = grid.instructed[:, :, layer].double().numpy()
    halves = np.array(grid.halves)
    centres, spreads = [], []
    for half in (0, 1):
        own, others = runs[0, halves != half].mean(0), runs[1:, halves != half].mean((0, 1))
        direction, middle = own - others, (own + others) / 2
        length = direction @ direction
        centres.append((deltas - middle) @ direction / length)
        spreads.append((direction**2 @ variances) / length**2)
    centre, spread = np.stack(centres), np.array(spreads)
    distance = centre[:, None, 0, None] - centre[None, :, 1:]
    wins = norm.cdf(distance / np.sqrt(spread[:, None, None] + spread[None, :, None]))
    plus, minus = centre[:, 0], centre[:, 1:]
    variance = spread.mean() + (plus.var() + minus.var()) / 2
    return {
        "own_share": 1 - ((basis.T @ deltas[0]) ** 2).sum() / square,
        "off_mean_share": 1 - (deltas[0] @ mean) ** 2 / square / (mean @ mean),
        "specific_auroc": float(wins.mean()),
        "specific_d_prime": float((plus.mean() - minus.mean()) / np.sqrt(variance)),
    }


def coverage(world: World, n_draws: int) -> pd.DataFrame:
    """How often each interval holds the truth, and how far off the estimates are on average."""
    rows = []
    for seed in range(n_draws):
        grid, means = drawn(world, seed, n_layers=2)
        table = grid_specificity(grid, n_permutations=19).table.set_index("layer")
        for name, truth in truths(world, grid, means).items():
            value, low, high = table.loc[1, [name, f"{name}_low", f"{name}_high"]]
            rows.append((name, truth, value, low <= truth <= high))
    frame = pd.DataFrame(rows, columns=["quantity", "truth", "estimate", "covered"])
    table = frame.groupby("quantity").mean()
    n_covered = frame.groupby("quantity")["covered"].sum()
    ends = [binomtest(int(k), n_draws).proportion_ci() for k in n_covered]
    return table.assign(low=[e.low for e in ends], high=[e.high for e in ends])


def planted_layer(world: World, n_seeds: int) -> tuple[int, int]:
    """How often the planted layer is the most specific one, and another is called specific."""
    found = elsewhere = 0
    for seed in range(n_seeds):
        result = grid_specificity(drawn(world, seed)[0], seed, n_permutations=199)
        found += result.best_layer == 1
        elsewhere += bool((result.table.set_index("layer").specific_p.drop(1) <= 0.05).any())
    return found, elsewhere


def rejections(n_draws: int) -> int:
    """How often the null is rejected at 5 % where all tasks share everything."""
    world = World(own=0.0, others_own=0.0, n_tasks=8, d_model=64)
    return sum(
        grid_specificity(drawn(world, 10_000 + seed)[0], seed, n_permutations=199).p_value <= 0.05
        for seed in range(n_draws)
    )


def recovery_coverage(n_queries: int, n_draws: int) -> dict[str, float]:
    """How often intervals of recovery and of specific recovery hold the ratio of expectations."""
    rng = np.random.default_rng(3)
    names = [str(i) for i in range(n_queries)]

    def queries(n: int) -> tuple[Array, Array, Array]:
        whole = rng.lognormal(sigma=0.8, size=n)
        common, own, other = rng.standard_normal((3, n)) * 0.3
        return whole, whole * np.exp(common + own - 0.8), whole * np.exp(common + other - 0.2)

    whole, left, other = (part.mean() for part in queries(2_000_000))
    truth = np.array([1 - left / whole, (other - left) / whole])
    covered = np.zeros(2)
    for _ in range(n_draws):
        whole, left, other = queries(n_queries)
        both = np.stack([left, whole + left - other], axis=1)
        _, low, high = recovery_interval(both, whole, names)
        covered += (low <= truth) & (truth <= high)
    return dict(zip(("recovery", "specific recovery"), covered / n_draws, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=300)
    n = parser.parse_args().draws
    for own in (3.0, 5.0, 8.0, 12.0):
        print(f"own shift {own}: coverage of 95 % intervals over {n} draws")
        print(coverage(World(own), n).round(3).to_string())
    for n_queries in (12, 16, 48):
        print(f"{n_queries} queries: coverage", recovery_coverage(n_queries, 2000))
    found, elsewhere = planted_layer(World(8.0), 100)
    print(f"planted layer most specific in {found} of 100 seeds; another called so in {elsewhere}")
    rejected = rejections(n)
    print(f"nothing specific: null rejected at 5 % in {rejected} of {n} = {rejected / n:.3f}")


if __name__ == "__main__":
    main()
