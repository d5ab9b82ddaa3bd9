"""What the explorer tries: the vector of a task, of a file or of your own words, and its use."""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformer_lens.model_bridge import TransformerBridge

from steerlens.activations.cache import POSITIONS, cache_residuals
from steerlens.engine.sampling import GREEDY, Decoding
from steerlens.errors import SteerlensError
from steerlens.explorer.decoding import changes
from steerlens.models.conversations import Conversation, Prompt, continued, shown
from steerlens.steering.interventions import Steering
from steerlens.tasks import Task, base_queries, catalogue
from steerlens.tasks.drawing import contrast_pairs
from steerlens.tasks.pairs import ContrastSet
from steerlens.tasks.task_files import load_task
from steerlens.vectors import SteeringVector, difference_of_means
from steerlens.vectors.formats import load_vector

__all__ = ["Trial", "as_python", "kind_of", "passes", "read_at", "task_of", "vector_of"]

_VECTOR_FILES = (".safetensors", ".gguf")
_TASK_FILES = (".yaml", ".yml", ".jsonl", ".csv")
Tasks = Mapping[str, Task]


@dataclass(frozen=True)
class Trial:
    """What the controls are set to.

    Attributes:
        source: Where the vector comes from; see `kind_of`.
        prompt: The user's message; token ids where it is a list of whole numbers, ``[1, 9690]``.
        layer: Block whose output is steered.
        operation: ``"add"``, ``"set_projection"`` or ``"ablate"``.
        strength: Multiplies the change; see `SteeringVector.at`.
        scope: ``"all"``, ``"prompt"``, ``"response"`` or ``"first:N"``.
        max_new_tokens: Longest response, in tokens.
        decoding: How both responses are decoded.
        system: A system message of your own; empty for the model's.
        turns: Messages between it and the prompt.
        adaptive: Threshold of a strength lowered while decoding; 0 for a fixed one.
    """

    source: str
    prompt: str
    layer: int
    operation: str = "set_projection"
    strength: float = 1.0
    scope: str = "all"
    max_new_tokens: int = 48
    decoding: Decoding = GREEDY
    system: str = ""
    turns: Conversation = ()
    adaptive: float = 0.0

    @property
    def asked(self) -> Prompt:
        """The prompt, after the system message and the earlier turns."""
        system = [{"role": "system", "content": self.system}] if self.system.strip() else []
        return continued((*system, *self.turns), _token_ids(self.prompt) or self.prompt)

    def steering(self, vector: SteeringVector) -> Steering:
        """The vector, steered as this trial says.

        Raises:
            SteeringError: As `SteeringVector.at`.
        """
        return vector.at(
            self.layer, self.operation, self.strength, self.scope, adaptive=self.adaptive
        )

    def describe(self) -> str:
        adaptive = f", adaptive {self.adaptive:g}" if self.adaptive else ""
        words = (
            f"{self.source}: {self.operation} ×{self.strength:g} at layer {self.layer} on "
            f"{self.scope}{adaptive}, {shown(self.asked)!r}"
        )
        return words if self.decoding == GREEDY else f"{words}; {self.decoding.describe()}"


def _token_ids(text: str) -> list[int]:
    """Token ids that a text spells; none for any other text.

    >>> _token_ids("[1, 9690]"), _token_ids("[1, a]"), _token_ids("[]")
    ([1, 9690], [], [])
    """
    match = re.fullmatch(r"\s*\[([\d\s,]+)\]\s*", text)
    return [int(part) for part in match[1].split(",") if part.strip()] if match else []


def kind_of(source: str, tasks: Tasks = catalogue) -> Literal["task", "file", "words"]:
    """What was picked or typed: a task, a vector file, or an instruction.

    >>> kind_of("detectable_format:title"), kind_of("v.gguf"), kind_of("Answer like a pirate.")
    ('task', 'file', 'words')
    """
    if source in tasks or source in catalogue or source.lower().endswith(_TASK_FILES):
        return "task"
    return "file" if source.lower().endswith(_VECTOR_FILES) else "words"


def task_of(source: str, tasks: Tasks = catalogue) -> Task | None:
    """The task that was picked or typed; ``None`` for a vector file or an instruction.

    Raises:
        SteerlensError: As `load_task`, of a task file.
    """
    if kind_of(source, tasks) != "task":
        return None
    return tasks[source] if source in tasks else load_task(source)


def vector_of(
    model: TransformerBridge, source: str, n_pairs: int, tasks: Tasks = catalogue
) -> SteeringVector:
    """The vector of a source (`kind_of`) on this model, fitted on `n_pairs` contrast pairs.

    Raises:
        SteerlensError: A file that is missing or no vector, or an instruction of one word, which is
            more likely a mistyped id.
    """
    if kind_of(source, tasks) == "file":
        if not Path(source).is_file():
            raise SteerlensError(f"there is no file {source!r}")
        return load_vector(source)
    task = task_of(source, tasks)
    if task is not None:
        pairs = contrast_pairs(task, n=max(2, min(n_pairs, task.n_pairs("fit"))))
    else:
        if " " not in source.strip():
            raise SteerlensError(
                f"{source!r} is no task and no vector file; an instruction in your own words has "
                "at least two"
            )
        asked = [query.text for query in base_queries("fit")[:n_pairs]]
        pairs = ContrastSet.from_prompts([f"{text} {source}" for text in asked], asked)
    position = _position(pairs)
    return difference_of_means(cache_residuals(model, pairs, position, show_progress=False))


def _position(pairs: ContrastSet) -> str:
    """Where pairs are read: choices have one prompt and differ in their answers."""
    return "answer" if pairs.same_prompts else "last_prompt"


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
    if isinstance(position, str) and position in POSITIONS:
        return position
    # JSON's true is an int to Python.
    if isinstance(position, int) and not isinstance(position, bool):
        return position if -n_prompt <= position < n_prompt else None
    return None


def as_python(
    trial: Trial, model: str, n_pairs: int, dtype: str = "float32", tasks: Tasks = catalogue
) -> str:
    """The lines that reproduce a trial on a model, given by its reference and dtype.

    A task defined in Python is named by ``task``, which the lines expect to be there.
    """
    source = trial.source
    kind, task = kind_of(source, tasks), task_of(source, tasks)
    if kind == "file":
        vector, marked = [f"vector = sl.load_vector({source!r})"], ""
    elif task is not None:
        n = max(2, min(n_pairs, task.n_pairs("fit")))
        position = _position(contrast_pairs(task, n=2))
        is_known = tasks.get(source) in (None, catalogue.get(source))
        given = repr(source) if is_known else "task"
        at = "" if position == "last_prompt" else f", position={position!r}"
        vector = [
            *([] if is_known else [f"# task: the Task {task.id!r} of this session"]),
            f"pairs = sl.contrast_pairs({given}, n={n})",
            f"vector = sl.difference_of_means(sl.cache_residuals(model, pairs{at}))",
        ]
        marked = ", read_at='last_prompt'" if position == "last_prompt" else ""
    else:
        vector = [
            "from steerlens.tasks.pairs import ContrastSet",
            f"asked = [query.text for query in sl.base_queries('fit')[:{n_pairs}]]",
            f"instructed = [text + ' ' + {source!r} for text in asked]",
            "pairs = ContrastSet.from_prompts(instructed, asked)",
            "vector = sl.difference_of_means(sl.cache_residuals(model, pairs))",
        ]
        marked = ", read_at='last_prompt'"
    asked = trial.prompt if trial.asked == trial.prompt else list(trial.asked)
    adaptive = f", adaptive={trial.adaptive:g}" if trial.adaptive else ""
    decoded = "".join(f", {name}={value!r}" for name, value in changes(trial.decoding).items())
    return "\n".join(
        [
            "import steerlens as sl",
            "",
            f"model = sl.load_model({model!r}, dtype={dtype!r})",
            *vector,
            f"steering = vector.at(layer={trial.layer}, operation={trial.operation!r}, "
            f"strength={trial.strength}, scope={trial.scope!r}{adaptive})",
            f"run = sl.steer(model, {asked!r}, steering, "
            f"max_new_tokens={trial.max_new_tokens}{marked}{decoded})",
            "",
        ]
    )
