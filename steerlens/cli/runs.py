"""The commands that take long and fill a folder: `search`, `evaluate` and `report`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from steerlens.cli.decoding import DecodingOptions
from steerlens.cli.options import OwnTaskOptions, RunModelOptions, RunOptions
from steerlens.cli.values import (
    Evidence,
    Json,
    Seed,
    count,
    evidence_kinds,
    local_path,
    option,
    print_json,
    refuse_unused,
)
from steerlens.errors import SteerlensError

if TYPE_CHECKING:
    from steerlens.tasks import Task

__all__ = ["evaluate", "report", "search"]

_N_PROMPTS = 16


def search(
    model: RunModelOptions,
    tasks: OwnTaskOptions,
    run: RunOptions,
    decoding: DecodingOptions,
    *,
    quick: Annotated[
        bool, option("fewer prompts, shorter answers, for a first look", "--quick")
    ] = False,
    estimators: Annotated[
        str | None,
        option(
            "comma-separated estimators to try; by default all but prompt_neutral, prompt_others "
            "and prompt_own"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Choose where and how hard to steer, by behaviour."""
    names = tasks.tasks()
    from steerlens.behaviour.plans.plan import CONTEXTS
    from steerlens.behaviour.search import SearchSettings
    from steerlens.behaviour.search import search as run_search

    make = SearchSettings.quick if quick else SearchSettings
    settings = make(**run.settings(), **decoding.settings(run.seed))
    if estimators is not None:
        tried = tuple(name.strip() for name in estimators.split(","))
        settings = replace(settings, recipe=replace(settings.recipe, estimators=tried))
    workers = run.worker_settings()
    plan = run_search(model.load(), names, run.out, settings, resume=run.resume, workers=workers)
    if as_json:
        # The tables of what was tried are in the file.
        records = {
            name: {key: value for key, value in record.items() if key != "table"}
            for name, record in plan.data["instructions"].items()
        }
        print_json({"plan": str(run.out / "plan.json"), **plan.data, "instructions": records})
        return
    for name in plan.instructions:
        for context in CONTEXTS if plan.measure(name) == "rate" else CONTEXTS[:1]:
            print(f"{name} ({context}): {plan.described(name, context)}")
    print(f"decoding: {plan.decoding.describe()}")
    print(f"plan written to {run.out / 'plan.json'}")


def evaluate(
    model: RunModelOptions,
    tasks: OwnTaskOptions,
    run: RunOptions,
    decoding: DecodingOptions,
    *,
    data: Annotated[Path | None, option("IFEval-shaped prompts (JSONL)", metavar="FILE")] = None,
    n: Annotated[int | None, option("prompts per task, of the report split (default: 16)")] = None,
    plan: Annotated[Path | None, local_path("folder that `steerlens search` wrote")] = None,
    max_new_tokens: Annotated[int, count("longest response")] = 256,
    skip_unknown: Annotated[
        bool, option("leave out rows that cannot be handled", "--skip-unknown")
    ] = False,
    as_json: Json = False,
) -> None:
    """Count how often the model follows its instructions, with and without steering."""
    if (data is not None) == tasks.names_tasks:
        raise SteerlensError(
            "give either --data FILE or --task ID (its prompts of the report split)"
        )
    if data is not None:
        reason = (
            "is how many prompts of each --task are drawn, and all rows of --data FILE are answered"
        )
        refuse_unused({"--n": n}, reason)
    from steerlens.behaviour.evaluation import read_prompts
    from steerlens.behaviour.evaluation.run import EvaluationSettings, described_rates
    from steerlens.behaviour.evaluation.run import evaluate as run_evaluation
    from steerlens.behaviour.plans.plan import Plan
    from steerlens.files import write_text
    from steerlens.reports.evaluation import render_evaluation

    prompts: Any = (
        read_prompts(data, skip_unknown=skip_unknown)
        if data is not None
        else _prompts(tasks.tasks(), n, run.seed)
    )
    chosen = Plan.load(plan) if plan else None
    settings = EvaluationSettings(
        max_new_tokens=max_new_tokens,
        skip_unknown=skip_unknown,
        **run.settings(),
        **decoding.settings(run.seed),
    )
    workers = run.worker_settings()
    result = run_evaluation(
        model.load(), prompts, run.out, chosen, settings, resume=run.resume, workers=workers
    )
    page = write_text(
        run.out / "evaluation.html", render_evaluation(result.summary, result.responses)
    )
    if as_json:
        print_json(result.summary)
        return
    print(f"decoding: {result.summary['decoding']}")
    for name, record in result.summary["conditions"].items():
        rates = record["all"]
        degenerate = f"degenerate {rates['degenerate']['rate']:.1%}"
        print(f"{name:24} {described_rates(rates)} of {rates['n']}; {degenerate}")
    print(f"responses and summary written to {run.out}, the page to {page}")


def report(
    model: RunModelOptions,
    tasks: OwnTaskOptions,
    *,
    command_line: str,
    out: Annotated[Path, local_path("folder to write")],
    n: Annotated[int | None, option("contrast pairs per task (default: 64)")] = None,
    samples: Annotated[int | None, option("prompts shown per task")] = None,
    max_new_tokens: Annotated[int, count("longest response")] = 96,
    evidence: Annotated[str | None, Evidence] = None,
    plan: Annotated[
        Path | None, local_path("show what this folder's search tried, and steer as its plan says")
    ] = None,
    searched: Annotated[
        bool, option("make the plan first, by a quick search in OUT/search", "--search")
    ] = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Write a report: evidence about layers, settings searched, and effects on every token."""
    from steerlens.behaviour.plans.plan import Plan
    from steerlens.behaviour.search import SearchSettings
    from steerlens.files import check_writable
    from steerlens.reports import ReportSettings
    from steerlens.reports import report as write_report

    settings = ReportSettings(
        n_pairs=n,
        n_samples=samples,
        max_new_tokens=max_new_tokens,
        seed=seed,
        evidence=evidence_kinds(evidence) if evidence else (),
    )
    names = tasks.tasks()
    check_writable(out / "report.html")
    if plan is not None and searched:
        raise SteerlensError("give either --plan or --search, which makes one")
    chosen = Plan.load(plan) if plan else None
    quick = SearchSettings.quick(seed=seed) if searched else None
    result = write_report(
        model.load(), names, out, chosen, settings, command_line, search_settings=quick
    )
    if not as_json:
        print(f"report written to {result.page}")
        return
    rows = result.table[["task", "best_layer", "steered_layer"]].rename(columns={"task": "id"})
    print_json(
        {
            "report": str(result.page),
            "data": str(result.page.with_name("report.json")),
            "instructions": rows.to_dict("records"),
            "seconds": result.data["provenance"]["seconds"],
        }
    )


def _prompts(tasks: "Sequence[Task]", n: int | None, seed: int) -> list[Any]:
    """Prompts of each task's report split: as many as asked for, else 16 or all."""
    from steerlens.behaviour.evaluation import catalogue_prompts

    prompts: list[Any] = []
    for task in tasks:
        size = max(1, min(_N_PROMPTS, task.n_pairs("report"))) if n is None else n
        prompts += catalogue_prompts([task], size, seed=seed)
    return prompts
