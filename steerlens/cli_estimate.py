"""`steerlens estimate`: what a command will take on this machine, without running it."""

import argparse
import os
from pathlib import Path
from typing import Any

from steerlens.cli_common import (
    DEFAULT_PAIRS,
    instruction_ids,
    load,
    positive,
    print_json,
    refuse,
    run_place,
    seed_of,
)
from steerlens.cli_runs import DEFAULT_PROMPTS, PROMPTS_OF_DATA
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
    parser.add_argument(
        "--n",
        type=int,
        help="cache, rank: pairs of each instruction; evaluate: its report prompts (as by default "
        "there)",
    )
    parser.add_argument("--max-new-tokens", type=positive, help="evaluate (default: 256)")
    parser.add_argument("--judge", help="as for search and evaluate")
    parser.add_argument("--batch-size", type=positive, help="as by default in the command")
    parser.add_argument(
        "--workers", type=int, help="by so many of --engine ray (default: by this process)"
    )
    parser.add_argument("--worker-cpus", type=float, help="logical CPUs of each (default: 1)")
    parser.add_argument("--skip-unknown", action="store_true", help="evaluate")
    parser.add_argument("--seed", type=int)


def estimate(arguments: argparse.Namespace) -> None:
    """`steerlens estimate`."""
    _check_used(arguments)
    if arguments.batch_size is None:
        arguments.batch_size = 96 if arguments.stage in ("search", "evaluate") else 16
    workers = None
    if arguments.workers is not None:
        from steerlens.workers import WorkerSettings

        cpus = 1 if arguments.worker_cpus is None else arguments.worker_cpus
        workers = WorkerSettings(workers=arguments.workers, cpus=cpus)
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


def _check_used(arguments: argparse.Namespace) -> None:
    """Refuse what the stage does not take."""
    stage = arguments.stage
    if stage != "evaluate":
        only = ["--data", "--plan", "--max-new-tokens", "--skip-unknown"]
        refuse(arguments, only, f"is for evaluate, not for {stage}")
    if stage in ("cache", "rank"):
        refuse(arguments, ["--judge"], f"is for search and evaluate, not for {stage}")
    if stage == "search":
        refuse(arguments, ["--n"], "has no meaning for search, which says itself how many it tries")
    if stage == "evaluate":
        refuse(arguments, ["--all"], "is not for evaluate, which takes --data or --instruction")
        if arguments.data is not None:
            refuse(arguments, ["--n"], PROMPTS_OF_DATA)
    if arguments.workers is None:
        refuse(arguments, ["--worker-cpus"], "is of each of the --workers, and there are none")


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
            seed=seed_of(arguments),
        )
        model = load(arguments)
        return model, judge, search_work(model, [catalogue[name] for name in names], settings)
    prompts = []
    for name in names:
        n = DEFAULT_PAIRS if arguments.n is None else arguments.n
        pairs = contrast_pairs(name, n=n, seed=seed_of(arguments), split="fit")
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

    of_file = "with --data FILE: no prompt is drawn" if arguments.data is not None else None
    seed = seed_of(arguments, unused=of_file)
    rows = list(
        read_prompts(arguments.data, skip_unknown=arguments.skip_unknown).prompts
        if arguments.data is not None
        else catalogue_prompts(
            arguments.instruction,
            DEFAULT_PROMPTS if arguments.n is None else arguments.n,
            seed=seed,
        )
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
        max_new_tokens=256 if arguments.max_new_tokens is None else arguments.max_new_tokens,
        judge=judge.info.reference if judge else None,
        batch_size=arguments.batch_size,
    )
    return load(arguments), judge, evaluation_work(rows, plan, settings)


def _judge(arguments: argparse.Namespace) -> Any:
    from steerlens.cli_runs import chosen_judge
    from steerlens.evaluation.judge import load_judge

    if arguments.judge is None:
        arguments.judge = "auto"
    name = chosen_judge(arguments)
    return load_judge(name) if name else None
