"""The layer-selection report: where tasks can be steered, shown on prompts nobody tuned to.

For each task `report`

1. caches residuals of contrast pairs of the ``fit`` split, ranks layers by separability and takes
   the difference of means;
2. measures first-token causal recovery on pairs of the ``select`` split, beside a placebo;
3. with a plan, or after a search for one, shows the settings that were tried and what they did;
4. steers at the layer with the highest recovery, or as the plan says, on prompts of the ``report``
   split that neither the vector nor the choice of layer has seen, and records per-token effects
   beside the placebo's.

For tasks of choices the slope of their log odds takes the place of recovery.

The result is plain data (``docs/report-format.md``) and the page drawn from it.

Caveat: without a plan the layer is chosen by its effect on the first response token. That is cheap
and predicts steering better than separability does, but it misses tasks that show late in a
response.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from steerlens.behaviour.plans.plan import CONTEXTS, Plan
from steerlens.behaviour.search import SearchSettings, search
from steerlens.behaviour.unchecked import measure_of
from steerlens.errors import SteerlensError
from steerlens.errors.progress import shown
from steerlens.files import REPORT_SCHEMA, check_writable, library_versions, without_nan, write_text
from steerlens.models.loading import model_info
from steerlens.reports.measuring import MeasuredTask, check_sizes, measure_task
from steerlens.reports.page import render_report
from steerlens.reports.samples import answer_samples
from steerlens.reports.settings import ReportSettings
from steerlens.tasks import Task
from steerlens.tasks.notices import warn_of_task
from steerlens.tasks.task_files import unique_tasks
from steerlens.vectors import SteeringVector
from steerlens.views import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Report", "report"]


@dataclass(frozen=True, eq=False, repr=False)
class Report(Result):
    """Result of `report`.

    Attributes:
        data: Plain data without NaN, as in ``report.json``.
        vectors: The difference of means of each task, by id.
        page: The HTML page that was written.
    """

    data: Mapping[str, Any]
    vectors: Mapping[str, SteeringVector]
    page: Path

    @property
    def table(self) -> pd.DataFrame:
        """One row per task: its best layer by separability, and the recovery where it was steered.

        ``recovery``, ``placebo`` and their intervals are NaN where the steered layer was not
        measured.
        """
        rows = []
        for task in self.data["instructions"]:
            steered = task["steering"]["layer"]
            best = next(row for row in task["layers"] if row["layer"] == task["best_layer"])
            causal = {row["layer"]: row for row in task["recovery"]}.get(steered, {})
            rows.append(
                {
                    "task": task["id"],
                    "best_layer": task["best_layer"],
                    **{name: best[name] for name in ("auroc", "auroc_low", "auroc_high")},
                    "steered_layer": steered,
                    **{name: causal.get(name) for name in ("recovery", "low", "high", "placebo")},
                }
            )
        return pd.DataFrame(rows)

    def plot(self) -> "go.Figure":
        """Recovery over tasks and layers; the layers steered are marked."""
        from steerlens.views import instruction_layer_heatmap

        tasks = self.data["instructions"]
        rows = [{"instruction": task["id"], **row} for task in tasks for row in task["recovery"]]
        steered = {task["id"]: task["steering"]["layer"] for task in tasks}
        return instruction_layer_heatmap(
            rows, "recovery", marked=steered, marked_label="layer steered"
        )

    def __repr__(self) -> str:
        n_tasks = len(self.data["instructions"])
        tasks = f"{n_tasks} task{'' if n_tasks == 1 else 's'}"
        return f"Report({self.data['model']['reference']}, {tasks}, {self.page})"


def report(
    model: TransformerBridge,
    tasks: Sequence[str | Task] | str | Task,
    out: str | Path,
    plan: Plan | None = None,
    settings: ReportSettings | None = None,
    command: str = "",
    show_progress: bool | None = None,
    search_settings: SearchSettings | None = None,
) -> Report:
    """Measure where tasks can be steered, and write ``report.html``, ``report.json`` and vectors.

    Args:
        model: A hooked model.
        tasks: Tasks, or their ids in the catalogue.
        out: Folder to write.
        plan: Steer the samples as this plan (of `search`) says for uninstructed prompts. By default
            they are steered at the layer with the highest first-token recovery.
        settings: Sizes and operation; see `ReportSettings`.
        command: The command that makes the report again, for its provenance.
        show_progress: Show progress bars on standard error; by default only in a terminal.
        search_settings: Make the plan first, by a search of this size in ``out/search``, which is
            resumed if it was stopped.

    Raises:
        UnknownNameError: An id that the catalogue, or the plan, does not have.
        SteerlensError: No task, a plan and a search, more pairs than a task has, fewer than 2, a
            plan made for another
            model, or a folder that cannot be written.
    """
    settings = settings or ReportSettings()
    checked = _checked_tasks(tasks, settings)
    if plan is not None and search_settings is not None:
        raise SteerlensError("give either a plan or the settings of a search for one, not both")
    if plan is not None:
        plan.check_model(model)
        for task in checked:
            plan.candidate(task.id)
            plan.check_task(task)
    out = Path(out)
    check_writable(out / "report.html")
    show, started = shown(show_progress), time.monotonic()
    seconds: dict[str, float] = {}
    if search_settings is not None:
        plan = search(model, checked, out / "search", search_settings, True, show_progress)
        seconds["search"], started = time.monotonic() - started, time.monotonic()
    disable = not show
    bar = tqdm(checked, desc="layer attribution", unit="task", disable=disable)
    measured = [measure_task(model, task, settings) for task in bar]
    seconds["attribution"] = time.monotonic() - started
    started = time.monotonic()
    samples = answer_samples(model, [m.steered(settings) for m in measured], plan, settings, show)
    seconds["samples"] = time.monotonic() - started
    records = [
        _task_record(one, plan, shown_samples)
        for one, shown_samples in zip(measured, samples, strict=True)
    ]
    data = without_nan(
        {
            "schema": REPORT_SCHEMA,
            "model": _model_record(model),
            "provenance": {
                "command": command,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "seed": settings.seed,
                "n_pairs": max(m.ranking.n_pairs for m in measured),
                "position": "last_prompt",
                "versions": library_versions(),
                "data_hash": {m.task.id: m.cache.metadata["data_hash"] for m in measured},
                "settings": vars(settings),
                "seconds": {name: round(value, 1) for name, value in seconds.items()},
            },
            "instructions": records,
            "cosines": _cosines([m.vector for m in measured], records),
        }
    )
    vectors = {m.task.id: m.vector for m in measured}
    for name, vector in vectors.items():
        vector.save(out / "vectors" / f"{name.replace(':', '-')}.safetensors")
    write_text(out / "report.json", json.dumps(data))
    return Report(data, vectors, write_text(out / "report.html", render_report(data)))


def _checked_tasks(
    tasks: Sequence[str | Task] | str | Task, settings: ReportSettings
) -> list[Task]:
    listed = [tasks] if isinstance(tasks, str | Task) else tasks
    unique = list(unique_tasks(listed).values())
    if not unique:
        raise SteerlensError("no instruction was given; name at least one, or take the catalogue")
    for task in unique:
        warn_of_task(task)
        check_sizes(task, settings)
    return unique


def _task_record(
    measured: MeasuredTask, plan: Plan | None, samples: Mapping[str, Any]
) -> dict[str, Any]:
    task, ranking, evidence = measured.task, measured.ranking, measured.evidence
    # The same for the whole report, and said there.
    shared = {"model", "instruction", "n_pairs", "position", "metadata"}
    return {
        "id": task.id,
        "group": task.group,
        "description": task.description,
        "n_pairs": ranking.n_pairs,
        "best_layer": ranking.best_layer,
        "best_layer_rule": ranking.rule,
        "best_layer_caveat": ranking.caveat,
        "layers": ranking.to_json()["layers"],
        "measure": measure_of(task),
        "recovery": measured.recovery.table.to_dict("records") if measured.recovery else [],
        "choices": measured.choices and measured.choices.to_json(),
        "search": plan and _search_record(plan, task.id),
        "evidence": evidence and {k: v for k, v in evidence.to_json().items() if k not in shared},
        **samples,
    }


def _search_record(plan: Plan, task_id: str) -> dict[str, Any]:
    """What a plan's search tried for one task, and what it chose."""
    record = plan.data["instructions"][task_id]
    measure = plan.measure(task_id)
    contexts = CONTEXTS if measure == "rate" else CONTEXTS[:1]
    return {
        "measure": measure,
        "choices": {name: plan.described(task_id, name) for name in contexts},
        "tried": record.get("table", []),
        "problems": record.get("problems", {}),
    }


def _cosines(
    vectors: Sequence[SteeringVector], records: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Cosines between directions at the layer most tasks are steered at."""
    layers = [record["steering"]["layer"] for record in records]
    layer = max(sorted(set(layers)), key=layers.count)
    directions = torch.stack([vector.directions[vector.layer_index(layer)] for vector in vectors])
    cosines = (directions @ directions.T).tolist()
    return {
        "layer": layer,
        "ids": [record["id"] for record in records],
        "matrix": [[round(value, 4) for value in row] for row in cosines],
    }


def _model_record(model: TransformerBridge) -> dict[str, Any]:
    info = model_info(model)
    fields = ("reference", "n_layers", "d_model", "weights_hash", "dtype", "device", "chat_format")
    return {name: getattr(info, name) for name in fields}
