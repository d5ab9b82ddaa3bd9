"""What the harness takes from outside: lm-eval itself, and a steering from files."""

import importlib.util
from pathlib import Path

from transformer_lens.model_bridge import TransformerBridge

from steerlens.behaviour.answers import Answerer
from steerlens.behaviour.plans import Plan, VectorBook
from steerlens.errors import SteeringError, SteerlensError
from steerlens.steering.interventions import Steering
from steerlens.tasks.drawing import contrast_pairs
from steerlens.tasks.task_files import load_task
from steerlens.vectors.formats import load_vector
from steerlens.vectors.formats.loading import usual_operation

__all__ = ["require_lm_eval", "saved_steering"]


def require_lm_eval() -> None:
    """Refuse to go on without lm-eval.

    Raises:
        SteerlensError: "the harness is lm-eval, which is not installed; …".
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise SteerlensError(
            "the harness is lm-eval, which is not installed; run 'pip install lm-eval'"
        )


def saved_steering(
    model: TransformerBridge,
    *,
    steering: str | Path | None = None,
    vector: str | Path | None = None,
    layer: int | None = None,
    operation: str | None = None,
    strength: float | int = 1.0,
    scope: str = "all",
    plan: str | Path | None = None,
    task: str | None = None,
    context: str = "uninstructed",
) -> Steering | None:
    """The steering that files hold; ``None`` where none is named or the plan chose none.

    Args:
        model: The model it is for.
        steering: What `Steering.save` wrote.
        vector: Or a vector in any known format, with
        layer: where it is applied,
        operation: by what (as its file suggests by default),
        strength: how hard, and
        scope: on which tokens.
        plan: Or the folder of a plan, with
        task: one of its tasks (needed if it has several; its wording is the first of the split
            ``select``), and
        context: which of its two choices.

    Raises:
        SteerlensError: More than one of the three, a vector without a layer, or a plan of several
            tasks without the name of one.
        SteeringError: The steering does not fit the model.
    """
    if sum(source is not None for source in (steering, vector, plan)) > 1:
        raise SteerlensError("give one of a steering, a vector and a plan, not several")
    if plan is not None:
        return _chosen(model, Plan.load(plan), task, context)
    if task is not None:
        raise SteerlensError(f"task {task!r} names a choice of a plan, and no plan was given")
    if (vector is None) != (layer is None):
        raise SteerlensError("a vector needs the layer it is applied at, and a layer its vector")
    chosen = None if steering is None else Steering.load(steering)
    if vector is not None and layer is not None:
        loaded = load_vector(vector)
        chosen = loaded.at(layer, operation or usual_operation(loaded), strength, scope)
    if chosen is not None:
        chosen.check_model(model)
    return chosen


def _chosen(
    model: TransformerBridge, plan: Plan, task: str | None, context: str
) -> Steering | None:
    """What a plan chose for one of its tasks."""
    plan.check_model(model)
    if task is None and len(plan.instructions) > 1:
        raise SteeringError(
            f"the plan has choices for {', '.join(plan.instructions)}; name one as its task"
        )
    named = load_task(task or plan.instructions[0])
    candidate = plan.candidate(named.id, context)
    plan.check_task(named)
    book = VectorBook(Answerer(model), plan.recipe)
    plan.fill(book)
    n = min(2, named.n_pairs("select"))
    kwargs = contrast_pairs(named, n=n, split="select")[0].kwargs
    return book.steering(named, kwargs, candidate)
