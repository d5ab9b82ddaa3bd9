"""Timing and peak memory."""

import gc
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from steerlens.models.adapter.pytorch import cpu_has

_SAMPLE_SECONDS = 0.01
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Run:
    """One timed run.

    Attributes:
        seconds: Wall time.
        units: Tokens produced, or prompt tokens covered.
        peak_bytes: Highest memory during the run, above that at its start: resident memory for the
            CPU, allocated memory of an accelerator.
    """

    seconds: float
    units: int
    peak_bytes: int

    @property
    def rate(self) -> float:
        """Units per second."""
        return self.units / self.seconds


def timed(work: Callable[[], int], device: torch.device = _CPU) -> Run:
    """Run `work`, which returns how many units it did, watching the memory of a device.

    An accelerator works behind the program's back, so it is waited for before and after.
    """
    gc.collect()
    wait_for(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start_bytes = allocated(device)
    peak = [start_bytes]
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_SAMPLE_SECONDS):
            peak[0] = max(peak[0], allocated(device))

    watcher = threading.Thread(target=watch, daemon=True)
    if device.type != "cuda":  # which keeps its own record
        watcher.start()
    started = time.perf_counter()
    try:
        units = work()
        wait_for(device)
        seconds = time.perf_counter() - started
    finally:
        done.set()
        if watcher.is_alive():
            watcher.join()
    if device.type == "cuda":
        peak[0] = torch.cuda.max_memory_allocated(device)
    return Run(seconds, units, peak[0] - start_bytes)


def wait_for(device: torch.device) -> None:
    """Wait until an accelerator has done everything it was asked."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def allocated(device: torch.device) -> int:
    """Bytes in use now."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    return int(psutil.Process().memory_info().rss)


def processor() -> str:
    """This machine's processor: name, cores, and what it has for bfloat16."""
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
        name = names[0] if names else name
    flag = cpu_has("amx_bf16", "avx512_bf16") or "neither amx_bf16 nor avx512_bf16"
    return f"{name}, {os.cpu_count()} cores, {flag}"


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
