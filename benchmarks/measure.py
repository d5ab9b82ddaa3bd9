"""Timing and peak memory."""

import gc
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil

_SAMPLE_SECONDS = 0.01


@dataclass(frozen=True)
class Run:
    """One timed run.

    Attributes:
        seconds: Wall time.
        units: Tokens produced, or prompt tokens covered.
        peak_bytes: Highest resident memory during the run, above that at its start.
    """

    seconds: float
    units: int
    peak_bytes: int

    @property
    def rate(self) -> float:
        """Units per second."""
        return self.units / self.seconds


def timed(work: Callable[[], int]) -> Run:
    """Run `work`, which returns how many units it did, watching its memory."""
    gc.collect()
    process = psutil.Process()
    start_bytes = process.memory_info().rss
    peak = [start_bytes]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_SAMPLE_SECONDS):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    started = time.perf_counter()
    try:
        units = work()
        seconds = time.perf_counter() - started
    finally:
        done.set()
        watcher.join()
    return Run(seconds, units, peak[0] - start_bytes)


def summary(runs: list[Run]) -> dict[str, Any]:
    """Median with spread over rounds."""
    rates = sorted(run.rate for run in runs)
    return {
        "rate_median": statistics.median(rates),
        "rate_min": rates[0],
        "rate_max": rates[-1],
        "seconds_median": statistics.median(run.seconds for run in runs),
        "units": runs[0].units,
        "rounds": len(runs),
        "rates": [run.rate for run in runs],
    }
