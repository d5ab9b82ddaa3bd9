"""Options that several commands share, declared once in groups.

A command takes a group as one argument and asks it for what it stands for::

    def steer(model: ModelOptions, intervention: InterventionOptions, prompt: str) -> None:
        model.load()

`spread` makes of it a function with one parameter per option, which is what typer reads.
"""

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from steerlens.cli.values import (
    Ids,
    Seed,
    count,
    given,
    local_path,
    option,
    parse_device_map,
    parse_quantization,
    parse_sizes,
    refuse_unused,
    seed_of,
)
from steerlens.errors import SteerlensError, unknown_name

if TYPE_CHECKING:
    from steerlens.activations.cache import ResidualCache
    from steerlens.steering.interventions import Steering
    from steerlens.tasks import Task
    from steerlens.tasks.pairs import ContrastSet
    from steerlens.vectors import SteeringVector

__all__ = [
    "EngineOptions",
    "InterventionOptions",
    "ModelOptions",
    "OwnTaskOptions",
    "PairOptions",
    "RunModelOptions",
    "RunOptions",
    "TaskOptions",
    "spread",
]

_LARGE = "large models: "
_RAY = "with Ray: "


@dataclass(frozen=True, kw_only=True)
class RunModelOptions:
    """Which model, and where it is loaded."""

    model: Annotated[
        str, option("a name listed by `steerlens models`, a hub id, a folder, or a .gguf file")
    ] = "smollm2-135m-instruct"
    dtype: Annotated[str, option("float32, bfloat16, float16 or auto")] = "auto"
    device: Annotated[str | None, option("cpu, cuda or mps; the best available by default")] = None
    device_map: Annotated[str | None, option(f"{_LARGE}auto, balanced, sequential or JSON")] = None
    max_memory: Annotated[str | None, option(f"{_LARGE}such as 0=70GiB,cpu=200GiB")] = None
    quantize: Annotated[str | None, option(f"{_LARGE}bitsandbytes-8bit, -4bit, or JSON")] = None

    def load(self) -> Any:
        """The model."""
        from steerlens.models.loading import load_model

        return load_model(
            self.model,
            dtype=self.dtype,
            device=self.device,
            device_map=parse_device_map("--device-map", self.device_map),
            max_memory=parse_sizes("--max-memory", self.max_memory),
            quantization_config=parse_quantization(self.quantize),
        )


@dataclass(frozen=True, kw_only=True)
class ModelOptions(RunModelOptions):
    """The same for analyses, which are exact by default and may choose how prompts are rendered."""

    dtype: Annotated[str, option("float32, bfloat16, float16 or auto")] = "float32"
    chat_format: Annotated[
        Literal["auto", "template", "plain"], option("how prompts are rendered")
    ] = "auto"


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """Which tasks of the catalogue."""

    task: Annotated[list[str] | None, Ids] = None
    every_task: Annotated[bool, option("every task of the catalogue", "--all")] = False

    def tasks(self) -> "list[Task]":
        """The tasks asked for, read before any model is loaded."""
        from steerlens.tasks import catalogue
        from steerlens.tasks.task_files import unique_tasks

        if self.every_task:
            if self.task:
                raise SteerlensError("give either --all or --task, not both")
            return list(catalogue.values())
        if not self.task:
            raise SteerlensError("give --task ID or FILE (repeat it for several), or --all")
        return list(unique_tasks(files_in(self.task)).values())


@dataclass(frozen=True, kw_only=True)
class OwnTaskOptions(TaskOptions):
    """The same, or pairs of one's own as a task, with a check or without."""

    pairs: Annotated[
        Path | None, option("your own contrast pairs as a task (JSONL or CSV)", metavar="FILE")
    ] = None
    check: Annotated[
        str | None,
        option(
            "with --pairs: what tells whether a response shows it, such as 'contains: sorry' or "
            "python:module:function; without one, causal recovery is measured"
        ),
    ] = None

    @property
    def names_tasks(self) -> bool:
        """Whether any task was asked for."""
        return bool(self.task or self.every_task or self.pairs)

    def tasks(self) -> "list[Task]":
        """The tasks asked for, read before any model is loaded."""
        if self.pairs is None:
            refuse_unused({"--check": self.check}, "goes with --pairs; a task file has its own")
            return super().tasks()
        if self.task or self.every_task:
            raise SteerlensError("give either --pairs or --task, not both")
        from steerlens.tasks import Task
        from steerlens.tasks.task_files import written_check

        check = None if self.check is None else written_check(self.check, "--check")
        return [Task.from_pairs(self.pairs, check)]


@dataclass(frozen=True, kw_only=True)
class PairOptions(TaskOptions):
    """Contrast pairs, and how their residuals are read."""

    pairs: Annotated[Path | None, option("your own contrast pairs (JSONL or CSV)")] = None
    n: Annotated[int | None, option("pairs per task (default: 64); not with --pairs")] = None
    seed: Annotated[int | None, option("seed of everything that is drawn (default: 0)")] = None
    position: Annotated[
        str | None,
        option("last_prompt, response_mean, last_response, answer or a token index"),
    ] = None
    batch_size: Annotated[int | None, count("prompts per forward pass")] = None
    contrast: Annotated[
        Literal["none", "neutral", "others"],
        option(
            "what the uninstructed side carries: nothing, a neutral sentence, or another task's "
            "instruction"
        ),
    ] = "none"

    def sets(self) -> "list[ContrastSet]":
        """Contrast pairs of the file, or of each task."""
        from steerlens.tasks.pairs import ContrastSet

        self.check_position()
        if self.pairs is None:
            return self.sets_of(self.tasks())
        if self.task or self.every_task:
            raise SteerlensError("give either --pairs or --task, not both")
        reason = "is how many pairs of a task are drawn, and all pairs of --pairs FILE are used"
        refuse_unused({"--n": self.n}, reason)
        contrast = None if self.contrast == "none" else self.contrast
        reason = "makes the uninstructed side of a task's pairs, and --pairs FILE has both sides"
        refuse_unused({"--contrast": contrast}, reason)
        is_csv = self.pairs.suffix.lower() == ".csv"
        return [(ContrastSet.from_csv if is_csv else ContrastSet.from_jsonl)(self.pairs)]

    def sets_of(self, tasks: "Sequence[Task]") -> "list[ContrastSet]":
        """Contrast pairs of each of these tasks."""
        from steerlens.tasks.drawing import contrast_pairs
        from steerlens.tasks.notices import warn_of_task

        seed = seed_of(self.seed)
        for task in tasks:
            warn_of_task(task)
        return [
            contrast_pairs(task, n=self.n, seed=seed, split="fit", contrast=self.contrast)
            for task in tasks
        ]

    def task_of(self, pairs: "ContrastSet") -> "Task":
        """The task of one of the sets, to be compared with others."""
        from steerlens.tasks import Task

        if self.pairs is not None:
            return Task.from_pairs(pairs, id=self.pairs.stem)
        (task,) = (task for task in self.tasks() if task.id == pairs.instruction_id)
        return task

    def check_position(self) -> None:
        """`UnknownNameError` for a position that does not exist."""
        if self.position is None or re.fullmatch(r"-?[0-9]+", self.position):
            return
        from steerlens.activations.cache import POSITIONS

        if self.position not in POSITIONS:
            raise unknown_name("position", self.position, POSITIONS)

    def read_at(self, pairs: "ContrastSet") -> int | str:
        """Where these pairs are read: as asked, else at the answer of choices, else at the prompt's
        last token."""
        if self.position is None:
            return "answer" if pairs.same_prompts else "last_prompt"
        is_index = re.fullmatch(r"-?[0-9]+", self.position)
        return int(self.position) if is_index else self.position

    def cache(self, model: Any, pairs: "ContrastSet", chat_format: Any) -> "ResidualCache":
        """Residuals of one set."""
        from steerlens.activations.cache import cache_residuals

        size = given(batch_size=self.batch_size)
        return cache_residuals(
            model, pairs, position=self.read_at(pairs), chat_format=chat_format, **size
        )


@dataclass(frozen=True, kw_only=True)
class InterventionOptions:
    """Which vector is applied, where, and how."""

    vector: Annotated[Path, option("a vector in any known format")]
    layer: Annotated[int, option("the layer to steer")]
    operation: Annotated[
        str | None, option("add, set_projection or ablate; if it has targets, set_projection")
    ] = None
    scope: Annotated[
        str, option("all, prompt, response, or first:N (N tokens of the response)")
    ] = "all"

    adaptive: Annotated[
        float, option("lower the strength where tokens fall below this share of plausibility")
    ] = 0.0

    def steering(self, strength: float = 1.0) -> "tuple[SteeringVector, Steering]":
        """The vector from its file, and the steering asked for."""
        from steerlens.vectors.formats.loading import load_vector, usual_operation

        vector = load_vector(self.vector)
        operation = self.operation or usual_operation(vector)
        return vector, vector.at(
            self.layer, operation, strength, self.scope, adaptive=self.adaptive
        )


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Where pieces of a long run are computed."""

    engine: Annotated[
        Literal["local", "ray"], option("where pieces are computed; the files are the same")
    ] = "local"
    workers: Annotated[int | None, option(f"{_RAY}processes with a model each (default: 2)")] = None
    worker_cpus: Annotated[float | None, option(f"{_RAY}logical CPUs each (default: 1)")] = None
    worker_gpus: Annotated[float | None, option(f"{_RAY}GPUs each, or a part (default: 0)")] = None
    worker_device_map: Annotated[str | None, option(f"{_RAY}instead of --device-map")] = None
    worker_max_memory: Annotated[str | None, option(f"{_RAY}instead of --max-memory")] = None
    address: Annotated[str | None, option(f"{_RAY}a cluster: host:port, ray://… or auto")] = None

    def worker_settings(self) -> Any:
        """The workers asked for; None for the local engine.

        Raises:
            SteerlensError: "--workers is for --engine ray, …".
        """
        if self.engine == "local":
            options = {
                f"--{name.replace('_', '-')}": value
                for name, value in vars(self).items()
                if name.startswith("worker") or name == "address"
            }
            refuse_unused(options, "is for --engine ray, and everything is computed here")
            return None
        from steerlens.workers import WorkerSettings

        settings = given(
            workers=self.workers,
            cpus=self.worker_cpus,
            gpus=self.worker_gpus,
            device_map=parse_device_map("--worker-device-map", self.worker_device_map),
            max_memory=parse_sizes("--worker-max-memory", self.worker_max_memory),
        )
        return WorkerSettings(address=self.address, **settings)


@dataclass(frozen=True, kw_only=True)
class RunOptions(EngineOptions):
    """A run folder, and how it is filled."""

    out: Annotated[Path, local_path("run folder: new, empty, or resumed")]
    resume: Annotated[bool, option("continue the run in the folder", "--resume")] = False
    judge: Annotated[str, option("a model that scores fluency, none, or auto")] = "auto"
    batch_size: Annotated[int | None, count("rows decoded together")] = None
    piece_rows: Annotated[int | None, count("rows a worker computes at a time")] = None
    seed: Seed = 0

    def settings(self) -> dict[str, Any]:
        """What settings of searches and evaluations share."""
        sizes = given(batch_size=self.batch_size, piece_rows=self.piece_rows)
        return {"judge": self._judge(), "seed": self.seed, **sizes}

    def _judge(self) -> str | None:
        if self.judge != "auto":
            return None if self.judge == "none" else self.judge
        from steerlens.behaviour.judge import DEFAULT_JUDGE
        from steerlens.models.loading import available_models

        ready = any(model.name == DEFAULT_JUDGE and model.installed for model in available_models())
        return DEFAULT_JUDGE if ready else None


def files_in(tasks: Sequence[str]) -> list[str]:
    """Ids and files, with the task files of a folder in its place.

    Raises:
        SteerlensError: "the folder … holds no task files …".
    """
    listed: list[str] = []
    for task in tasks:
        folder = Path(task)
        files = [task]
        if folder.is_dir():
            # A .jsonl file beside a .yaml file is its data.
            files = [str(path) for path in sorted(folder.glob("*.yaml"))]
            files = files or [str(path) for path in sorted(folder.glob("*.jsonl"))]
            if not files:
                raise SteerlensError(f"the folder {task} holds no task files (.yaml or .jsonl)")
        listed += files
    return listed


def spread(command: Callable[..., None], **constants: Any) -> Callable[..., None]:
    """The command with one parameter for every option of its groups.

    Args:
        command: A command that takes groups.
        constants: Arguments that are no options, for the commands that take them.
    """
    signature = inspect.signature(command)
    groups: dict[str, Any] = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if is_dataclass(parameter.annotation)
    }
    fields = {name: inspect.signature(group).parameters for name, group in groups.items()}
    parameters = [
        option.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in signature.parameters.items()
        if name not in constants
        for option in (fields[name].values() if name in groups else [parameter])
    ]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field: values.pop(field) for field in fields[name]})
        fixed = {name: constants[name] for name in constants if name in signature.parameters}
        command(**values, **fixed)

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
