"""`search`: plans for several tasks, in a run folder that can be resumed."""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from steerlens.behaviour.answers import answering
from steerlens.behaviour.judge import Judge, load_judge
from steerlens.behaviour.plans.fitting import VectorBook
from steerlens.behaviour.plans.plan import PLAN_FILE, PLAN_SCHEMA, Plan, vector_file
from steerlens.behaviour.search.halving import SearchedTask, search_task
from steerlens.behaviour.search.settings import SearchSettings
from steerlens.behaviour.unchecked import check_measurable
from steerlens.errors import SteerlensError
from steerlens.models.identity import model_identity
from steerlens.runs.executors import Workers, check_workers
from steerlens.tasks import Task
from steerlens.tasks.notices import warn_of_task
from steerlens.tasks.task_files import unique_tasks

__all__ = ["search"]


def search(
    model: TransformerBridge,
    tasks: Sequence[str | Task],
    out: str | Path,
    settings: SearchSettings | None = None,
    resume: bool = False,
    show_progress: bool | None = None,
    workers: Workers | None = None,
) -> Plan:
    """Choose estimator, layer, operation, strength and scope for each task by behaviour.

    Behaviour is the rate of answers that pass the task's check; without one, causal recovery, and
    for choices the change of their log odds. The plan says which (``measure``).

    Args:
        model: A hooked model.
        tasks: Tasks, their ids in the catalogue, or their files.
        out: A new or empty folder, or a run of the same search with `resume`. Gets ``plan.json``,
            the vectors, and what a killed search goes on from.
        settings: How much to try.
        resume: Continue the run in the folder.
        show_progress: Show progress bars on standard error; by default only in a terminal.
        workers: Compute answers in Ray workers instead of here, several tasks at a time; the files
            are the same.

    Raises:
        UnknownNameError: An id that the catalogue does not have.
        ModelError: The judge is not installed.
        SteerlensError: No task, a task that nothing can be measured on, a folder that cannot be
            used (`steerlens.runs`), or, with workers,
            a task that could not be searched; the others are searched first.
    """
    settings = settings or SearchSettings()
    check_workers(workers)
    if not tasks:
        raise SteerlensError("no instruction was given; name at least one, or take the catalogue")
    by_id = unique_tasks(tasks)
    for task in by_id.values():
        warn_of_task(task)
        check_measurable(task)
    judge = load_judge(settings.judge) if settings.judge else None
    # Lists, as the file will have them.
    recorded = json.loads(json.dumps(asdict(settings)))
    described = {
        "model": model_identity(model).settings,
        "instructions": {name: task.hash for name, task in by_id.items()},
        "search": recorded,
    }
    with answering(
        model, out, "search", described, settings, resume, show_progress, workers, judge
    ) as (run, answerer):
        book = VectorBook(answerer, settings.recipe)
        records: dict[str, Any] = {}
        vectors = {}
        # While some wait for the driver, or for the last piece of a stage, others have pieces.
        n_threads = 2 * workers.workers if workers else 1
        searched = _searched(book, list(by_id.values()), settings, judge, n_threads)
        disable = None if show_progress is None else not show_progress
        for task, result in tqdm(
            searched, "search", len(by_id), unit="instruction", disable=disable
        ):
            if not records:
                # A plan that stands here names vectors that are written again from now on.
                run.retract(PLAN_FILE)
            records[task.id] = {**result.record, "task_hash": task.hash}
            for estimator, vector in result.vectors.items():
                run.write_file(vector_file(task.id, estimator), vector.save)
                vectors[task.id, estimator] = vector
        data = {
            "schema": PLAN_SCHEMA,
            "model": described["model"],
            "recipe": recorded["recipe"],
            "settings": recorded,
            "instructions": records,
        }
        run.write_json(PLAN_FILE, data)
        run.conclude()
    return Plan(data, vectors)


def _searched(
    book: VectorBook,
    tasks: Sequence[Task],
    settings: SearchSettings,
    judge: Judge | None,
    n_threads: int,
) -> Iterator[tuple[Task, SearchedTask]]:
    """The result for each task, in order; several are searched at once if there are workers.

    The stages of one task wait for each other and are often a single piece, so several tasks at
    once keep workers busy; this process's model is still used by one at a time. A task that fails
    (workers had to set a piece of it aside) does not stop the others.

    Raises:
        SteerlensError: At the end, the first failure: "1 of 4 instructions could not be searched,
            the first is …"; of another kind where that was of another kind.
    """
    if n_threads == 1:
        for task in tasks:
            yield task, search_task(book, task, settings, judge)
        return
    threads = ThreadPoolExecutor(n_threads)
    failed: dict[str, Exception] = {}
    try:
        coming = [threads.submit(search_task, book, task, settings, judge) for task in tasks]
        for task, future in zip(tasks, coming, strict=True):
            try:
                result = future.result()
            except Exception as error:
                failed[task.id] = error
            else:
                yield task, result
    finally:
        # After an interrupt: what has not begun is dropped, what waits for workers ends with them.
        threads.shutdown(wait=False, cancel_futures=True)
    if failed:
        name, why = next(iter(failed.items()))
        if not isinstance(why, SteerlensError):
            raise why
        raise SteerlensError(
            f"{len(failed)} of {len(tasks)} instructions could not be searched, the first is "
            f"{name}: {why}"
        ) from why
