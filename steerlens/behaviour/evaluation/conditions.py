"""Conditions: what a prompt is answered under.

=========================== ============================ ==========================================
condition                   prompt                       steering
=========================== ============================ ==========================================
``uninstructed``            without the instruction      none
``instructed``              with it                      none
``uninstructed+steering``   without it                   the plan's choice for such prompts
``instructed+steering``     with it                      the plan's choice for such prompts
``uninstructed+placebo``    without it                   the same settings, random directions
=========================== ============================ ==========================================

Where the plan's choice is no steering, a condition is its unsteered one and answered once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steerlens.behaviour.answers import Question
from steerlens.behaviour.evaluation.prompts import EvaluationPrompt
from steerlens.behaviour.plans.fitting import VectorBook
from steerlens.behaviour.plans.plan import Plan
from steerlens.behaviour.plans.settings import Candidate, describe
from steerlens.errors import SteerlensError
from steerlens.tasks import catalogue

__all__ = ["CONDITIONS", "UNSTEERED", "Asked", "asked_of", "conditions_for", "steerable"]

CONDITIONS = (
    "uninstructed",
    "instructed",
    "uninstructed+steering",
    "instructed+steering",
    "uninstructed+placebo",
)
# The condition each steered one is compared with.
UNSTEERED = {
    "uninstructed+steering": "uninstructed",
    "instructed+steering": "instructed",
    "uninstructed+placebo": "uninstructed",
}


@dataclass(frozen=True, eq=False)
class Asked:
    """A prompt under a condition.

    Attributes:
        row: The evaluation prompt.
        condition: One of `CONDITIONS`.
        question: What the model is asked.
        setting: The steering in words.
    """

    row: EvaluationPrompt
    condition: str
    question: Question
    setting: str


def conditions_for(row: EvaluationPrompt, has_plan: bool) -> list[str]:
    """The conditions that can be had: a prompt without its instruction is not always known."""
    return [
        condition
        for condition in CONDITIONS
        if (has_plan or "+" not in condition)
        and (row.prompt_without_instruction or not condition.startswith("uninstructed"))
    ]


def steerable(row: EvaluationPrompt, plan: Plan) -> list[tuple[str, Mapping[str, Any]]]:
    """The catalogue's ids of a row's instructions, with their arguments.

    Raises:
        SteerlensError: The plan has no choice for one of them.
    """
    found = []
    for name, kwargs in zip(row.instruction_ids, row.kwargs, strict=True):
        task = catalogue.matching(name, kwargs)
        if task is None or task.id not in plan.instructions:
            raise SteerlensError(f"the plan has no choice for {name} with {dict(kwargs)}")
        found.append((task.id, kwargs))
    return found


def asked_of(
    row: EvaluationPrompt, condition: str, plan: Plan | None, book: VectorBook | None
) -> Asked:
    """The question a row is under a condition.

    Args:
        row: The prompt.
        condition: One of `CONDITIONS`.
        plan: Needed for steered conditions.
        book: Needed for steered conditions: holds or fits the vectors.
    """
    context = condition.split("+")[0]
    prompt = row.prompt if context == "instructed" else row.prompt_without_instruction
    if prompt is None:
        raise SteerlensError(f"row {row.key} has no prompt without its instruction")
    if "+" not in condition:
        return Asked(row, condition, Question(prompt), "no steering")
    if plan is None or book is None:
        raise SteerlensError(f"the condition {condition!r} needs a plan")
    instructions = steerable(row, plan)
    placebo = condition.endswith("placebo")
    choices: list[Candidate] = [plan.candidate(name, context) for name, _ in instructions]
    if not any(choices):
        return Asked(row, condition, Question(prompt), "no steering")
    label = {
        "plan": [
            {
                "instruction": name,
                "words": catalogue[name].wording(kwargs),
                "parts": [one.to_json() for one in choice],
            }
            for (name, kwargs), choice in zip(instructions, choices, strict=True)
        ],
        "placebo": placebo,
        "recipe": plan.recipe.to_json(),
    }
    steering = plan.steering(book, instructions, context, placebo)
    words = "; ".join(
        f"{name}: {describe(choice)}"
        for (name, _), choice in zip(instructions, choices, strict=True)
    )
    return Asked(row, condition, Question(prompt, steering, label), words)


def left_out(
    rows: Sequence[EvaluationPrompt], plan: Plan
) -> tuple[list[EvaluationPrompt], dict[str, int]]:
    """Rows the plan can steer, and how many it cannot, by what they ask for."""
    kept: list[EvaluationPrompt] = []
    missing: dict[str, int] = {}
    for row in rows:
        try:
            steerable(row, plan)
        except SteerlensError:
            name = " + ".join(row.instruction_ids)
            missing[name] = missing.get(name, 0) + 1
        else:
            kept.append(row)
    return kept, missing
