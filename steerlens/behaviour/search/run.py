"""`search`: plans for several instructions, in a run folder that can be resumed."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from steerlens.behaviour.answers import Answerer
from steerlens.behaviour.judge import Judge, load_judge
from steerlens.behaviour.plans.fitting import VectorBook
from steerlens.behaviour.plans.plan import PLAN_FILE, PLAN_SCHEMA, Plan, vector_file
from steerlens.behaviour.search.halving import Found, search_instruction
from steerlens.behaviour.search.settings import SearchSettings
from steerlens.engine.remembered import rendered_example
from steerlens.errors import SteerlensError
from steerlens.errors.progress import shown
from steerlens.models.identity import model_identity
from steerlens.runs import Run
from steerlens.runs.executors import Workers, check_workers, executor
from steerlens.tasks import Task, catalogue

__all__ = ["search"]


def search(
    model: TransformerBridge,
    instructions: Sequence[str],
    folder: str | Path,
    settings: SearchSettings | None = None,
    resume: bool = False,
    progress: bool | None = None,
    workers: Workers | None = None,
) -> Plan:
    """Choose estimator, layer, operation, strength and scope for each instruction by behaviour.

    Args:
        model: A hooked model.
        instructions: Ids of the catalogue.
        folder: New or empty, or a run of the same search with `resume`. Gets ``plan.json``, the
            vectors, and what a killed search goes on from.
        settings: How much to try.
        resume: Continue the run in the folder.
        progress: Show progress bars on standard error; by default only in a terminal.
        workers: Compute answers in Ray workers instead of here, several instructions at a time; the
            files are the same.

    Raises:
        UnknownNameError: An id that the catalogue does not have.
        ModelError: The judge is not installed.
        SteerlensError: No instruction, a folder that cannot be used (`steerlens.runs`), or, with
            workers, an instruction that could not be searched; the others are searched first.
    """
    settings = settings or SearchSettings()
    check_workers(workers)
    if not instructions:
        raise SteerlensError("no instruction was given; name at least one, or take the catalogue")
    tasks = [catalogue[name] for name in dict.fromkeys(instructions)]
    judge: Judge | None = load_judge(settings.judge) if settings.judge else None
    record = model_identity(model).settings
    described = {
        "model": record,
        "instructions": [task.id for task in tasks],
        "search": settings.to_json(),
    }
    with (
        Run.open(folder, kind="search", settings=described, resume=resume) as run,
        executor(model, workers, run, judge) as pool,
    ):
        answerer = Answerer(
            model, run, settings.batch_size, settings.piece_rows, shown(progress), pool
        )
        run.note(rendered_example(model))
        book = VectorBook(answerer, settings.recipe)
        plans: dict[str, Any] = {}
        vectors = {}
        disable = None if progress is None else not progress
        # While some wait for the driver, or for the last piece of a stage, others have pieces.
        together = 2 * workers.workers if workers else 1
        searched = _searched(book, tasks, settings, judge, together)
        for task, found in tqdm(
            searched, "search", len(tasks), unit="instruction", disable=disable
        ):
            if not plans:
                # A plan that stands here names vectors that are written again from now on.
                run.retract(PLAN_FILE)
            plans[task.id] = found.record
            for estimator, vector in found.vectors.items():
                run.write_file(vector_file(task.id, estimator), vector.save)
                vectors[task.id, estimator] = vector
        data = {
            "schema": PLAN_SCHEMA,
            "model": record,
            "recipe": settings.recipe.to_json(),
            "settings": settings.to_json(),
            "instructions": plans,
        }
        run.write_json(PLAN_FILE, data)
        run.conclude()
    return Plan(data, vectors)


def _search_one(
    book: VectorBook, task: Task, settings: SearchSettings, judge: Judge | None
) -> Found:
    """One instruction, by workers: what they lost is a failure, not an estimator to leave out."""
    try:
        return search_instruction(book, task, settings, judge)
    finally:
        book.answerer.check_answered()


def _searched(
    book: VectorBook,
    tasks: Sequence[Task],
    settings: SearchSettings,
    judge: Judge | None,
    together: int,
) -> Iterator[tuple[Task, Found]]:
    """What is found for each instruction, in their order; so many searched at a time.

    One instruction's stages wait for each other and are often a single piece, so several are
    searched at once to keep workers busy; this process's model is still used by one at a time. An
    instruction that fails (workers had to set a piece of it aside) does not stop the others, whose
    pieces are kept in the run.

    Raises:
        SteerlensError: At the end, the first failure: "1 of 4 instructions could not be searched,
            the first is …"; of another kind where that was of another kind.
    """
    if together == 1:
        for task in tasks:
            yield task, search_instruction(book, task, settings, judge)
        return
    threads = ThreadPoolExecutor(together)
    failed: dict[str, Exception] = {}
    try:
        coming = [threads.submit(_search_one, book, task, settings, judge) for task in tasks]
        for task, found in zip(tasks, coming, strict=True):
            if (error := found.exception()) is None:
                yield task, found.result()
            elif isinstance(error, Exception):
                failed[task.id] = error
            else:
                raise error
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
