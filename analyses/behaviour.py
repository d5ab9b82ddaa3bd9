"""What the notebooks about behaviour share: where runs are kept, sizes, and the table of verdicts.

A run is kept in a folder (``STEERLENS_RUNS``, by default ``runs``) and resumed when it is there, so
that a notebook executed again reads what the first time computed. ``STEERLENS_SMALL=1`` shrinks
everything to a check that the notebook runs; its numbers then mean nothing. Files with further
prompts are used where ``STEERLENS_DATA`` names their folder.

The whole catalogue may be searched once for all of them, in about an hour
(``steerlens search --all --out runs/full/plans/catalogue``); otherwise each searches what it needs.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

import steerlens as sl
from steerlens.behaviour.evaluation import (
    EvaluationPrompt,
    PromptFile,
    catalogue_prompts,
    read_prompts,
)
from steerlens.behaviour.evaluation.run import Evaluation, EvaluationSettings, evaluate
from steerlens.behaviour.judge import DEFAULT_JUDGE
from steerlens.behaviour.plans import FitRecipe, Plan
from steerlens.behaviour.plans.plan import PLAN_FILE
from steerlens.behaviour.search import SearchSettings, Stage, search
from steerlens.models.loading import available_models
from steerlens.stats.rates import Interval
from steerlens.tasks import Task, catalogue
from steerlens.tasks.task_files import unique_tasks
from steerlens.views import save

SMALL = os.environ.get("STEERLENS_SMALL") == "1"
MODEL = "smollm2-135m-instruct"
# Those of IFEval's single-format prompts that the catalogue has.
FORMAT = [
    "change_case:english_capital",
    "change_case:english_lowercase",
    "punctuation:no_comma",
    "detectable_format:title",
    "detectable_format:number_bullet_lists",
    "detectable_format:number_highlighted_sections",
    "detectable_format:multiple_sections",
    "detectable_format:json_format",
    "startend:quotation",
    "startend:end_checker",
    "detectable_format:constrained_response",
    "language:response_language_de",
]
if SMALL:
    FORMAT = FORMAT[3:4]
_RUNS = Path(os.environ.get("STEERLENS_RUNS", "runs")) / ("small" if SMALL else "full")


def judge() -> str | None:
    """The usual judge where it is installed."""
    ready = any(one.name == DEFAULT_JUDGE and one.installed for one in available_models())
    return DEFAULT_JUDGE if ready and not SMALL else None


def planned(model: Any, tasks: Sequence[Task | str], name: str) -> Plan:
    """Where and how hard to steer for each, searched on the ``select`` split, in a run `name`.

    A finished search of the whole catalogue is taken first, where all tasks are of the catalogue.
    """
    by_id = unique_tasks(tasks)
    whole = _RUNS / "plans" / "catalogue"
    of_catalogue = all(catalogue.get(name) == task for name, task in by_id.items())
    if of_catalogue and not SMALL and (whole / PLAN_FILE).exists():
        return _restricted(Plan.load(whole), list(by_id))
    sizes: dict[str, Any] = {}
    if SMALL:
        sizes = {
            "broad": Stage(1, 8, 2),
            "narrow": Stage(1, 8, 1),
            "final": Stage(2, 12, 1),
            "n_evidence": 2,
            "recipe": FitRecipe(4, 4, 4, response_tokens=8, ending_tokens=32, least_own=2),
        }
    folder = _RUNS / "plans" / name
    settings = SearchSettings(judge=judge(), **sizes)
    resume = _exists(folder)
    return search(model, list(by_id.values()), folder, settings, resume=resume)


def evaluated(
    model: Any,
    prompts: PromptFile | Sequence[EvaluationPrompt],
    name: str,
    plan: Plan | None,
    max_new_tokens: int = 256,
) -> Evaluation:
    """All conditions on these prompts, in a run called `name`."""
    folder = _RUNS / name
    settings = EvaluationSettings(
        max_new_tokens=12 if SMALL else max_new_tokens, judge=judge(), skip_unknown=True
    )
    resume = _exists(folder)
    return evaluate(model, prompts, folder, plan, settings, resume=resume)


def run_folder(name: str) -> Path:
    """Where a run of this name is kept."""
    return _RUNS / name


def report_prompts(tasks: Sequence[Task | str], n: int = 24) -> tuple[EvaluationPrompt, ...]:
    """Prompts of the tasks' ``report`` split: neither fitted nor chosen on."""
    return catalogue_prompts(tasks, 2 if SMALL else n)


def definition(task: Task) -> dict[str, str]:
    """What names an own task's definition in a run; the catalogue's are named by their id."""
    return {} if catalogue.get(task.id) == task else {"task": task.hash}


def given_prompts(file: str) -> PromptFile | None:
    """A public evaluation file, where the folder of them is known."""
    folder = os.environ.get("STEERLENS_DATA")
    if SMALL or not folder or not (Path(folder) / file).exists():
        return None
    return read_prompts(Path(folder) / file, skip_unknown=True)


def joined(*plans: Plan) -> Plan:
    """One plan of several that were searched on the same model."""
    instructions: dict[str, Any] = {}
    vectors: dict[tuple[str, str], sl.SteeringVector] = {}
    for plan in plans:
        instructions |= plan.data["instructions"]
        vectors |= plan.vectors
    return Plan({**plans[0].data, "instructions": instructions}, vectors)


def percent(rates: Mapping[str, float], value: str = "rate") -> str:
    """A share with its interval."""
    return f"{rates[value]:.0%} [{rates['low']:.0%}, {rates['high']:.0%}]"


def rate(interval: Interval) -> str:
    """An interval of `steerlens.stats.rates` in percent."""
    return f"{interval.value:.0%} [{interval.low:.0%}, {interval.high:.0%}]"


def difference(result: Evaluation, condition: str, minus: str) -> Mapping[str, Any]:
    """The record of one condition minus another."""
    return next(
        one
        for one in result.summary["differences"]
        if (one["condition"], one["minus"]) == (condition, minus)
    )


def claim(
    said: str, result: Evaluation, condition: str, minus: str, where: str
) -> tuple[str, str, str, str]:
    """A row of the table of verdicts: one condition minus another, in points."""
    one = difference(result, condition, minus)
    points = {key: 100 * one["loose"][key] for key in ("difference", "low", "high")}
    measured = (
        f"{condition} − {minus}: {points['difference']:+.0f} points "
        f"[{points['low']:+.0f}, {points['high']:+.0f}]"
    )
    model = result.summary["model"]["reference"]
    return said, measured, f"{model}, {where}, {one['n']} prompts", sign(one["loose"])


def sign(interval: Mapping[str, float]) -> str:
    """Shown when an interval lies above zero, refuted when below, open when it holds zero."""
    if interval["low"] > 0:
        return "shown"
    return "refuted" if interval["high"] < 0 else "open"


def verdicts(rows: Sequence[tuple[str, str, str, str]]) -> pd.DataFrame:
    """The plain table each notebook ends with."""
    table = pd.DataFrame(rows, columns=["paper's claim", "measured here", "on", "verdict"])
    return table.set_index("paper's claim")


def keep(figure: go.Figure, name: str) -> go.Figure:
    """Save a figure as an interactive page among the runs (not from a small one)."""
    if not SMALL:
        save(figure, _RUNS / f"{name}.html")
    return figure


def figure(drawn: go.Figure, name: str) -> go.Figure:
    """Save a picture that README and documentation show, and the same to hover over; show it.

    ``figures/name.svg`` is kept with the project; ``figures/name.html`` holds all of plotly, nearly
    five megabytes, and stays where it was made.
    """
    if not SMALL and os.environ.get("STEERLENS_FIGURES") == "1":
        for ending in ("svg", "html"):
            save(drawn, Path("figures") / f"{name}.{ending}")
    return drawn


def _exists(folder: Path) -> bool:
    return (folder / "manifest.json").exists()


def _restricted(plan: Plan, instructions: Sequence[str]) -> Plan:
    """The plan for these instructions alone."""
    found = {name: plan.data["instructions"][name] for name in instructions}
    vectors = {key: one for key, one in plan.vectors.items() if key[0] in found}
    return Plan({**plan.data, "instructions": found}, vectors)
