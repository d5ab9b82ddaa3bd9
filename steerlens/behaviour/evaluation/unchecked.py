"""What steering does to prompts of tasks without a check, for each prompt and condition."""

from collections.abc import Mapping, Sequence
from typing import Any

from steerlens.behaviour.answers import Answerer
from steerlens.behaviour.evaluation.conditions import PromptInCondition
from steerlens.behaviour.evaluation.prompts import ANSWERS
from steerlens.behaviour.unchecked import Labelled, measured
from steerlens.models.conversations import Conversation
from steerlens.tasks import Task
from steerlens.tasks.pairs import ContrastPair

__all__ = ["unchecked_values"]

_STEERED = ("uninstructed+steering", "uninstructed+placebo")


def unchecked_values(
    answerer: Answerer,
    asked: Sequence[PromptInCondition],
    horizon: int,
    before: Conversation = (),
) -> list[float | None]:
    """KL(instructed‖·) over the horizon, or log odds, in nats, in the order of `asked`.

    ``None`` for tasks with a check and for prompts with their instruction.
    """
    by_task: dict[str, dict[str, dict[str, PromptInCondition]]] = {}
    for each in asked:
        if each.row.unchecked is not None:
            rows = by_task.setdefault(each.row.unchecked.id, {})
            rows.setdefault(each.row.row, {})[each.condition] = each
    values: dict[tuple[str, str], float] = {}
    for rows in by_task.values():
        values |= _values(answerer, rows, horizon, before)
    return [values.get((each.row.row, each.condition)) for each in asked]


def _values(
    answerer: Answerer,
    rows: Mapping[str, Mapping[str, PromptInCondition]],
    horizon: int,
    before: Conversation,
) -> dict[tuple[str, str], float]:
    """The values of one task's rows."""
    conditions = [name for name in _STEERED if all(name in row for row in rows.values())]
    first = [next(iter(row.values())).row for row in rows.values()]
    task: Task | None = first[0].unchecked
    assert task is not None  # as its caller sees to
    pairs = [
        ContrastPair(
            row.prompt,
            row.prompt_without_instruction or "",
            kwargs=row.kwargs[0],
            **_answers(row.kwargs[0] if task.group == "choices" else {}),
        )
        for row in first
    ]
    by_words = {
        repr(task.wording(pair.kwargs)): row for pair, row in zip(pairs, rows.values(), strict=True)
    }

    def settings_for(kwargs: Mapping[str, Any]) -> list[Labelled]:
        row = by_words[repr(task.wording(kwargs))]
        questions = [row[name].question for name in conditions]
        return [(q.label or {}, q.steering) for q in questions]

    effects = measured(answerer, task, pairs, settings_for, horizon, before)
    values: dict[tuple[str, str], float] = {}
    for place, name in enumerate(rows):
        values[name, "uninstructed"] = float(effects.unsteered[place])
        for setting, condition in enumerate(conditions):
            values[name, condition] = float(effects.steered[setting, place])
    return values


def _answers(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The two answers of a choice, as fields of a pair."""
    fields = ("instructed_response", "uninstructed_response")
    return {field: kwargs[name] for field, name in zip(fields, ANSWERS, strict=True) if kwargs}
