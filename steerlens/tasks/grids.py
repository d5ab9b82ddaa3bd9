"""Tasks side by side: every task asked on the same base queries.

What tells one instruction from another shows only where everything else is the same. A grid has a
row of prompts for a task, one for each of the other tasks, and one without any instruction, all on
the same base queries. The queries are in two **halves**, of the `fit` and the `select` split, which
share neither query nor phrasing, so what is fitted on one half and scored on the other is held out
in both.

In a half, phrasings follow each other query by query. Runs that share a phrasing are not
independent, so queries asked in one phrasing of the task make a **block**.

>>> grid = task_grid("detectable_format:title", ["startend:quotation"], n_queries=8)
>>> grid.ids, grid.halves[6:10], grid.blocks[:10]
(('detectable_format:title', 'startend:quotation'), (0, 0, 1, 1), (0, 1, 2, 3, 0, 1, 2, 3, 4, 5))
"""

import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from steerlens.errors import PairsError, SteerlensError
from steerlens.models.conversations import Prompt, users_text
from steerlens.tasks import SPLITS, BaseQuery, Task, catalogue
from steerlens.tasks.duplicates import near_duplicates
from steerlens.tasks.pairs import ContrastPair
from steerlens.tasks.sources import Choices, GivenPairs
from steerlens.tasks.task_files import load_task

__all__ = ["HALVES", "N_QUERIES", "TaskGrid", "asked_on", "other_tasks", "task_grid"]

HALVES = ("fit", "select")
# Of each half. Reading 30 tasks on 24 + 24 took SmolLM2-135M 120 to 165 s on one busy core.
N_QUERIES = 20
_FEWEST_QUERIES = 4
# The catalogue's phrasings of each split; no task uses more, so that blocks nest.
_N_PHRASINGS = {"fit": 4, "select": 2, "report": 2}


@dataclass(frozen=True)
class TaskGrid:
    """Prompts of several tasks on the same base queries.

    Attributes:
        ids: The tasks; the one in question first.
        prompts: For each task its instructed prompt on each query.
        uninstructed: The prompt of each query without instruction.
        halves: For each query 0 (`fit`) or 1 (`select`).
        blocks: For each query a number that it shares with those of the same phrasing of the task;
            a number of its own where prompts have no phrasings.
        groups: For each query a number that near-duplicates share.
        notices: A sentence on each thing to beware of.
    """

    ids: tuple[str, ...]
    prompts: tuple[tuple[Prompt, ...], ...]
    uninstructed: tuple[Prompt, ...]
    halves: tuple[int, ...]
    blocks: tuple[int, ...]
    groups: tuple[int, ...]
    notices: tuple[str, ...] = ()


def other_tasks(
    task: Task, others: Iterable[Task | str | os.PathLike[str]] | None = None
) -> tuple[Task, ...]:
    """The tasks to compare with: those given, by default the catalogue, without the task itself.

    Raises:
        SteerlensError: None is left, or two have one id.
    """
    if isinstance(others, Task | str | os.PathLike):
        others = [others]
    loaded = tuple(catalogue.values()) if others is None else tuple(map(load_task, others))
    rest = tuple(other for other in loaded if other.id != task.id and other != task)
    ids = [other.id for other in rest]
    twice = next((name for name in ids if ids.count(name) > 1), None)
    if twice is not None:
        raise SteerlensError(f"two of the other tasks have the id {twice!r}; give each its own")
    if not rest:
        raise SteerlensError(
            f"only task {task.id!r} was given: what is specific to a task shows beside others, on "
            "the same queries; give at least one other, or leave out others= for the catalogue"
        )
    return rest


def task_grid(
    task: Task | str | os.PathLike[str],
    others: Iterable[Task | str | os.PathLike[str]] | None = None,
    n_queries: int = N_QUERIES,
    seed: int = 0,
) -> TaskGrid:
    """Prompts of a task and of others on the task's base queries.

    Args:
        task: The task, its id in the catalogue, or its file.
        others: The tasks beside it; the rest of the catalogue by default. One that cannot be asked
            on all of the queries is left out, and named in the notices if it was given.
        n_queries: Base queries of each half, or all that the task has if they are fewer.
        seed: Decides queries, phrasings and arguments.

    Raises:
        PairsError: A task of choices, too few queries in a half, or no other task that can be asked
            on the same queries.
        SteerlensError: No other task.
    """
    task = load_task(task)
    rest = other_tasks(task, others)
    if isinstance(task.source, Choices):
        raise PairsError(
            f"task {task.id!r} has one prompt for both answers of a choice, so no other "
            "instruction can stand in its place; specificity is for tasks of phrasings or pairs"
        )
    drawn = [_queries(task, split, n_queries, seed) for split in HALVES]
    asked = {
        other.id: [asked_on(other, drawn[h], HALVES[h], seed) for h in (0, 1)] for other in rest
    }
    unfit = [name for name, halves in asked.items() if None in halves]
    if len(unfit) == len(rest):
        raise PairsError(
            f"none of the {len(rest)} other tasks can be asked on the queries of {task.id!r}: they "
            "have prompts of their own, or need queries of another kind; give tasks with phrasings"
        )
    own = [asked_on(task, drawn[h], HALVES[h], seed) for h in (0, 1)]
    rows = {task.id: own, **{name: asked[name] for name in asked if name not in unfit}}
    blocks = _blocks(task, [len(queries) for queries in drawn])
    texts = [query.text for queries in drawn for query in queries]
    return TaskGrid(
        ids=tuple(rows),
        prompts=tuple(
            tuple(prompt for half in row for prompt in half or ()) for row in rows.values()
        ),
        uninstructed=tuple(texts),
        halves=tuple(half for half in (0, 1) for _ in drawn[half]),
        blocks=blocks,
        groups=near_duplicates([users_text(text) for text in texts]),
        notices=_notices(task, unfit if others is not None else []),
    )


def _queries(task: Task, split: str, n: int, seed: int) -> list[BaseQuery]:
    """Queries in the order in which contrast pairs are drawn, near-duplicates once."""
    unique = {query.text: query for query in task.queries(split)}
    queries = list(unique.values())
    random.Random(f"{seed}/{split}").shuffle(queries)
    queries = queries[:n]
    if len(queries) < _FEWEST_QUERIES:
        raise PairsError(
            f"task {task.id!r} has {len(queries)} base queries in its {split!r} split, and "
            f"specificity needs at least {_FEWEST_QUERIES} there and in the other; give more"
        )
    return queries


def asked_on(
    task: Task, queries: Sequence[BaseQuery], split: str, seed: int
) -> tuple[Prompt, ...] | None:
    """The task's prompts on queries, in phrasings of the split; None where one cannot be asked."""
    if isinstance(task.source, Choices):
        return None
    if isinstance(task.source, GivenPairs):
        known = {pair.uninstructed: pair.instructed for pair in _given(task)}
        given = [known.get(query.text) for query in queries]
        return None if None in given else tuple(prompt for prompt in given if prompt)
    kinds: Any = getattr(task, "query_kinds", None)
    if kinds is not None and any(query.kind not in kinds for query in queries):
        return None
    phrasings = list(task.phrasings_for(split))
    rng = random.Random(f"{seed}/{split}/{task.id}")
    rng.shuffle(phrasings)
    prompts = []
    for place, query in enumerate(queries):
        phrasing = phrasings[_phrasing(place, split, len(phrasings))]
        try:
            kwargs = task.sample_kwargs(rng, query)
        except (ValueError, IndexError):  # its arguments are keywords, and the query has none
            return None
        prompts.append(task.instruct(query.text, phrasing, kwargs))
    return tuple(prompts)


def _given(task: Task) -> list[ContrastPair]:
    sizes = {split: task.n_pairs(split) for split in SPLITS}
    return [pair for split, n in sizes.items() if n > 1 for pair in task.pairs(n, split=split)]


def _phrasing(place: int, split: str, n_phrasings: int) -> int:
    """Which phrasing a query is asked in: those of a task with fewer join blocks, and cut none."""
    return place % _N_PHRASINGS[split] % n_phrasings


def _blocks(task: Task, sizes: Sequence[int]) -> tuple[int, ...]:
    names: list[tuple[int, int]] = []
    for half, size in enumerate(sizes):
        n = len(task.phrasings_for(HALVES[half]))
        names += [(half, _phrasing(i, HALVES[half], n) if n else i) for i in range(size)]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return tuple(numbers[name] for name in names)


def _notices(task: Task, unfit: Sequence[str]) -> tuple[str, ...]:
    fit, select = (task.phrasings_for(split) for split in HALVES)
    notices = []
    if set(fit) & set(select):
        notices.append(
            f"task {task.id!r} has {len(task.phrasings)} phrasing"
            f"{'s' if len(task.phrasings) > 1 else ''}, too few to hold one out: only queries are "
            "held out, so what is specific may be specific to the wording"
        )
    if unfit:
        notices.append(
            f"left out of the comparison, because they cannot be asked on all queries of "
            f"{task.id!r}: {', '.join(unfit)}"
        )
    return tuple(notices)
