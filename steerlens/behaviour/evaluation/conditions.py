"""Conditions: what a prompt is answered under.

=========================== ============================ ==========================================
condition                   prompt                       steering
=========================== ============================ ==========================================
``uninstructed``            without the instruction      none
``instructed``              with it                      none
``uninstructed+steering``   without it                   the plan's choice for such prompts
``instructed+steering``     with it                      the plan's choice for such prompts
``uninstructed+placebo``    without it                   the same, with random directions
=========================== ============================ ==========================================

Where the plan's choice is no steering, a condition equals its unsteered one and is answered once.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from steerlens.behaviour.answers import Question
from steerlens.behaviour.evaluation.prompts import EvaluationPrompt
from steerlens.behaviour.plans.candidates import describe, to_json
from steerlens.behaviour.plans.fitting import VectorBook
from steerlens.behaviour.plans.plan import Plan
from steerlens.errors import SteerlensError
from steerlens.models.conversations import Conversation, Prompt, continued
from steerlens.tasks import Task, catalogue

__all__ = ["CONDITIONS", "UNSTEERED", "PromptInCondition", "conditions_for", "in_condition"]

CONDITIONS = (
    "uninstructed",
    "instructed",
    "uninstructed+steering",
    "instructed+steering",
    "uninstructed+placebo",
)
# The condition each steered one is compared with.
UNSTEERED = {name: name.split("+")[0] for name in CONDITIONS if "+" in name}


@dataclass(frozen=True, eq=False)
class PromptInCondition:
    """A prompt under a condition.

    Attributes:
        row: The evaluation prompt.
        condition: One of `CONDITIONS`.
        prompt: The row's prompt in this condition, as given.
        question: What the model is asked.
        steering: The steering in words.
    """

    row: EvaluationPrompt
    condition: str
    prompt: Prompt
    question: Question
    steering: str = "no steering"


def conditions_for(row: EvaluationPrompt, has_plan: bool) -> list[str]:
    """The conditions that can be had.

    A prompt without its instruction is not always known; a question with choices asks for neither;
    and without a check, steering is not measured on a prompt that states the instruction.
    """
    without = row.prompt_without_instruction
    names = [name for name in CONDITIONS if has_plan or "+" not in name]
    if not without:
        names = [name for name in names if not name.startswith("uninstructed")]
    if row.unchecked is not None:
        names = [name for name in names if name != "instructed+steering"]
    if row.prompt == without:
        names = [name for name in names if not name.startswith("instructed")]
    return names


def in_condition(
    row: EvaluationPrompt,
    condition: str,
    plan: Plan | None,
    book: VectorBook | None,
    before: Conversation = (),
) -> PromptInCondition:
    """A row under one of `conditions_for` it; steered ones need a plan and a book of vectors."""
    context = condition.split("+")[0]
    given = row.prompt if context == "instructed" else row.prompt_without_instruction
    assert given is not None  # else `conditions_for` leaves the condition out
    prompt = continued(before, given)
    if plan is None or book is None or "+" not in condition:
        return PromptInCondition(row, condition, given, Question(prompt))
    chosen = [
        (task, kwargs, plan.candidate(task.id, context)) for task, kwargs in _tasks(row, plan)
    ]
    if not any(candidate for *_, candidate in chosen):
        return PromptInCondition(row, condition, given, Question(prompt))
    placebo = condition.endswith("placebo")
    label = {
        "plan": [
            {"instruction": task.id, "words": task.wording(kwargs), "parts": to_json(candidate)}
            for task, kwargs, candidate in chosen
        ],
        "placebo": placebo,
        "recipe": asdict(plan.recipe),
    }
    asked_for = [(task, kwargs) for task, kwargs, _ in chosen]
    steering = plan.steering(book, asked_for, context, placebo)
    words = "; ".join(f"{task.id}: {describe(candidate)}" for task, _, candidate in chosen)
    return PromptInCondition(row, condition, given, Question(prompt, steering, label), words)


def left_out(
    rows: Sequence[EvaluationPrompt], plan: Plan
) -> tuple[list[EvaluationPrompt], dict[str, int]]:
    """Rows the plan can steer, and how many it cannot, by what they ask for."""
    steerable: list[EvaluationPrompt] = []
    missing: Counter[str] = Counter()
    for task in {task.id: task for row in rows for task in row.tasks.values()}.values():
        plan.check_task(task)
    for row in rows:
        try:
            _tasks(row, plan)
            steerable.append(row)
        except SteerlensError:
            missing[" + ".join(row.instruction_ids)] += 1
    return steerable, dict(missing)


def _tasks(row: EvaluationPrompt, plan: Plan) -> list[tuple[Task, Mapping[str, Any]]]:
    """The tasks that a row asks for, with their arguments.

    Raises:
        SteerlensError: The plan has no choice for one of them.
    """
    tasks = []
    for name, kwargs in zip(row.instruction_ids, row.kwargs, strict=True):
        task = row.tasks.get(name) or catalogue.matching(name, kwargs)
        if task is None or task.id not in plan.instructions:
            raise SteerlensError(f"the plan has no choice for {name} with {dict(kwargs)}")
        tasks.append((task, kwargs))
    return tasks
