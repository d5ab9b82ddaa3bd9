"""`search`: plans for several instructions, in a run folder that can be resumed."""

from collections.abc import Sequence
from pathlib import Path

from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from steerlens.answers import Answerer
from steerlens.errors import SteerlensError
from steerlens.evaluation.judge import Judge, load_judge
from steerlens.instructions import catalogue
from steerlens.models import model_info
from steerlens.plans.fitting import VectorBook
from steerlens.plans.plan import PLAN_FILE, PLAN_SCHEMA, Plan, vector_file
from steerlens.runs import Run
from steerlens.search.halving import search_instruction
from steerlens.search.settings import SearchSettings

__all__ = ["search"]


def search(
    model: TransformerBridge,
    instructions: Sequence[str],
    folder: str | Path,
    settings: SearchSettings | None = None,
    resume: bool = False,
    progress: bool | None = None,
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

    Raises:
        UnknownNameError: An id that the catalogue does not have.
        ModelError: The judge is not installed.
        SteerlensError: No instruction, or a folder that cannot be used (`steerlens.runs`).
    """
    settings = settings or SearchSettings()
    if not instructions:
        raise SteerlensError("no instruction was given; name at least one, or take the catalogue")
    tasks = [catalogue[name] for name in dict.fromkeys(instructions)]
    judge: Judge | None = load_judge(settings.judge) if settings.judge else None
    info = model_info(model)
    record = {
        "reference": info.reference,
        "weights_hash": info.weights_hash,
        "dtype": info.precision,
    }
    described = {
        "model": record,
        "instructions": [task.id for task in tasks],
        "search": settings.to_json(),
    }
    with Run.open(folder, kind="search", settings=described, resume=resume) as run:
        answerer = Answerer(model, run, settings.batch_size, progress=progress is not False)
        book = VectorBook(answerer, settings.recipe)
        plans = {}
        vectors = {}
        disable = None if progress is None else not progress
        for task in tqdm(tasks, desc="search", unit="instruction", disable=disable):
            found = search_instruction(book, task, settings, judge)
            plans[task.id] = found.record
            for estimator, vector in found.vectors.items():
                vector.save(run.path(vector_file(task.id, estimator)))
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
