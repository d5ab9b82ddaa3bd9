"""The catalogue: instructions a program can verify, as users phrase them, with queries to try them.

An instruction here is an IFEval check (Zhou et al., arXiv 2311.07911; run through
`steerlens.tasks.ifeval`) or a band of word counts, together with

* eight phrasings, four to fit vectors on, two to select with, two to report on;
* arguments drawn at random, exactly in IFEval's terms ("at most 50 words" is
  `{"relation": "less than", "num_words": 51}`);
* a rewrite, where a program can make any response compliant and keep what it says: matched
  compliant and non-compliant responses are one source of steering vectors.

The five levels of length are bands of word counts that do not overlap and leave no gap, counted as
IFEval counts words:

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
checks trust a statistical detector, which errs on texts of a few words.

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

from steerlens.errors import UnknownNameError, unknown_name
from steerlens.tasks.definition import Instruction
from steerlens.tasks.queries import SPLITS, BaseQuery, base_queries

__all__ = ["SPLITS", "BaseQuery", "Catalogue", "Instruction", "base_queries", "catalogue"]


class Catalogue(Mapping[str, Instruction]):
    """A read-only mapping from instruction id to `Instruction`, in a fixed order."""

    def __init__(self, instructions: tuple[Instruction, ...]) -> None:
        self._by_id = {instruction.id: instruction for instruction in instructions}

    def __getitem__(self, instruction_id: str) -> Instruction:
        """The instruction of that id.

        Raises:
            UnknownNameError: no such id (the nearest are named), or an IFEval id that stands for
                several instructions (they are named).
        """
        if instruction_id in self._by_id:
            return self._by_id[instruction_id]
        variants = [i.id for i in self._by_id.values() if i.ifeval_id == instruction_id]
        if variants:
            raise UnknownNameError(
                f"the instruction {instruction_id!r} has several variants; choose one of "
                + ", ".join(map(repr, variants))
            )
        raise unknown_name("instruction", instruction_id, self._by_id)

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_id)

    def __len__(self) -> int:
        return len(self._by_id)

    def __repr__(self) -> str:
        return f"<Catalogue of {len(self)} instructions: {', '.join(self)}>"


def _load() -> Catalogue:
    file = resources.files("steerlens.tasks").joinpath("data", "instructions.json")
    return Catalogue(
        tuple(
            Instruction(
                id=row["id"],
                ifeval_id=row["ifeval_id"],
                group=row["group"],
                description=row["description"],
                split_phrasings={s: tuple(row["phrasings"][s]) for s in SPLITS},
                query_kinds=tuple(row["query_kinds"]) if row["query_kinds"] else None,
                fixed_kwargs=row["fixed_kwargs"],
                word_band=(row["word_band"][0], row["word_band"][1]) if row["word_band"] else None,
            )
            for row in json.loads(file.read_text(encoding="utf-8"))
        )
    )


catalogue: Catalogue = _load()
