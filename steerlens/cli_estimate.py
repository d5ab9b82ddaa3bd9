"""`steerlens estimate`: what a command will take on this machine, without running it."""

import argparse
import os
from pathlib import Path
from typing import Any

from steerlens.cli_common import instruction_ids, load, print_json, run_place
from steerlens.errors import SteerlensError

__all__ = ["add_estimate", "estimate"]

_STAGES = ("search", "evaluate", "cache", "rank")


def add_estimate(parser: argparse.ArgumentParser) -> None:
    """Options of `steerlens estimate`: those of the commands that decide what they take."""
    parser.add_argument("stage", choices=_STAGES, help="the command to be estimated")
    parser.add_argument("--instruction", action="append", default=[], metavar="ID", help="repeats")
    parser.add_argument("--all", action="store_true", help="every instruction of the catalogue")
    parser.add_argument("--data", type=Path, help="evaluate: IFEval-shaped prompts (JSONL)")
    parser.add_argument("--plan", type=run_place, help="evaluate: folder that a search wrote")
    parser.add_argument("--n", type=int, default=16, help="pairs, or report prompts an instruction")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="evaluate")
    parser.add_argument("--judge", default="auto", help="as for search and evaluate")
    parser.add_argument("--batch-size", type=int, default=96)
    parser.add_argument(
        "--workers", type=int, help="by so many of --engine ray (default: by this process)"
    )
    parser.add_argument("--worker-cpus", type=float, default=1, help="logical CPUs of each")
    parser.add_argument("--skip-unknown", action="store_true")
    parser.add_argument("--seed", type=int, default=0)


def estimate(arguments: argparse.Namespace) -> None:
    """`steerlens estimate`."""
    if arguments.batch_size < 1:
        raise SteerlensError(f"--batch-size must be at least 1; got {arguments.batch_size}")
    workers = None
    if arguments.workers is not None:
        from steerlens.workers import WorkerSettings

        workers = WorkerSettings(workers=arguments.workers, cpus=arguments.worker_cpus)
    from steerlens.costs.forecast import estimate_costs
    from steerlens.costs.rates import calibrate_rates

    find = _evaluation if arguments.stage == "evaluate" else _other
    model, judge, work = find(arguments)
    threads, n_workers = (workers.threads, workers.workers) if workers else (0, 0)
    rates = calibrate_rates(model, work, arguments.batch_size, judge, threads)
    # Workers are taken to be started on this machine, as they are without an address.
    cores = os.cpu_count() if workers else None
    found = estimate_costs(work, rates, arguments.batch_size, n_workers, cores)
    if arguments.json:
        print_json({**found.to_json(), "rates": rates.to_json()})
        return
    print(found)
    for name, part in found.parts.items():
        counts = ", ".join(
            f"{value:,.0f} {key.replace('_', ' ')}"
            for key, value in part.items()
            if key != "seconds"
        )
        print(f"  {name:10} {part['seconds']:9.1f} s  {counts}")
    print(f"(calibrated in {rates.seconds:.0f} s)")


def _other(arguments: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Search, cache and rank: by instructions of the catalogue."""
    names = instruction_ids(arguments)
    from steerlens.costs.work import cache_work, search_work
    from steerlens.instructions import catalogue
    from steerlens.pairs import contrast_pairs
    from steerlens.search import SearchSettings

    if arguments.stage == "search":
        judge = _judge(arguments)
        settings = SearchSettings(
            judge=judge.info.reference if judge else None,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
        )
        model = load(arguments)
        return model, judge, search_work(model, [catalogue[name] for name in names], settings)
    prompts = []
    for name in names:
        pairs = contrast_pairs(name, n=arguments.n, seed=arguments.seed, split="fit")
        prompts += [text for pair in pairs for text in (pair.instructed, pair.uninstructed)]
    model = load(arguments)
    return model, None, cache_work(model, prompts, rank=arguments.stage == "rank")


def _evaluation(arguments: argparse.Namespace) -> tuple[Any, Any, Any]:
    if (arguments.data is None) == (not arguments.instruction):
        raise SteerlensError(
            "give either --data FILE or --instruction ID (its prompts of the report split)"
        )
    from steerlens.costs.work import evaluation_work
    from steerlens.evaluation import catalogue_prompts, read_prompts
    from steerlens.evaluation.conditions import left_out
    from steerlens.evaluation.run import EvaluationSettings
    from steerlens.plans.plan import Plan

    rows = list(
        read_prompts(arguments.data, skip_unknown=arguments.skip_unknown).prompts
        if arguments.data is not None
        else catalogue_prompts(arguments.instruction, arguments.n, seed=arguments.seed)
    )
    plan = Plan.load(arguments.plan) if arguments.plan else None
    if plan is not None:
        rows, missing = left_out(rows, plan)
        if missing and not arguments.skip_unknown:
            raise SteerlensError(
                f"the plan has no choice for {', '.join(sorted(missing))}; add --skip-unknown"
            )
    if not rows:
        raise SteerlensError("there is no prompt to evaluate")
    judge = _judge(arguments)
    settings = EvaluationSettings(
        max_new_tokens=arguments.max_new_tokens,
        judge=judge.info.reference if judge else None,
        batch_size=arguments.batch_size,
    )
    return load(arguments), judge, evaluation_work(rows, plan, settings)


def _judge(arguments: argparse.Namespace) -> Any:
    from steerlens.cli_runs import chosen_judge
    from steerlens.evaluation.judge import load_judge

    name = chosen_judge(arguments)
    return load_judge(name) if name else None
