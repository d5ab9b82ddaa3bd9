"""Base queries: what a user asks before any instruction is added, in three fixed splits.

Half are there to `fit` vectors on, a quarter to `select` with (layer, strength …) and a quarter to
`report` on. The split is part of the data and balanced over the kinds of query. No query asks for a
format, a length or a language itself.

>>> queries = base_queries("report")
>>> queries[0].kind, queries[0].split
('explain', 'report')
"""

import functools
import json
from dataclasses import dataclass
from importlib import resources

from steerlens.errors import unknown_name
from steerlens.models.conversations import Prompt

__all__ = ["SPLITS", "BaseQuery", "base_queries"]

SPLITS = ("fit", "select", "report")
"""Vectors are fitted on the first, choices made on the second, results taken from the third."""


@dataclass(frozen=True)
class BaseQuery:
    """One query without instruction.

    Attributes:
        text: The query: a text, or in tasks of one's own a conversation.
        kind: What is asked for: "explain", "story", "email", "yes-no", …
        keywords: Three lower-case words that a good answer likely contains and the query does not.
        split: "fit", "select" or "report".
    """

    text: Prompt
    kind: str
    keywords: tuple[str, ...]
    split: str


def base_queries(split: str) -> tuple[BaseQuery, ...]:
    """All base queries of one split, in the order of the data file (grouped by kind).

    Raises:
        UnknownNameError: "unknown split …; did you mean …?"
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    return tuple(query for query in _all_queries() if query.split == split)


@functools.cache
def _all_queries() -> tuple[BaseQuery, ...]:
    file = resources.files("steerlens.tasks").joinpath("data", "base_queries.json")
    return tuple(
        BaseQuery(row["text"], row["kind"], tuple(row["keywords"]), row["split"])
        for row in json.loads(file.read_text(encoding="utf-8"))
    )
