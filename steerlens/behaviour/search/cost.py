"""What a search's choices cost: `steerlens.behaviour.side_effects`, kept in the run.

Only what was chosen is measured, beside a placebo: some thousand tokens read for each of three
settings, where a stage of the search writes ten thousand.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from steerlens.behaviour.answers import Records
from steerlens.behaviour.plain_text import PlainText
from steerlens.behaviour.plans.candidates import Candidate, describe, to_json
from steerlens.behaviour.plans.fitting import VectorBook
from steerlens.behaviour.side_effects import SideEffects, placebo_name, random_push
from steerlens.models.identity import digest_of_rows
from steerlens.steering.interventions import Steering
from steerlens.tasks import Task
from steerlens.tasks.plain import common_questions, plain_passages

__all__ = ["add_cost"]

_STEERED = "steered"


def add_cost(
    book: VectorBook,
    task: Task,
    kwargs: Mapping[str, Any],
    choice: dict[str, Any],
    candidate: Candidate,
    stage: Sequence[dict[str, Any]],
) -> None:
    """Write what a choice costs into its record, and into its row of the stage's table.

    Args:
        book: Holds the vectors.
        task: The task.
        kwargs: Arguments of its check, for vectors of words.
        choice: The record of the choice.
        candidate: What was chosen; no steering costs nothing, and nothing is written.
        stage: Rows of the table that the choice was made from.
    """
    steering = book.steering(task, kwargs, candidate)
    if not candidate or steering is None:
        return
    label = {"instruction": task.id, "words": task.wording(kwargs), "parts": to_json(candidate)}
    placebo = random_push(steering, book.recipe.seed)
    with book.answerer.alone:
        plain = PlainText(book.model, plain_passages(), common_questions())
    [bare] = _measured(book, plain, {}, [None])
    rows = [bare, *_measured(book, plain, label, [steering, placebo])]
    effects = SideEffects(
        settings=("unsteered", _STEERED, placebo_name(_STEERED)),
        nll=np.array([row["nll"] for row in rows], dtype=float),
        right=np.array([row["right"] for row in rows], dtype=bool),
        descriptions={},
    )
    numbers = effects.summary(_STEERED)
    choice |= numbers
    for row in stage:
        if row["setting"] == describe(candidate):
            row |= {name: numbers[name] for name in ("cost", "cost_low", "cost_high")}


def _measured(
    book: VectorBook,
    plain: PlainText,
    label: Mapping[str, Any],
    steerings: Sequence[Steering | None],
) -> Records:
    """A record for each steering, from the run where it is kept."""

    def measure() -> Records:
        nll, right = plain.measured(steerings)
        records = zip(nll.tolist(), right.tolist(), strict=True)
        return [{"nll": losses, "right": verdicts} for losses, verdicts in records]

    tokens = digest_of_rows([row.tokens for row in plain.rows(None, 0)])
    content = {"what": "side effects", "tokens": tokens, "setting": dict(label)}
    return book.answerer.remembered(content, measure)
