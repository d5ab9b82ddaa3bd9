"""Run the benchmark: ``python -m benchmarks`` (or ``make bench``).

Contenders take turns within each round, so that a drift of the machine's speed meets all of them.
Peak memory is read in a process of its own for each contender, since a process never returns all it
once took. Writes ``benchmarks/results.json`` and the table in ``benchmarks/README.md``.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import contenders, growth, table
from benchmarks.contenders import Contender
from benchmarks.measure import Run, processor, summary, timed
from benchmarks.work import FLOAT32, QUICK, Sizes, Work, prepare
from steerlens.files import library_versions

HERE = Path(__file__).parent
TASKS = {
    "generation": contenders.GENERATION,
    "sweep": contenders.SWEEP,
    "caching": contenders.CACHING,
}


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--no-growth", action="store_true", help="leave out growth with size")
    parser.add_argument("--memory-of", nargs=2, metavar=("TASK", "NAME"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        task, name = arguments.memory_of
        sizes = _sizes(arguments.dtypes, arguments.quick)
        work = prepare(arguments.dtypes, sizes)
        run = _run(work, TASKS[task][name])
        print(json.dumps({"peak": run.peak_bytes}))
        return
    results: dict[str, Any] = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"system": platform.platform(), "cores": os.cpu_count()},
        "processor": processor(),
        "versions": library_versions(),
        "rounds": arguments.rounds,
        "dtypes": {},
    }
    for dtype in arguments.dtypes.split(","):
        sizes = _sizes(dtype, arguments.quick)
        work = prepare(dtype, sizes)
        with suppress(ImportError):  # then the peer is left out below, with its reason
            work = replace(work, peer_batch_size=contenders.best_batch_size(work))
        found: dict[str, Any] = {
            "sizes": vars(sizes),
            "steering_vectors_batch_size": work.peer_batch_size,
        }
        found["tasks"] = _rounds(work, arguments.rounds)
        if not arguments.no_growth:
            found["growth"] = growth.measure(work)
        del work
        found["memory"] = _memories(dtype, arguments.quick)
        results["dtypes"][dtype] = found
        table.write(results)
    print(table.page(results))


def _rounds(work: Work, n_rounds: int) -> dict[str, Any]:
    """Every contender of every task once a round; a failing peer is left out with its reason."""
    runs: dict[str, dict[str, list[Run]]] = {task: {} for task in TASKS}
    left_out: dict[str, dict[str, str]] = {task: {} for task in TASKS}
    for number in range(n_rounds):
        for task, members in TASKS.items():
            for name, contender in members.items():
                if name in left_out[task]:
                    continue
                try:
                    run = _run(work, contender)
                except Exception as error:
                    left_out[task][name] = f"{type(error).__name__}: {error}"[:200]
                    print(f"{task}: {name} left out: {left_out[task][name]}", file=sys.stderr)
                    continue
                runs[task].setdefault(name, []).append(run)
                print(
                    f"round {number + 1} {task}: {name}: {run.rate:.1f} tokens/s "
                    f"({run.seconds:.1f} s)",
                    file=sys.stderr,
                )
    return {
        task: {
            "measured": {name: summary(members) for name, members in runs[task].items()},
            "left_out": left_out[task],
        }
        for task in TASKS
    }


def _run(work: Work, contender: Contender) -> Run:
    return timed(lambda: contender(work))


def _memories(dtype: str, quick: bool) -> dict[str, int]:
    """Peak memory above the loaded models, each contender in a process of its own."""
    wanted = [
        ("sweep", "steerlens"),
        ("generation", "steerlens, steered"),
        ("generation", "Hugging Face generate (sdpa)"),
        ("caching", "steerlens"),
        ("caching", "Hugging Face forward (sdpa)"),
    ]
    peaks = {}
    for task, name in wanted:
        command = [sys.executable, "-m", "benchmarks", "--dtypes", dtype, "--memory-of", task, name]
        if quick:
            command.append("--quick")
        done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parent)
        if done.returncode == 0:
            peaks[f"{task}: {name}"] = int(json.loads(done.stdout.splitlines()[-1])["peak"])
    return peaks


def _sizes(dtype: str, quick: bool) -> Sizes:
    if quick:
        return QUICK
    return FLOAT32 if dtype == "float32" else Sizes()


if __name__ == "__main__":
    main()
