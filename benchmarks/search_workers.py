"""Is a search by Ray workers the same search, and how does it scale?

    OMP_NUM_THREADS=1 python -m benchmarks.search_workers [--out DIR]

One search of four instructions in float32, smaller than the default one, three times, each in a
process of its own: by the local engine, by one Ray worker of one CPU, and by two. With the variable
set, the local engine and the driver have one thread each. Printed: what each took, without loading
the driver's model, and which files of the run folders differ. Files that say how a run went, not
what it found, are not compared.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import steerlens as sl
from steerlens.behaviour.plans.fitting import FitRecipe
from steerlens.behaviour.search import SearchSettings, Stage, search
from steerlens.runs.folder import LOCK, MANIFEST, STORE
from steerlens.workers import WorkerSettings

INSTRUCTIONS = (
    "change_case:english_lowercase",
    "detectable_format:title",
    "punctuation:no_comma",
    "startend:quotation",
)
SETTINGS = SearchSettings(
    broad=Stage(4, 24, 4),
    narrow=Stage(6, 40, 3),
    final=Stage(8, 64, 1),
    recipe=FitRecipe(n_pairs=32, n_responses=16, response_tokens=48),
    batch_size=24,
    piece_rows=24,
)
ENGINES = {"local": 0, "ray 1": 1, "ray 2": 2}
_HOW_IT_WENT = {MANIFEST, LOCK, STORE}


def run_one(name: str, folder: Path) -> None:
    """One search, in this process; prints its seconds and tokens."""
    workers = ENGINES[name]
    model = sl.load_model(dtype="float32", device="cpu")
    start = time.monotonic()
    plan = search(
        model,
        INSTRUCTIONS,
        folder,
        SETTINGS,
        show_progress=False,
        workers=WorkerSettings(workers=workers, cpus=1) if workers else None,
    )
    tokens = sum(one["n_tokens"] for one in plan.data["instructions"].values())
    print(json.dumps({"seconds": time.monotonic() - start, "tokens": tokens}))


def contents(folder: Path) -> dict[str, bytes]:
    """What a run found, by file."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in _HOW_IT_WENT
    }


def main() -> None:
    """Print one line an engine."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("runs/search-workers"))
    parser.add_argument("--only", choices=list(ENGINES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        run_one(arguments.only, arguments.out)
        return
    first: dict[str, bytes] = {}
    for name in ENGINES:
        folder = arguments.out / name.replace(" ", "-")
        own = [sys.executable, "-m", "benchmarks.search_workers", "--only", name]
        done = subprocess.run([*own, "--out", str(folder)], check=True, stdout=subprocess.PIPE)
        took = json.loads(done.stdout.splitlines()[-1])
        found = contents(folder)
        first = first or found
        differ = sorted(n for n in {*first, *found} if first.get(n) != found.get(n))
        print(
            f"{name:8} {took['seconds']:7.1f} s, {took['tokens']} tokens; "
            f"{len(found)} files, different from the first: {differ or 'none'}",
            flush=True,
        )


if __name__ == "__main__":
    main()
