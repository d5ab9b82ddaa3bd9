"""The command line: one thin command a capability.

Results go to standard output (as JSON with ``--json``), progress and messages to standard error.
Exit code 0 on success, 2 for bad input, with one line that says what is wrong.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import steerlens
from steerlens.cli import calibrate as cli_calibrate
from steerlens.cli import rank as cli_rank
from steerlens.cli import runs as cli_runs
from steerlens.cli import vectors as cli_vectors
from steerlens.cli.options import (
    DEFAULT_PAIRS,
    EVIDENCE_HELP,
    add_placement,
    evidence_kinds,
    instruction_ids,
    load,
    local_path,
    positive,
    print_json,
)
from steerlens.errors import SteerlensError

__all__ = ["main"]

DEFAULT_MODEL = "smollm2-135m-instruct"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the console entry point.

    Returns:
        The exit code: 0 on success, 2 for bad input, 130 after Ctrl-C.
    """
    given = sys.argv[1:] if argv is None else list(argv)
    arguments = _parser().parse_args(given)
    # Kept for the provenance of results.
    arguments.command = shlex.join(["steerlens", *given])
    run: Callable[[argparse.Namespace], None] = arguments.run
    try:
        run(arguments)
    except SteerlensError as error:
        print(f"steerlens: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("steerlens: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; there is nobody left to tell.
        sys.stderr.close()
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as for any other bad input; the usage is what ``--help`` is for."""
        self.exit(2, f"steerlens: {message}; see `{self.prog} --help`\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="steerlens",
        description="Where to steer a language model, how hard, and what it did to every token.",
    )
    parser.add_argument("--version", action="version", version=steerlens.__version__)
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> Any:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="print machine-readable JSON")
        return sub

    command("models", _models, "list the models that can be loaded here and now")
    command("instructions", _instructions, "list the instructions of the catalogue")
    rank = command("rank", cli_rank.rank, "rank layers by evidence, with intervals")
    _add_model(rank)
    _add_pairs(rank)
    cli_rank.add_rank(rank)
    vector = command("vector", cli_vectors.vector, "make a steering vector, or a library of them")
    _add_model(vector)
    _add_pairs(vector)
    cli_vectors.add_vector(vector)
    steer = command("steer", cli_vectors.steer, "answer a prompt with and without steering")
    _add_model(steer)
    cli_vectors.add_steering(steer)
    calibrate = command(
        "calibrate", cli_calibrate.calibrate, "find the strength for a KL budget or an instruction"
    )
    _add_model(calibrate)
    cli_calibrate.add_calibrate(calibrate)
    convert = command("convert", cli_vectors.convert, "write a vector in another tool's format")
    cli_vectors.add_convert(convert)
    transfer = command("transfer", cli_vectors.transfer, "carry a vector to another model")
    _add_model(transfer)
    _add_pairs(transfer)
    cli_vectors.add_transfer(transfer)
    search = command("search", cli_runs.search, "choose where and how hard to steer, by behaviour")
    _add_model(search, dtype="auto", chat_format=False)
    cli_runs.add_search(search)
    evaluate = command("evaluate", cli_runs.evaluate, "does the model follow its instructions?")
    _add_model(evaluate, dtype="auto", chat_format=False)
    cli_runs.add_evaluate(evaluate)
    report = command("report", _report, "write a layer-selection report (HTML and JSON)")
    _add_model(report, dtype="auto", chat_format=False)
    _add_report(report)
    return parser


def _add_model(
    parser: argparse.ArgumentParser, dtype: str = "float32", chat_format: bool = True
) -> None:
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help="a name of `steerlens models`, a hub id, a folder, or a .gguf file",
    )
    parser.add_argument("--dtype", default=dtype, help="float32, bfloat16, float16 or auto")
    parser.add_argument("--device", help="cpu, cuda, mps; the best one by default")
    add_placement(parser)
    if not chat_format:
        return
    parser.add_argument(
        "--chat-format",
        default="auto",
        choices=("auto", "template", "plain"),
        help="how prompts are rendered",
    )


def _add_pairs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--instruction", action="append", default=[], metavar="ID", help="repeats")
    parser.add_argument("--all", action="store_true", help="every instruction of the catalogue")
    parser.add_argument("--pairs", type=Path, metavar="FILE", help="contrast pairs (JSONL or CSV)")
    parser.add_argument(
        "--n",
        type=int,
        help=f"contrast pairs of each instruction (default: {DEFAULT_PAIRS}); not with --pairs",
    )
    parser.add_argument("--seed", type=int, help="of everything drawn (default: 0)")
    parser.add_argument(
        "--position",
        default="last_prompt",
        help="last_prompt, response_mean, last_response or a token index",
    )
    parser.add_argument("--batch-size", type=positive, default=16)


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--instruction", action="append", default=[], metavar="ID", help="repeats")
    parser.add_argument("--all", action="store_true", help="every instruction of the catalogue")
    parser.add_argument("--out", type=local_path, required=True, help="folder to write")
    parser.add_argument("--n", type=int, default=64, help="contrast pairs an instruction")
    parser.add_argument("--samples", type=int, help="prompts shown an instruction")
    parser.add_argument("--max-new-tokens", type=positive, default=96)
    parser.add_argument("--evidence", help=f"shown side by side; {EVIDENCE_HELP}")
    parser.add_argument("--plan", type=Path, help="steer the samples as this folder's plan says")
    parser.add_argument("--seed", type=int, default=0)


def _models(arguments: argparse.Namespace) -> None:
    from steerlens.models.loading import available_models

    listings = available_models()
    if arguments.json:
        print_json([vars(one) for one in listings])
        return
    for one in listings:
        state = "ready" if one.installed else "not installed"
        print(f"{one.name:32} {one.kind:10} {state:14} {one.how}")


def _instructions(arguments: argparse.Namespace) -> None:
    from steerlens.tasks import catalogue

    tasks = list(catalogue.values())
    if arguments.json:
        print_json(
            [
                {
                    "id": task.id,
                    "ifeval_id": task.ifeval_id,
                    "group": task.group,
                    "description": task.description,
                    "phrasings": list(task.phrasings),
                    "has_rewrite": task.has_rewrite,
                }
                for task in tasks
            ]
        )
        return
    for task in tasks:
        print(f"{task.id:48} {task.group:8} {task.description}")


def _report(arguments: argparse.Namespace) -> None:
    from steerlens.files import check_writable
    from steerlens.reports import ReportSettings, report

    settings = ReportSettings(
        n_pairs=arguments.n,
        n_samples=arguments.samples,
        max_new_tokens=arguments.max_new_tokens,
        seed=arguments.seed,
        evidence=evidence_kinds(arguments.evidence) if arguments.evidence else (),
    )
    names = instruction_ids(arguments)
    check_writable(arguments.out / "report.html")
    plan = None
    if arguments.plan is not None:
        from steerlens.behaviour.plans.plan import Plan

        plan = Plan.load(arguments.plan)
    result = report(
        load(arguments), names, arguments.out, plan, settings, command=arguments.command
    )
    if not arguments.json:
        print(f"report written to {result.page}")
        return
    print_json(
        {
            "report": str(result.page),
            "data": str(result.page.with_name("report.json")),
            "instructions": [
                {"id": row.task, "best_layer": row.best_layer, "steered_layer": row.steered_layer}
                for row in result.table.itertuples()
            ],
            "seconds": result.data["provenance"]["seconds"],
        }
    )


if __name__ == "__main__":
    sys.exit(main())
