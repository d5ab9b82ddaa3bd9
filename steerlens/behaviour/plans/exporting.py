"""A plan's choice as a vector that other tools can add.

Other tools know one operation: a shift added to the output of blocks, on every token. So a choice
is exported if all it does is ``add`` on every token; its strength becomes part of the vector.
"""

from torch import Tensor

from steerlens.behaviour.plans.candidates import describe
from steerlens.behaviour.plans.plan import Plan
from steerlens.errors import SteeringError
from steerlens.vectors import SteeringVector
from steerlens.vectors.formats.record import vector_of_shifts

__all__ = ["choice_as_vector"]


def choice_as_vector(plan: Plan, task_id: str, context: str = "uninstructed") -> SteeringVector:
    """The vector whose ``add`` at strength 1 does what a plan chose for a task.

    Args:
        plan: The plan.
        task_id: One of its tasks.
        context: Which of its two choices.

    Raises:
        UnknownNameError: A task or context that the plan does not have.
        SteeringError: The plan chose no steering, a choice that other tools cannot do, or one whose
            vector is fitted anew for each wording.
    """
    candidate = plan.candidate(task_id, context)
    if not candidate:
        raise SteeringError(f"the plan chose no steering for {task_id}, so there is no vector")
    shifts: dict[int, Tensor] = {}
    for spec in candidate:
        if spec.operation != "add" or spec.scope != "all" or spec.adaptive:
            raise SteeringError(
                f"the plan's choice for {task_id} is {describe(candidate)}; other tools can only "
                "add a vector on every token, so use the plan in steerlens, or write the vector "
                "itself (--vector PLAN/vectors/…) and choose a strength for add"
            )
        vector = plan.vectors.get((task_id, spec.estimator))
        if vector is None:
            raise SteeringError(
                f"the vectors of {task_id} are fitted for each wording, and none is in the plan"
            )
        at = vector.layer_index(spec.layer)
        shift = spec.strength * vector.gaps[at] * vector.directions[at]
        shifts[spec.layer] = shifts.get(spec.layer, 0.0) + shift
    about = plan.data["model"]
    metadata = {
        "instruction": task_id,
        "model": about.get("reference"),
        "exported_from": describe(candidate),
    }
    return vector_of_shifts(shifts, f"the plan's choice for {task_id}", metadata)
