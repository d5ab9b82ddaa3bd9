"""The catalogue: instructions that a program can verify, as users phrase them.

A task of the catalogue is an IFEval check (Zhou et al., arXiv 2311.07911; `steerlens.tasks.ifeval`)
or a band of word counts, with

* eight phrasings: four to fit vectors on, two to select with, two to report on;
* arguments drawn at random, in IFEval's terms ("at most 50 words" is
  `{"relation": "less than", "num_words": 51}`);
* a rewrite, where a program can make any response compliant without changing what it says.

The levels of length are bands that neither overlap nor leave a gap, counted in IFEval's words:

======================== ==============
id                       words
======================== ==============
length:extremely_brief   1 to 15
length:brief             16 to 50
length:medium            51 to 120
length:verbose           121 to 250
length:extremely_verbose 251 or more
======================== ==============

Base queries come in the same three splits (`base_queries`). Phrasings and queries were written for
this package; none is taken from IFEval's prompts.

Caveat: a check sees the form only. "My answer is no." passes whatever was asked, and the language
checks rely on a statistical detector, which errs on texts of a few words.

>>> import random
>>> task = catalogue["length_constraints:number_words_at_most"]
>>> kwargs = task.sample_kwargs(random.Random(0), base_queries("fit")[0])
>>> kwargs
{'relation': 'less than', 'num_words': 101}
>>> task.instruct("Why is the sky blue?", task.phrasings[0], kwargs)
'Why is the sky blue? Use at most 100 words.'
>>> task.check("Because air scatters blue light most.", **kwargs)
True
"""

import json
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

from steerlens.errors import UnknownNameError, unknown_name
from steerlens.tasks.instructions import Instruction
from steerlens.tasks.queries import SPLITS, BaseQuery, base_queries
from steerlens.tasks.task import Task

__all__ = ["SPLITS", "BaseQuery", "Catalogue", "Instruction", "Task", "base_queries", "catalogue"]


class Catalogue(Mapping[str, Instruction]):
    """A read-only mapping from id to `Task`, in a fixed order."""

    def __init__(self, tasks: tuple[Instruction, ...]) -> None:
        self._by_id = {task.id: task for task in tasks}

    def __getitem__(self, task_id: str) -> Instruction:
        """The task of that id.

        Raises:
            UnknownNameError: No such id (the nearest are named), or an IFEval id that stands for
                several tasks (they are named).
        """
        if task_id in self._by_id:
            return self._by_id[task_id]
        variants = [task.id for task in self._by_id.values() if task.ifeval_id == task_id]
        if variants:
            raise UnknownNameError(
                f"the instruction {task_id!r} has several variants; choose one of "
                + ", ".join(map(repr, variants))
            )
        raise unknown_name("instruction", task_id, self._by_id)

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_id)

    def __len__(self) -> int:
        return len(self._by_id)

    def __repr__(self) -> str:
        return f"<Catalogue of {len(self)} instructions: {', '.join(self)}>"

    def matching(self, check_id: str, kwargs: Mapping[str, Any]) -> Instruction | None:
        """The task that a row of an IFEval file asks for, if there is one.

        One check of IFEval may serve several tasks, told apart by their arguments.

        >>> number = "length_constraints:number_words"
        >>> catalogue.matching(number, {"relation": "at least", "num_words": 300}).id
        'length_constraints:number_words_at_least'
        >>> catalogue.matching("language:response_language", {"language": "hi"})
        """
        if check_id in self:
            return self[check_id]
        for task in self.values():
            if task.ifeval_id == check_id and task.fixed_kwargs.items() <= kwargs.items():
                return task
        return None


def _load() -> Catalogue:
    file = resources.files("steerlens.tasks").joinpath("data", "instructions.json")
    tasks = []
    for row in json.loads(file.read_text(encoding="utf-8")):
        row["split_phrasings"] = {s: tuple(row["phrasings"][s]) for s in SPLITS}
        for name in ("query_kinds", "word_band"):
            row[name] = tuple(row[name]) if row[name] else None
        tasks.append(
            Instruction(**{name: value for name, value in row.items() if name != "phrasings"})
        )
    return Catalogue(tuple(tasks))


catalogue: Catalogue = _load()
"""The tasks of the package, by id."""
