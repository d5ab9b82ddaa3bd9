"""What can be steered by: a task, a file of a vector or a task, an instruction in your own words.

An instruction becomes a task of one phrasing, so all but a vector file have contrast pairs, which
the vector is fitted on and evidence about layers comes from.
"""

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformer_lens.model_bridge import TransformerBridge

from steerlens.activations.cache import POSITIONS, ResidualCache, cache_residuals
from steerlens.errors import SteerlensError
from steerlens.tasks import Task, catalogue
from steerlens.tasks.drawing import contrast_pairs
from steerlens.tasks.pairs import ContrastSet
from steerlens.tasks.task_files import load_task, unique_tasks
from steerlens.vectors import SteeringVector, difference_of_means
from steerlens.vectors.formats import load_vector

__all__ = ["OWN_WORDS", "Fitted", "Sources", "is_vector_file", "pairs_of", "passes", "read_at"]

OWN_WORDS = "own words"
_VECTOR_FILES = (".safetensors", ".gguf")
_TASK_FILES = (".yaml", ".yml", ".jsonl", ".csv")


@dataclass(frozen=True, eq=False)
class Fitted:
    """A source on the model.

    Attributes:
        vector: What is steered with.
        task: What it was fitted for; ``None`` for a vector file.
        residuals: What it was fitted on.
    """

    vector: SteeringVector
    task: Task | None = None
    residuals: ResidualCache | None = None


class Sources:
    """The tasks that may be picked, and the vectors fitted so far.

    Attributes:
        model: A hooked model.
        n_pairs: Contrast pairs a vector is fitted on.
        tasks: By id: your own, then the catalogue's.
        fitted: By source.
    """

    def __init__(
        self,
        model: TransformerBridge,
        tasks: Sequence[Task | str | os.PathLike[str]] | Task | str | os.PathLike[str] = (),
        n_pairs: int = 32,
    ) -> None:
        listed = [tasks] if isinstance(tasks, Task | str | os.PathLike) else tasks
        self.model, self.n_pairs = model, n_pairs
        self.tasks: dict[str, Task] = {**catalogue}
        self.fitted: dict[str, Fitted] = {}
        for task in reversed(unique_tasks(listed).values()):
            self.add(task)

    def add(self, task: Task) -> None:
        """Offer a task before the others; it takes the place of one of the same id."""
        self.tasks = {task.id: task, **{k: v for k, v in self.tasks.items() if k != task.id}}
        self.fitted.pop(task.id, None)

    def is_own(self, source: str) -> bool:
        """Whether a source is a task of this session, which no file or catalogue holds."""
        return self.tasks.get(source) not in (None, catalogue.get(source))

    def task_of(self, source: str) -> Task | None:
        """The task of a source; ``None`` for a vector file.

        Raises:
            SteerlensError: An instruction of one word, which is more likely a mistyped id; or as
                `load_task`.
        """
        if source in self.tasks:
            return self.tasks[source]
        if is_vector_file(source):
            return None
        if source.lower().endswith(_TASK_FILES):
            return load_task(source)
        if " " not in source.strip():
            raise SteerlensError(
                f"{source!r} is no task and no vector file; an instruction in your own words has "
                "at least two"
            )
        return Task(OWN_WORDS, [source])

    def fit(self, source: str) -> Fitted:
        """A source on the model, fitted once.

        Raises:
            SteerlensError: As `task_of`; a file that is missing or no vector.
        """
        if source not in self.fitted:
            self.fitted[source] = self._fit(source)
        return self.fitted[source]

    def _fit(self, source: str) -> Fitted:
        task = self.task_of(source)
        if task is None:
            if not Path(source).is_file():
                raise SteerlensError(f"there is no file {source!r}")
            return Fitted(load_vector(source))
        pairs = pairs_of(task, self.n_pairs)
        position = "answer" if pairs.same_prompts else "last_prompt"
        residuals = cache_residuals(self.model, pairs, position, show_progress=False)
        return Fitted(difference_of_means(residuals), task, residuals)


def is_vector_file(source: str) -> bool:
    """Whether a source is the name of a vector file."""
    return source.lower().endswith(_VECTOR_FILES)


def pairs_of(task: Task, n: int, split: str = "fit") -> ContrastSet:
    """As many contrast pairs of a task, or all that a split holds.

    Raises:
        PairsError: It holds fewer than two.
    """
    return contrast_pairs(task, n=max(2, min(n, task.n_pairs(split))), split=split)


def passes(task: Task | None, response: str) -> bool | None:
    """Whether a response passes the task's check; ``None`` without a check of the response alone.

    Raises:
        SteerlensError: The check raises, or returns neither a truth value nor a score.
    """
    if task is None or not task.has_check:
        return None
    queries = task.queries("fit")
    # What the check compares with (a number of words) is drawn for each prompt, and here is none.
    needs_more = bool(queries) and bool(task.sample_kwargs(random.Random(0), queries[0]))
    return None if needs_more else task.check(response)


def read_at(vector: SteeringVector, n_prompt: int) -> str | int | None:
    """Where a vector was read, to be marked in a text; ``None`` where it does not say.

    The record of a file may hold anything, and a prompt of `n_prompt` tokens may be too short.
    """
    position = vector.metadata.get("position")
    if isinstance(position, str):
        # Answers to a choice are read where they differ, which a single text does not tell.
        return position if position in POSITIONS and position != "answer" else None
    # JSON's true is an int to Python.
    if isinstance(position, int) and not isinstance(position, bool):
        return position if -n_prompt <= position < n_prompt else None
    return None
