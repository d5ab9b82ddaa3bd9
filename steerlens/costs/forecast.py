"""An estimate from rates and work; afterwards, how right it was.

`estimate_costs` computes it. `Forecast` is what a run does with it: calibrate and say it at the
start, and at the end write ``costs.json`` into the run's folder: the estimate, what was measured,
and their ratio. Of a run that was resumed only what this process did is measured, so it is not
compared.
"""

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformer_lens.model_bridge import TransformerBridge

from steerlens.answers import JUDGED_AT_ONCE
from steerlens.costs.ledger import Ledger
from steerlens.costs.rates import Rates, calibrate_rates, peak_memory
from steerlens.costs.stream import stream
from steerlens.costs.work import Asking, Work

if TYPE_CHECKING:
    from steerlens.evaluation.judge import Judge
    from steerlens.runs import Run
    from steerlens.workers.settings import WorkerSettings

__all__ = ["COSTS_FILE", "Estimate", "Forecast", "estimate_costs"]

COSTS_FILE = "costs.json"
# A row of responses.jsonl beside prompt and response, and a row of pieces.jsonl beside its text.
_RESPONSE_BYTES, _PIECE_BYTES = 700, 60
# Parts that workers compute where there are any.
_BY_WORKERS = ("answers", "cache", "judge")


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Attributes:
        stage: ``"search"``, ``"evaluate"``, ``"cache"`` or ``"rank"``.
        parts: Seconds and counts of each part, named as in the run's ledger.
        seconds: Wall time in all, without loading models and calibrating.
        tokens: Tokens written by the model.
        memory: Peak memory of this process, in bytes.
        disk: Size of the run's folder, in bytes; parts have their share as ``disk_bytes``.
        workers: Workers the answers (or shards) were divided by.
        worker_memory: Peak memory of each worker, in bytes; 0 where this process answers.
    """

    stage: str
    parts: Mapping[str, Mapping[str, float]]
    seconds: float
    tokens: int
    memory: int
    disk: int
    workers: int = 1
    worker_memory: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "stage": self.stage,
            "seconds": round(self.seconds, 1),
            "tokens": self.tokens,
            "memory_bytes": self.memory,
            "disk_bytes": self.disk,
            "workers": self.workers,
            "worker_memory_bytes": self.worker_memory,
            "parts": {name: dict(part) for name, part in self.parts.items()},
        }

    def __str__(self) -> str:
        there = f" and {self.worker_memory / 2**30:.1f} in each worker" * bool(self.worker_memory)
        return (
            f"{self.stage}: about {_duration(self.seconds)}, {self.tokens:,} tokens, "
            f"{self.memory / 2**30:.1f} GB of memory{there}, {self.disk / 1e6:.1f} MB on the disk"
        )


@dataclass(eq=False)
class Forecast:
    """An estimate made at a run's start, to be compared at its end."""

    estimate: Estimate
    rates: Rates
    resumed: bool

    @classmethod
    def start(
        cls,
        model: TransformerBridge,
        judge: "Judge | None",
        work: Work,
        batch_size: int,
        workers: "WorkerSettings | None" = None,
        resumed: bool = False,
    ) -> "Forecast":
        """Calibrate, and say the estimate on standard error."""
        threads = workers.threads if workers else 0
        rates = calibrate_rates(model, work, batch_size, judge, threads)
        n_workers = workers.workers if workers else 0
        # Ray that is started here has this machine's cores and no others.
        cores = (os.cpu_count() or 1) if workers and workers.address is None else None
        found = cls(estimate_costs(work, rates, batch_size, n_workers, cores), rates, resumed)
        print(f"estimate of the {found.estimate}", file=sys.stderr, flush=True)
        return found

    def conclude(self, run: "Run", ledger: Ledger) -> None:
        """Write ``costs.json`` and say on standard error how right the estimate was."""
        run.write_json(COSTS_FILE, self.compared(run.folder, ledger))

    def compared(self, folder: Path, ledger: Ledger) -> dict[str, Any]:
        """What ``costs.json`` holds; says on standard error how right the estimate was.

        Args:
            folder: Where the results are.
            ledger: What was measured.
        """
        seconds = ledger.seconds - self.rates.seconds
        parts = ledger.to_json()
        # The file itself is not there yet; it is small beside the others.
        for name, size in _disk_by_part(folder).items():
            parts.setdefault(name, {"seconds": 0.0})["disk_bytes"] = size
        disk = sum(part.get("disk_bytes", 0) for part in parts.values())
        actual = {
            "seconds": round(seconds, 1),
            "tokens": parts.get("answers", {}).get("tokens", 0),
            "memory_bytes": peak_memory(),
            "disk_bytes": disk,
            "parts": parts,
        }
        expected = self.estimate.to_json()
        ratio = {
            key: round(actual[key] / expected[key], 3)
            for key in ("seconds", "tokens", "memory_bytes", "disk_bytes")
            if expected[key]
        }
        said = "" if self.resumed else f", {ratio.get('seconds', 0):.2f} of the estimate"
        print(f"took {_duration(seconds)}{said}", file=sys.stderr, flush=True)
        return {
            "estimate": expected,
            "actual": actual,
            "actual_over_estimate": None if self.resumed else ratio,
            "resumed": self.resumed,
            "rates": self.rates.to_json(),
        }


def estimate_costs(
    work: Work, rates: Rates, batch_size: int, n_workers: int = 0, cores: int | None = None
) -> Estimate:
    """Rates × work.

    Args:
        work: From `steerlens.costs.work`.
        rates: From `steerlens.costs.rates`.
        batch_size: Rows decoded together.
        n_workers: Answers, residuals and judging are divided among so many, each as fast as was
            measured, or among as many as there are pieces at once; parts that are computed by the
            driver alone are not. With 0 this process computes all.
        cores: CPU cores that workers and driver share; ``None`` when the driver has its own.
    """
    at_once = _at_once(work, n_workers)

    def busy(pieces: int) -> int:
        """Workers that a list of so many pieces keeps busy."""
        return max(1, min(n_workers, pieces * at_once))

    answering, tokens = 0.0, 0
    for asking in work.askings:
        seconds, written = answer_costs(asking, rates, batch_size)
        answering += seconds / busy(math.ceil(asking.rows / asking.piece_rows))
        tokens += written
    rows = sum(one.rows for one in work.askings)
    # Shards are as many as one likes; what one vector is fitted on is one piece.
    sharded = work.stage in ("cache", "rank")
    cached = work.cached * rates.cache / (max(n_workers, 1) if sharded else busy(1))
    judged = work.judged * rates.judge
    judged /= busy(math.ceil(work.judged / JUDGED_AT_ONCE) if work.stage == "evaluate" else 1)
    pieces, responses, numbers = _disk(work, rates, tokens, rows)
    parts: dict[str, dict[str, float]] = {
        "answers": {
            "seconds": answering,
            "rows": rows,
            "tokens": tokens,
            "disk_bytes": pieces,
        },
        "cache": {"seconds": cached, "rows": work.cached, "disk_bytes": numbers},
        "recovery": {"seconds": work.recovered * rates.recover, "rows": work.recovered},
        "judge": {"seconds": judged, "rows": work.judged},
        "check": {
            "seconds": work.checked * rates.check,
            "rows": work.checked,
            "disk_bytes": responses,
        },
        "rank": {"seconds": _rank_seconds(work), "pairs": work.ranked},
    }
    parts = {name: part for name, part in parts.items() if any(part.values())}
    for part in parts.values():
        part["seconds"] = round(part["seconds"], 2)
    more = max(0, _most_positions(work, rates, batch_size) - rates.positions) * rates.token_memory
    # Keys and values are held by whoever answers, residuals by who makes them and by the driver.
    held = 4 * work.held
    return Estimate(
        stage=work.stage,
        parts=parts,
        seconds=_wall_time(
            work,
            {name: part["seconds"] for name, part in parts.items()},
            n_workers,
            n_workers * max(rates.threads, 1),
            cores,
        ),
        tokens=tokens,
        memory=rates.memory + held + (0 if n_workers else more),
        disk=pieces + responses + numbers,
        workers=max(n_workers, 1),
        worker_memory=rates.memory + max(held, more) if n_workers else 0,
    )


def _at_once(work: Work, n_workers: int) -> int:
    """Instructions that are searched side by side."""
    return max(1, min(work.instructions, 2 * n_workers))


def _wall_time(
    work: Work, parts: Mapping[str, float], n_workers: int, threads: int, cores: int | None
) -> float:
    """Seconds of all parts: in turns, or side by side where workers search several instructions.

    While some instructions wait for the driver, workers have pieces of others, so the longer of the
    two sides decides, and of the shorter what is left at the end: about one instruction's. Nor can
    it be faster than all that is computed, divided by the cores there are.

    Args:
        work: What will be done.
        parts: Seconds of each part, those of workers divided among them.
        n_workers: How many; 0 for this process alone.
        threads: Threads of all workers.
        cores: Cores that they share with the driver, ``None`` when it has its own.
    """
    everything = sum(parts.values(), start=0.0)
    at_once = _at_once(work, n_workers)
    if at_once < 2:
        return everything
    there = sum(parts.get(name, 0.0) for name in _BY_WORKERS)
    here = everything - there
    beside = max(there, here) + min(there, here) / at_once
    return max(beside, (there * threads + here) / cores) if cores else beside


def _disk(work: Work, rates: Rates, tokens: int, rows: int) -> tuple[int, int, int]:
    """Bytes of the pieces, of the responses beside their checks, and of vectors or residuals."""
    pieces = tokens * rates.characters + _PIECE_BYTES * rows
    responses = 0.0
    if work.stage == "evaluate":
        prompt = sum(map(len, work.prompts)) / max(len(work.prompts), 1)
        each = _RESPONSE_BYTES + prompt + rates.characters * tokens / max(rows, 1)
        responses = work.checked * each
    return int(pieces), int(responses), work.number_bytes * work.numbers


def _disk_by_part(folder: Path) -> dict[str, int]:
    """Bytes of a folder's files by the part that writes them; small ones are ``"other"``."""
    sizes: dict[str, int] = {}
    for path in folder.rglob("*"):
        if path.is_file():
            by_name = {"pieces.jsonl": "answers", "responses.jsonl": "check"}
            by_kind = "cache" if path.suffix == ".safetensors" else "other"
            part = by_name.get(path.name, by_kind)
            sizes[part] = sizes.get(part, 0) + path.stat().st_size
    return sizes


def answer_costs(asking: Asking, rates: Rates, batch_size: int) -> tuple[float, int]:
    """Seconds and tokens of a list of questions."""
    if not asking.rows:
        return 0.0, 0
    plain = asking.rows - asking.steered
    seconds = plain * rates.read + asking.steered * rates.read_steered
    tokens = 0
    for start in range(0, asking.rows, asking.piece_rows):
        size = min(asking.piece_rows, asking.rows - start)
        lengths = _drawn(rates, asking.max_new_tokens, size)
        tokens += sum(lengths)
        # The first token comes with reading; ending a turn is a step as well.
        stepped = [min(one + 1, asking.max_new_tokens) - 1 for one in lengths]
        steps, active, looked_at = stream(stepped, batch_size, rates.prompt_tokens)
        seconds += rates.step * steps + rates.step_row * active
        seconds += rates.step_position * looked_at
    return seconds, tokens


def _most_positions(work: Work, rates: Rates, batch_size: int) -> int:
    """Positions of the largest key-value memory the run will hold."""
    return max(
        (
            int(min(one.rows, one.piece_rows, batch_size))
            * int(rates.prompt_tokens + one.max_new_tokens)
            for one in work.askings
        ),
        default=0,
    )


def _drawn(rates: Rates, most: int, n: int) -> list[int]:
    """`n` lengths spread over those seen; those that were cut go on until `most`."""
    seen = sorted(rates.lengths)
    # An even pass over the quantiles, in an order that does not sort rows by length.
    picked = [seen[int((i + 0.5) / n * len(seen))] for i in range(n)]
    stride = next(s for s in (7, 11, 13, 17, 1) if n % s or s == 1)
    mixed = [picked[(i * stride) % n] for i in range(n)]
    return [most if one >= rates.longest else min(one, most) for one in mixed]


def _rank_seconds(work: Work) -> float:
    # Not calibrated: 488 s for 20,000 pairs of 30 layers × 576 (benchmarks/shards.py), in
    # proportion; other widths and depths, and few pairs, may be far from it.
    return 0.024 * work.ranked


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
