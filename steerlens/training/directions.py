r"""`train_direction`: the direction that does a job best at a layer, found by training.

The difference of means is one direction among many. Training finds one for the purpose, with the
model's weights left alone: what any vector at that layer could reach is at least what this one
does. Directions of several layers, with a gate and without, for several objectives and seeds are
trained side by side (`train_directions`).

Everything comes from the ``fit`` split; a quarter of its base queries decides when to stop.
Training starts at the difference of means of the last prompt token with its gates open.

Caveats. A trained direction fits what it is shown: on few examples of 64 tokens it learns their
form and length as well. Its loss says nothing about greedy answers, which may loop where the text
it was trained on does not; measure them (`steerlens.evaluate`).
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from steerlens.activations.cache import cache_residuals
from steerlens.engine.choosing import running
from steerlens.engine.forward import gradients
from steerlens.engine.modules import device_of, fast_modules
from steerlens.errors import ModelError, SteeringError
from steerlens.errors.arguments import arguments, layer_numbers
from steerlens.tasks import Task
from steerlens.tasks.drawing import contrast_pairs
from steerlens.tasks.task_files import load_task
from steerlens.training.examples import Answers, TrainingExample, training_examples
from steerlens.training.fitting import Progress, TrainingSettings, descend, read_trunks
from steerlens.training.objectives import Forced, check_objective, forced_texts, usable
from steerlens.training.parameters import DirectionParameters, Slot
from steerlens.training.regression import fit_gate, forced_residuals
from steerlens.vectors import SteeringVector, difference_of_means
from steerlens.views.result import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["TrainedDirections", "one_vector", "train_direction", "train_directions", "train_on"]

# Fewer examples than this leave nothing to learn from, or to stop by.
_LEAST = 8


@dataclass(frozen=True, eq=False, repr=False)
class TrainedDirections(Result):
    """Directions that were trained side by side.

    Attributes:
        slots: What each was trained for, and where.
        vectors: One per slot, with the slot's layers. With a gate it is for operation ``general``,
            without for ``add``.
        history: The held-out loss of every slot at each look; empty for ``regress``.
        table: One row per slot: ``layers, objective, gate, loop_weight, seed, n_examples,
            start_loss, loss, step, push, cosine``. Losses are those of the held-out examples in
            nats, at the start and at the ``step`` that was kept; ``push`` is ‖z‖ and ``cosine`` its
            cosine with the difference of means, both at the first layer.
    """

    slots: tuple[Slot, ...]
    vectors: tuple[SteeringVector, ...]
    history: tuple[Progress, ...]
    table: pd.DataFrame

    def __repr__(self) -> str:
        layers = sorted({layer for slot in self.slots for layer in slot.layers})
        return f"TrainedDirections({len(self.slots)} directions at layers {layers})"

    def plot(self) -> "go.Figure":
        """Held-out loss of each direction over steps."""
        from steerlens.views.training import training_curves

        descending = [slot for slot in self.slots if slot.objective != "regress"]
        rows = [
            {"step": look.step, "direction": str(slot), "loss": loss}
            for look in self.history
            for slot, loss in zip(descending, look.losses, strict=True)
        ]
        return training_curves(pd.DataFrame(rows, columns=["step", "direction", "loss"]))


@arguments
def train_direction(
    model: TransformerBridge,
    task: Task | str | os.PathLike[str],
    layers: Sequence[int] = (20,),
    objective: str = "comply",
    gate: bool = False,
    jointly: bool = False,
    loop_weight: float = 0.5,
    scope: str = "all",
    kwargs: Mapping[str, Any] | None = None,
    settings: TrainingSettings | None = None,
    seed: int = 0,
    chat_format: str = "auto",
    show_progress: bool | None = None,
) -> SteeringVector:
    """Train a direction per layer for a task.

    Args:
        model: A hooked model that the engine's fast pass can run.
        task: The task, its id in the catalogue, or its file.
        layers: Where; each layer gets a direction of its own, to be used alone.
        objective: ``"comply"``, ``"prefer"``, ``"imitate"`` or ``"regress"``; see
            `steerlens.training.objectives`.
        gate: Train ``x + ReLU(a + w·x) z`` (operation ``general``) instead of ``x + z`` (``add``).
        jointly: Train the layers as one direction, to be used at all of them at once.
        loop_weight: Weight of the term against loops (`steerlens.training.objectives`); 0 for the
            objective alone.
        scope: Tokens steered: ``"all"``, ``"prompt"`` or ``"response"``; steer the same later.
        kwargs: Arguments of the task that are the same in every example.
        settings: How it is trained.
        seed: Draws, divides and shuffles the examples, and starts the directions.
        chat_format: As for `steerlens.generate`.
        show_progress: Show progress bars on standard error; by default only in a terminal.

    Raises:
        SteeringError: Too few examples for the objective, with those that can be had; a layer that
            the model lacks; a loss that is not finite.
        ModelError: A model that cannot be differentiated here.
        UnknownNameError: An unknown objective or task.
    """
    numbers = layer_numbers(layers, error=SteeringError)
    places = [numbers] if jointly else [(layer,) for layer in numbers]
    slots = [Slot(tuple(sorted(own)), objective, gate, seed, loop_weight) for own in places]
    trained = train_directions(
        model,
        task,
        slots,
        scope=scope,
        kwargs=kwargs,
        settings=settings,
        seed=seed,
        chat_format=chat_format,
        show_progress=show_progress,
    )
    return one_vector(trained.vectors)


def train_directions(
    model: TransformerBridge,
    task: Task | str | os.PathLike[str],
    slots: Sequence[Slot],
    scope: str = "all",
    kwargs: Mapping[str, Any] | None = None,
    settings: TrainingSettings | None = None,
    answers: Answers | None = None,
    seed: int = 0,
    chat_format: str = "auto",
    show_progress: bool | None = None,
) -> TrainedDirections:
    """Train several directions for a task side by side, in one batch.

    Arguments and errors are those of `train_direction`.

    Args:
        slots: What to train, and where.
        answers: Answers prompts, for example from a run that remembers them.
    """
    task, settings = load_task(task), settings or TrainingSettings()
    _check(model, task, slots)
    n = min(settings.n_examples, task.n_pairs("fit"), max(len(task.queries("fit")), 2))
    pairs = contrast_pairs(task, n=n, seed=seed, split="fit", kwargs=kwargs)
    if task.wording(pairs[0].kwargs) and not kwargs:
        raise SteeringError(
            f"the arguments of {task.id} are words, and a direction is trained for words at hand; "
            f"give kwargs, such as {pairs[0].kwargs}"
        )
    layers = sorted({layer for slot in slots for layer in slot.layers})
    cache = cache_residuals(
        model, pairs, layers=layers, chat_format=chat_format, show_progress=show_progress
    )
    examples = training_examples(
        model, task, pairs, settings.max_tokens, answers, chat_format, show_progress
    )
    start = difference_of_means(cache)
    about = {
        **cache.metadata,
        "instruction": task.id,
        "estimator": "trained",
        "scope": scope,
        "training": asdict(settings),
        "seed": seed,
    }
    return train_on(model, examples, slots, start, about, settings, scope, seed, show_progress)


def train_on(
    model: TransformerBridge,
    examples: Sequence[TrainingExample],
    slots: Sequence[Slot],
    start: SteeringVector,
    about: Mapping[str, Any],
    settings: TrainingSettings,
    scope: str = "all",
    seed: int = 0,
    show_progress: bool | None = None,
) -> TrainedDirections:
    """Train on examples at hand, from the vector `start`; `about` goes into the metadata."""
    n_usable = [usable(examples, slot.objective, _LEAST) for slot in slots]
    longest = max(len(each.instructed) for each in examples) + settings.max_tokens
    with running(model, longest) as path:
        if not path.is_fast:
            raise ModelError(f"directions cannot be trained on this model: {path.reason}")
        with fast_modules(model), gradients(model):
            regressed = [slot for slot in slots if slot.objective == "regress"]
            descending = [slot for slot in slots if slot.objective != "regress"]
            values = _regressed(model, examples, regressed)
            history: list[Progress] = []
            if descending:
                found, history = _descended(
                    model, examples, descending, start, settings, scope, seed, show_progress
                )
                values |= found
    vectors = tuple(_as_vector(slot, values[slot], about) for slot in slots)
    return TrainedDirections(
        tuple(slots), vectors, tuple(history), _table(slots, vectors, n_usable, start, history)
    )


Values = dict[int, tuple[Tensor, Tensor | None, float]]
"""By layer, write direction z, read direction w (``None`` without a gate) and bias a."""


def _regressed(
    model: TransformerBridge, examples: Sequence[TrainingExample], slots: Sequence[Slot]
) -> dict[Slot, Values]:
    if not slots:
        return {}
    layers = sorted({layer for slot in slots for layer in slot.layers})
    residuals = forced_residuals(model, [each for each in examples if each.obeyed], layers)
    values: dict[Slot, Values] = {}
    for slot in slots:
        values[slot] = {}
        for layer in slot.layers:
            instructed, uninstructed = residuals[layer]
            if slot.gate:
                write, read, bias = fit_gate(instructed, uninstructed)
                values[slot][layer] = torch.tensor(write), torch.tensor(read), bias
            else:
                mean = (instructed - uninstructed).mean(axis=0)
                values[slot][layer] = torch.tensor(mean), None, 0.0
    return values


def _descended(
    model: TransformerBridge,
    examples: Sequence[TrainingExample],
    slots: Sequence[Slot],
    start: SteeringVector,
    settings: TrainingSettings,
    scope: str,
    seed: int,
    show_progress: bool | None,
) -> tuple[dict[Slot, Values], list[Progress]]:
    texts = [
        text
        for slot in slots
        for each in examples
        for text in forced_texts(each, slot.objective, slot.loop_weight > 0)
    ]
    imitating = any(slot.objective == "imitate" for slot in slots)
    instructed = [Forced(each.instructed, each.obeyed) for each in examples if each.obeyed]
    layers = sorted({layer for slot in slots for layer in slot.layers})
    trunks = read_trunks(model, texts, layers, instructed if imitating else ())
    pushes = start.gaps[:, None] * start.directions
    parameters = DirectionParameters.starting_at(
        slots,
        {layer: trunks.median_norm(layer) for layer in layers},
        {layer: pushes[start.layer_index(layer)] for layer in layers},
        device_of(model),
    )
    best, history = descend(
        model, parameters, examples, trunks, settings, scope, seed, show_progress
    )
    values: dict[Slot, Values] = {slot: {} for slot in slots}
    for site, (i, layer) in enumerate(best.sites):
        scale = best.scale[site]
        read = (best.read[site] / scale).cpu() if slots[i].gate else None
        write = (best.write[site] * scale).cpu()
        values[slots[i]][layer] = write, read, float(best.bias[site])
    return values, history


def _as_vector(slot: Slot, values: Values, about: Mapping[str, Any]) -> SteeringVector:
    writes = torch.stack([values[layer][0] for layer in slot.layers]).float()
    gaps = writes.norm(dim=-1)
    flat = torch.zeros_like(gaps)
    gated: dict[str, Any] = {}
    if slot.gate:
        reads = torch.stack(
            [read for layer in slot.layers if (read := values[layer][1]) is not None]
        )
        biases = torch.tensor([values[layer][2] for layer in slot.layers])
        gated = {"reads": reads.float(), "biases": biases, "gate": "relu"}
    return SteeringVector(
        directions=writes / gaps[:, None],
        gaps=gaps,
        targets=flat,
        baselines=flat.clone(),
        layers=slot.layers,
        metadata={
            **about,
            "objective": slot.objective,
            "loop_weight": slot.loop_weight,
            "trained_jointly": len(slot.layers) > 1,
            "targets_known": False,
            "targets_unknown_because": "it was trained, not read off two means",
        },
        **gated,
    )


def _table(
    slots: Sequence[Slot],
    vectors: Sequence[SteeringVector],
    n_usable: Sequence[int],
    start: SteeringVector,
    history: Sequence[Progress],
) -> pd.DataFrame:
    """See `TrainedDirections.table`."""
    order = [i for i, slot in enumerate(slots) if slot.objective != "regress"]
    rows = []
    for i, (slot, vector) in enumerate(zip(slots, vectors, strict=True)):
        losses = [look.losses[order.index(i)] for look in history] if i in order else []
        best = int(np.argmin(losses)) if losses else None
        rows.append(
            {
                "layers": slot.layers,
                "objective": slot.objective,
                "gate": slot.gate,
                "loop_weight": slot.loop_weight,
                "seed": slot.seed,
                "n_examples": n_usable[i],
                "start_loss": losses[0] if losses else np.nan,
                "loss": np.nan if best is None else losses[best],
                "step": 0 if best is None else history[best].step,
                "push": float(vector.gaps[0]),
                "cosine": float(
                    vector.directions[0] @ start.directions[start.layer_index(slot.layers[0])]
                ),
            }
        )
    return pd.DataFrame(rows)


def one_vector(vectors: Sequence[SteeringVector]) -> SteeringVector:
    """The layers of several vectors as one, lowest first."""
    ordered = sorted(vectors, key=lambda vector: vector.layers)
    names = ("directions", "gaps", "targets", "baselines", "reads", "biases")
    parts = {name: [getattr(vector, name) for vector in ordered] for name in names}
    joined: dict[str, Any] = {
        name: torch.cat(part) for name, part in parts.items() if part[0] is not None
    }
    layers = tuple(layer for vector in ordered for layer in vector.layers)
    return replace(ordered[0], layers=layers, **joined)


def _check(model: TransformerBridge, task: Task, slots: Sequence[Slot]) -> None:
    """What can be refused before anything is computed."""
    if not slots:
        raise SteeringError("no direction to train; give at least one layer")
    depth = model.cfg.n_layers
    for slot in slots:
        check_objective(slot.objective)
        last = max(slot.layers)
        if min(slot.layers) < 0 or last >= depth:
            raise SteeringError(
                f"layers are out of range: the model has {depth}, 0 to {depth - 1}; got "
                f"{slot.layers}"
            )
    if task.group == "choices":
        raise SteeringError(f"{task.id} is a task of choices, whose answers are not generated")
    if not all(weight.is_floating_point() for weight in model.original_model.parameters()):
        raise ModelError(
            "directions cannot be trained on quantised weights; load the model without quantization"
        )
