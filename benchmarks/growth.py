"""How the engine's cost grows: with rows decoded together, prompt length and layers cached."""

from typing import Any

import steerlens as sl
from benchmarks.measure import timed
from benchmarks.work import Work
from steerlens.engine.generation import generate_from_tokens


def measure(work: Work) -> dict[str, list[dict[str, Any]]]:
    """Tokens per second at several sizes; one run each."""
    n_new = min(32, work.sizes.n_new_tokens)
    batches = []
    for batch in (1, 4, 16, 32, 64, 96):
        if batch > work.sizes.n_prompts:
            break
        rate = _rate(work, work.rows[:batch], batch, n_new)
        batches.append({"rows together": batch, "tokens/s": rate})
    lengths = []
    base = work.rows[0]
    for copies in (1, 4, 16):
        rows = [base[:-1] * copies + base[-1:]] * min(16, work.sizes.n_prompts)
        lengths.append({"prompt tokens": len(rows[0]), "tokens/s": _rate(work, rows, 16, n_new)})
    layers = []
    some = work.pairs[: min(64, len(work.pairs))]
    for stop in (1, 10, 20, 30):
        run = timed(
            lambda stop=stop: len(  # type: ignore[misc]
                sl.cache_residuals(work.model, some, layers=range(stop), show_progress=False).layers
            )
        )
        layers.append({"layers cached": stop, "pairs/s": len(some) / run.seconds})
    return {"rows": batches, "length": lengths, "layers": layers}


def _rate(work: Work, rows: list[list[int]], batch: int, n_new: int) -> float:
    steering = work.vector.at(work.steered_layer, "add", 0.5)

    def run() -> int:
        done, _ = generate_from_tokens(
            work.model, rows, [steering] * len(rows), n_new, batch, show_progress=False
        )
        return sum(len(row.produced) for row in done)

    return timed(run).rate
