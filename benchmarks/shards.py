"""How much memory ranking from shards takes: 20,000 synthetic pairs × 30 layers × 576 dimensions.

    python -m benchmarks.shards [--pairs 20000] [--dtype bfloat16] [--resamples 1000]

writes the shards into a temporary folder, ranks them in a process of its own, and prints that
process's peak resident memory (what importing the package takes stands beside it) and the time. On
the first pairs the numbers are held against those of a `ResidualCache`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

N_LAYERS, D_MODEL, PER_SHARD = 30, 576, 1000


def blocks(n_pairs: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Synthetic residuals: far from the origin, sides alike, a signal that grows with depth."""
    source = torch.Generator().manual_seed(0)
    shift = torch.randn(N_LAYERS, D_MODEL, generator=source) / D_MODEL**0.5
    shift *= torch.linspace(0.2, 1.5, N_LAYERS)[:, None]
    for start in range(0, n_pairs, PER_SHARD):
        size = (min(PER_SHARD, n_pairs - start), N_LAYERS, D_MODEL)
        alike = torch.randn(size, generator=source) + 5.0
        plus, minus = (alike + torch.randn(size, generator=source) for _ in range(2))
        yield plus + shift, minus


def peak() -> float:
    """Peak resident memory of this process, in MB (2²⁰ bytes).

    Of the kernel's VmHWM: getrusage would begin with what the parent held when it started this one.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def rank(folder: Path, n_resamples: int) -> None:
    """Rank a folder's shards and print what it took."""
    import steerlens as sl
    from steerlens.activations.shards import ShardedResiduals

    shards = ShardedResiduals.open(folder)
    imported = peak()
    started = time.perf_counter()
    ranking = sl.rank_layers(shards, n_resamples=n_resamples)
    seconds = time.perf_counter() - started
    ranking.table.to_json(folder / "table.json", double_precision=15)
    told = {"import_mb": round(imported), "peak_mb": round(peak()), "seconds": round(seconds, 1)}
    print(json.dumps({**told, "best_layer": ranking.best_layer}))


def main() -> None:
    """Write, rank in a process of its own, compare on a subset."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--rank", type=Path, help="only rank the shards in this folder")
    arguments = parser.parse_args()
    if arguments.rank:
        rank(arguments.rank, arguments.resamples)
        return
    import steerlens as sl
    from steerlens.activations.shards import write_shards

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder / "all", blocks(arguments.pairs), dtype=arguments.dtype)
        size = sum(file.stat().st_size for file in (folder / "all").iterdir())
        print(f"{arguments.pairs} pairs, {size / 1e9:.2f} GB on the disk ({arguments.dtype})")
        own = [sys.executable, "-m", "benchmarks.shards", "--resamples", str(arguments.resamples)]
        subprocess.run([*own, "--rank", str(folder / "all")], check=True)
        some = write_shards(folder / "some", blocks(2 * PER_SHARD), dtype=arguments.dtype)
        caches = list(some)
        whole = sl.ResidualCache.from_tensors(
            torch.cat([one.instructed for one in caches]),
            torch.cat([one.uninstructed for one in caches]),
        )
        inside, outside = (sl.rank_layers(one, n_resamples=100).table for one in (whole, some))
        gaps = np.abs(inside.to_numpy() - outside[inside.columns].to_numpy())
        print(f"{whole.n_pairs} pairs in memory and from shards differ by {gaps.max():.1e} at most")


if __name__ == "__main__":
    main()
