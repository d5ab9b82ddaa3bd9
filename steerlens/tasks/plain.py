"""Plain text and common questions: what a model should do as well when it is steered.

Written for this package: a dozen passages of about a hundred tokens in several registers, and forty
questions whose answers are beyond doubt, each with three wrong ones. Nothing is fitted or chosen on
them (`steerlens.behaviour.side_effects`).

>>> common_questions()[0].question, common_questions()[0].answer
('What is the capital of France?', 'Paris')
>>> len(plain_passages()), len(common_questions())
(12, 40)
"""

import functools
import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

__all__ = ["CommonQuestion", "common_questions", "plain_passages"]


@dataclass(frozen=True)
class CommonQuestion:
    """A question, its right answer, and wrong ones."""

    question: str
    answer: str
    others: tuple[str, ...]


def plain_passages() -> tuple[str, ...]:
    """The passages."""
    return tuple(_data()["passages"])


def common_questions() -> tuple[CommonQuestion, ...]:
    """The questions."""
    return tuple(
        CommonQuestion(row["question"], row["answer"], tuple(row["others"]))
        for row in _data()["questions"]
    )


@functools.cache
def _data() -> dict[str, Any]:
    file = resources.files("steerlens.tasks").joinpath("data", "side_effects.json")
    data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return data
