"""Base queries: what a user asks before any instruction is added, in three fixed splits.

The file `steerlens/data/base_queries.json` holds the queries with the split each belongs to: half
to `fit` vectors on, a quarter to `select` (layer, strength …) and a quarter to `report` on. The
split is part of the data, balanced over the kinds, so no setting can leak a query from one use into
another. No query asks for a format, a length or a language itself: the instruction alone
decides those.

>>> queries = base_queries("report")
>>> queries[0].kind, queries[0].split
('explain', 'report')
"""

import functools
import json
from dataclasses import dataclass
from importlib import resources

from steerlens.errors import unknown_name

__all__ = ["SPLITS", "BaseQuery", "base_queries"]

SPLITS = ("fit", "select", "report")


@dataclass(frozen=True)
class BaseQuery:
    """One query without instruction.

    Attributes:
        text: the query.
        kind: what is asked for: "explain", "story", "email", "yes-no", …
        keywords: three lower-case words that a good answer very likely contains and the query
            does not.
        split: "fit", "select" or "report".
    """

    text: str
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
