"""The commands that fill a run folder: `search` and `evaluate`."""

import argparse
from pathlib import Path
from typing import Any

from steerlens.cli.engine import add_engine, workers_of
from steerlens.cli.options import (
    instruction_ids,
    load,
    local_path,
    positive,
    print_json,
    refuse,
)
from steerlens.errors import SteerlensError

__all__ = [
    "DEFAULT_PROMPTS",
    "PROMPTS_OF_DATA",
    "add_evaluate",
    "add_search",
    "chosen_judge",
    "evaluate",
    "search",
]

DEFAULT_PROMPTS = 16
PROMPTS_OF_DATA = (
    "is how many prompts of each --instruction are drawn, and all rows of --data FILE are answered"
)
_NO_JUDGE = "none"


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=local_path,
        required=True,
        help="run folder: new, empty, or resumed",
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in the folder")
    parser.add_argument(
        "--judge",
        default="auto",
        help="a model that scores fluency; none; by default Gemma-3-270M where it is installed",
    )
    parser.add_argument("--batch-size", type=positive, default=96)
    parser.add_argument(
        "--piece-rows", type=positive, default=192, help="rows computed by one worker"
    )
    parser.add_argument("--seed", type=int, default=0)
    add_engine(parser)


def add_search(parser: argparse.ArgumentParser) -> None:
    """Options of `steerlens search`."""
    parser.add_argument("--instruction", action="append", default=[], metavar="ID", help="repeats")
    parser.add_argument("--all", action="store_true", help="every instruction of the catalogue")
    _add_run(parser)


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """Options of `steerlens evaluate`."""
    parser.add_argument("--data", type=Path, help="IFEval-shaped prompts (JSONL)")
    parser.add_argument(
        "--instruction", action="append", default=[], metavar="ID", help="report prompts; repeats"
    )
    parser.add_argument(
        "--n", type=int, help="report prompts of each --instruction (default: 16); not with --data"
    )
    parser.add_argument("--plan", type=local_path, help="folder that `steerlens search` wrote")
    parser.add_argument("--max-new-tokens", type=positive, default=256)
    parser.add_argument(
        "--skip-unknown", action="store_true", help="leave out rows that cannot be handled"
    )
    _add_run(parser)


def search(arguments: argparse.Namespace) -> None:
    """`steerlens search`."""
    names = instruction_ids(arguments)
    from steerlens.behaviour.plans.settings import describe
    from steerlens.behaviour.search import SearchSettings
    from steerlens.behaviour.search import search as run_search

    settings = SearchSettings(
        judge=chosen_judge(arguments),
        batch_size=arguments.batch_size,
        piece_rows=arguments.piece_rows,
        seed=arguments.seed,
    )
    workers = workers_of(arguments)
    model = load(arguments)
    plan = run_search(
        model,
        names,
        arguments.out,
        settings,
        resume=arguments.resume,
        workers=workers,
    )
    if arguments.json:
        print_json({"plan": f"{arguments.out}/plan.json", **_without_tables(plan.data)})
        return
    for name in plan.instructions:
        record = plan.data["instructions"][name]
        for context in ("uninstructed", "instructed"):
            one = record[context]
            print(
                f"{name} ({context}): {describe(plan.candidate(name, context))}; "
                f"{one['rate']:.0%} [{one['low']:.0%}, {one['high']:.0%}] of {one['n']} prompts, "
                f"unsteered {one['unsteered_rate']:.0%}; corrected for choosing "
                f"{one['corrected_rate']:.0%}"
            )
    print(f"plan written to {arguments.out}/plan.json")


def evaluate(arguments: argparse.Namespace) -> None:
    """`steerlens evaluate`."""
    if (arguments.data is None) == (not arguments.instruction):
        raise SteerlensError(
            "give either --data FILE or --instruction ID (its prompts of the report split)"
        )
    if arguments.data is not None:
        refuse(arguments, ["--n"], PROMPTS_OF_DATA)
    from steerlens.behaviour.evaluation import catalogue_prompts, read_prompts
    from steerlens.behaviour.evaluation.run import EvaluationSettings
    from steerlens.behaviour.evaluation.run import evaluate as run_evaluation
    from steerlens.behaviour.plans.plan import Plan
    from steerlens.files import write_text
    from steerlens.reports.evaluation import render_evaluation

    prompts: Any = (
        read_prompts(arguments.data, skip_unknown=arguments.skip_unknown)
        if arguments.data is not None
        else catalogue_prompts(
            arguments.instruction,
            DEFAULT_PROMPTS if arguments.n is None else arguments.n,
            seed=arguments.seed,
        )
    )
    plan = Plan.load(arguments.plan) if arguments.plan else None
    settings = EvaluationSettings(
        max_new_tokens=arguments.max_new_tokens,
        judge=chosen_judge(arguments),
        batch_size=arguments.batch_size,
        piece_rows=arguments.piece_rows,
        skip_unknown=arguments.skip_unknown,
        seed=arguments.seed,
    )
    workers = workers_of(arguments)
    result = run_evaluation(
        load(arguments),
        prompts,
        arguments.out,
        plan,
        settings,
        resume=arguments.resume,
        workers=workers,
    )
    page = write_text(
        arguments.out / "evaluation.html", render_evaluation(result.summary, result.responses)
    )
    if arguments.json:
        print_json(result.summary)
        return
    for name, record in result.summary["conditions"].items():
        loose = record["all"]["loose"]
        print(
            f"{name:24} {loose['rate']:6.1%} [{loose['low']:.1%}, {loose['high']:.1%}] "
            f"of {record['all']['n']}; degenerate {record['all']['degenerate']['rate']:.1%}"
        )
    print(f"responses and summary written to {arguments.out}, the page to {page}")


def chosen_judge(arguments: argparse.Namespace) -> str | None:
    """The judge asked for; by default the usual one, if it is installed."""
    if arguments.judge == _NO_JUDGE:
        return None
    if arguments.judge != "auto":
        return str(arguments.judge)
    from steerlens.behaviour.judge import DEFAULT_JUDGE
    from steerlens.models.loading import available_models

    ready = any(one.name == DEFAULT_JUDGE and one.installed for one in available_models())
    return DEFAULT_JUDGE if ready else None


def _without_tables(data: Any) -> dict[str, Any]:
    """A plan without the tables searched, which are in the file."""
    return {
        **data,
        "instructions": {
            name: {key: value for key, value in record.items() if key != "table"}
            for name, record in data["instructions"].items()
        },
    }
