r"""lm-eval's tasks, unsteered, steered, and under a placebo.

A task is a name that lm-eval knows, or a YAML file of one's own. Nothing is downloaded for a file
whose data are on this machine (``dataset_path: json``). lm-eval computes the metrics. Intervals are
this package's (`steerlens.stats`): Wilson's for a share of documents, Student's for another mean
over them, and for the change from the unsteered model, which is over the same documents, Newcombe's
or Student's. A metric that is no mean over documents (perplexities, F1 of a whole task) has a value
and a change, but no interval.

    from steerlens.harness import run_tasks
    run_tasks(model, ["arc_easy", "my-task.yaml"], vector.at(22, strength=2.0), limit=100).table
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from steerlens.behaviour.side_effects import random_push
from steerlens.errors import SteeringError, SteerlensError, unknown_name
from steerlens.harness.saved import require_lm_eval
from steerlens.models.adapter.lm_eval import task_file
from steerlens.models.loading import model_info
from steerlens.stats.queries import mean_interval
from steerlens.stats.rates import Interval, paired_difference, wilson
from steerlens.steering.interventions import Steering
from steerlens.views.result import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["HarnessRun", "run_tasks"]

UNSTEERED, STEERED, PLACEBO = "unsteered", "steered", "placebo"
_FEWSHOT_SEED = 1234  # lm-eval's own


@dataclass(frozen=True, eq=False, repr=False)
class HarnessRun(Result):
    """Result of `run_tasks`.

    Attributes:
        table: One row per task, metric, filter and condition: `task`, `metric`, `filter`,
            `condition`, `n` documents, `value` with `low` and `high`, and `change` from the
            unsteered model with `change_low` and `change_high`; NaN where there is none.
        results: lm-eval's own results, by condition.
        settings: What is needed to do it again.
    """

    table: pd.DataFrame
    results: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Any]

    def plot(self) -> "go.Figure":
        """Each metric that is a share, by condition."""
        from steerlens.views import condition_rates

        table = self.table[self.table["low"].notna()]
        rows: list[dict[str, Any]] = [
            {"instruction": f"{row['task']} {row['metric']}", "rate": row["value"]}
            | {str(name): value for name, value in row.items()}
            for row in table.to_dict("records")
        ]
        return condition_rates(rows, quantity="value", is_share=bool((table["high"] <= 1).all()))

    def _card(self) -> Mapping[str, Any]:
        columns = ["task", "metric", "condition", "value", "change"]
        return {"table": self.table[columns], "largest": "change"}

    def __repr__(self) -> str:
        tasks = self.table["task"].nunique()
        return f"HarnessRun({tasks} task{'s' if tasks > 1 else ''}, {self.settings['steering']})"


def run_tasks(
    model: TransformerBridge,
    tasks: Sequence[str | Path],
    steering: Steering | None = None,
    *,
    placebo: bool = True,
    limit: int | None = None,
    num_fewshot: int | None = None,
    apply_chat_template: bool = False,
    include_path: str | Path | None = None,
    batch_size: int | None = None,
    seed: int = 0,
) -> HarnessRun:
    """Run lm-eval's tasks without steering, with it, and with its placebo.

    Args:
        model: A hooked model.
        tasks: Names of lm-eval's tasks, groups or tags, or task files.
        steering: What is compared with the unsteered model; ``None`` runs that alone.
        placebo: Run the same push in a random direction as well.
        limit: Documents per task; all by default.
        num_fewshot: Examples before each document; as the task says by default.
        apply_chat_template: Render contexts as conversations.
        include_path: A folder of further task files, which may then be named.
        batch_size: Most rows per forward pass; by default as many as memory allows.
        seed: Draws the placebo, and answers that are drawn.

    Raises:
        SteerlensError: lm-eval is not installed, no task, a task or metric that lm-eval does not
            have, or a task whose data cannot be loaded.
        SteeringError: A steering that does not fit the model.
    """
    require_lm_eval()
    names = [tasks] if isinstance(tasks, str | Path) else list(tasks)
    if not names:
        raise SteerlensError("no task was given; name at least one of lm-eval's, or a YAML file")
    if steering is not None and not isinstance(steering, Steering):
        raise SteeringError(
            f"steering must be a Steering; got {type(steering).__name__}; a vector becomes one "
            "with vector.at(layer=…)"
        )
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    from steerlens.harness.language_model import SteeredLM

    files = [str(name) for name in names if Path(name).suffix in (".yaml", ".yml")]
    for file in files:
        _check_file(Path(file))
    conditions: dict[str, Steering | None] = {UNSTEERED: None}
    if steering is not None:
        conditions[STEERED] = steering
        if placebo:
            conditions[PLACEBO] = random_push(steering, seed)
    # Steerings that do not fit are refused before the first of them runs.
    models = {
        name: SteeredLM(model, each, batch_size=batch_size, seed=seed)
        for name, each in conditions.items()
    }
    # The index of lm-eval's own thousands of tasks takes seconds.
    include = None if include_path is None else str(include_path)
    is_own = len(files) == len(names)
    manager = TaskManager(include_path=include, include_defaults=not is_own)
    results = {}
    for name, lm in models.items():
        # Loaded anew, so that every condition draws the same examples.
        loaded = _loaded(manager, [str(each) for each in names], num_fewshot)
        results[name] = evaluator.evaluate(
            lm=lm,
            task_dict=loaded,
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=apply_chat_template,
            fewshot_as_multiturn=apply_chat_template,
        )
    settings = {
        "model": model_info(model).reference,
        "weights_hash": model_info(model).weights_hash,
        "steering": "unsteered" if steering is None else repr(steering),
        "tasks": [str(name) for name in names],
        "limit": limit,
        "num_fewshot": num_fewshot,
        "apply_chat_template": apply_chat_template,
        "seed": seed,
    }
    return HarnessRun(pd.DataFrame(_rows(results)), results, settings)


def _check_file(path: Path) -> None:
    """Refuse a task file that cannot be read, or whose metric lm-eval does not have."""
    from lm_eval.api import metrics  # noqa: F401  (fills the registry)
    from lm_eval.api.registry import METRIC_REGISTRY

    if not path.is_file():
        raise SteerlensError(f"there is no task file {path}")
    try:
        config = task_file(path)
    except SteerlensError:
        raise
    except Exception as error:  # YAML's errors, and lm-eval's about what is included
        raise SteerlensError(f"{path} cannot be read as a task of lm-eval: {error}") from error
    if not ({"task", "group"} & set(config)):
        raise SteerlensError(f"{path} is no task of lm-eval: it has no name under 'task'")
    # A task with a function of its own for results names its metrics itself.
    listed = [] if "process_results" in config else config.get("metric_list") or []
    for entry in listed:
        name = entry.get("metric") if isinstance(entry, Mapping) else None
        if not isinstance(name, str):
            raise SteerlensError(f"an entry of metric_list in {path} has no 'metric': {entry!r}")
        # lm-eval would look for an unknown one on the network. A function is a path with a dot.
        if name not in METRIC_REGISTRY and not entry.get("hf_evaluate") and "/" not in name:
            raise unknown_name(f"metric in {path}", name, sorted(METRIC_REGISTRY))


def _loaded(manager: Any, names: Sequence[str], num_fewshot: int | None) -> Any:
    """Tasks as lm-eval takes them, with the number of examples, as its own command sets it."""
    try:
        loaded = manager.load(list(names))
    except KeyError as error:
        raise SteerlensError(
            f"lm-eval knows no task by one of these names: {', '.join(names)} ({error.args[0]}); "
            "list them with 'lm-eval ls tasks', or give a YAML file"
        ) from error
    except Exception as error:  # whatever reading a data set raises
        raise SteerlensError(
            f"lm-eval cannot load {', '.join(names)}: {type(error).__name__}: {error}"
        ) from error
    for task in loaded["tasks"].values():
        current = task.get_config("num_fewshot")
        if num_fewshot is None or current == 0:
            task.set_config(key="num_fewshot", value=current or 0)
        else:
            task.set_config(key="num_fewshot", value=num_fewshot)
        task.set_fewshot_seed(seed=_FEWSHOT_SEED)
    return loaded


def _rows(results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each task, metric, filter and condition."""
    rows = []
    for task, record in results[UNSTEERED]["results"].items():
        for key, before in record.items():
            if "," not in key or "_stderr" in key or not isinstance(before, int | float):
                continue
            metric, kind = key.split(",", 1)
            bare, n = _by_document(results[UNSTEERED], task, metric, kind)
            for condition, result in results.items():
                value = float(result["results"][task][key])
                scores, _ = _by_document(result, task, metric, kind)
                rows.append(
                    {
                        "task": task,
                        "metric": metric,
                        "filter": kind,
                        "condition": condition,
                        "n": n,
                        "value": value,
                        **_ends("", _interval(scores, value)),
                        "change": value - float(before),
                        **_ends("change_", _change(scores, bare, value - float(before))),
                    }
                )
    return rows


def _by_document(
    result: Mapping[str, Any], task: str, metric: str, kind: str
) -> tuple[np.ndarray | None, int]:
    """A metric of each document, ``None`` where it is no number, and how many there are."""
    samples = [each for each in result.get("samples", {}).get(task, ()) if each["filter"] == kind]
    samples.sort(key=lambda sample: int(sample["doc_id"]))
    scores = [sample.get(metric) for sample in samples]
    is_number = scores and all(isinstance(score, int | float) for score in scores)
    return (np.array(scores, dtype=float) if is_number else None), len(scores)


def _interval(scores: np.ndarray | None, value: float) -> Interval | None:
    """Of a mean over documents; ``None`` where `value` is not that."""
    if scores is None or len(scores) < 2 or not math.isclose(scores.mean(), value, abs_tol=1e-9):
        return None
    if _is_share(scores):
        return wilson(int(scores.sum()), len(scores))
    return _mean(scores)


def _change(scores: np.ndarray | None, before: np.ndarray | None, change: float) -> Interval | None:
    """Of a mean over documents' differences."""
    if scores is None or before is None or len(scores) != len(before) or len(scores) < 2:
        return None
    differences = scores - before
    if not math.isclose(differences.mean(), change, abs_tol=1e-9):
        return None
    if _is_share(scores) and _is_share(before):
        return paired_difference(scores > 0, before > 0)
    return _mean(differences)


def _is_share(scores: np.ndarray) -> bool:
    return set(scores) <= {0.0, 1.0}


def _mean(values: np.ndarray) -> Interval:
    centre, low, high = mean_interval(values[:, None], range(len(values)))
    return Interval(float(centre[0]), float(low[0]), float(high[0]))


def _ends(prefix: str, interval: Interval | None) -> dict[str, float]:
    if interval is None:
        return {f"{prefix}low": math.nan, f"{prefix}high": math.nan}
    return {f"{prefix}low": interval.low, f"{prefix}high": interval.high}
