"""`Instruction`: a task of the catalogue.

The texts of the catalogue come from `steerlens/tasks/data/instructions.json`; how arguments are
drawn and responses rewritten is looked up by the task's id in `arguments` and `rewrites`.
"""

import math
import random
from collections.abc import Mapping
from functools import partial
from typing import Any

from steerlens.errors import SteerlensError
from steerlens.tasks import ifeval
from steerlens.tasks.arguments import WORDINGS, draw_arguments, fill_template, template_fields
from steerlens.tasks.queries import BaseQuery, base_queries
from steerlens.tasks.rewrites import REWRITERS
from steerlens.tasks.sources import Phrased
from steerlens.tasks.task import Task

__all__ = ["Instruction"]

# English text in the vocabularies of current models has 1.2 to 1.4 tokens per word.
_TOKENS_PER_WORD = 1.5
_WORDS_PER_SENTENCE = 20


class Instruction(Task):
    """A task of the catalogue, whose check is IFEval's or a band of word counts.

    Args:
        id: IFEval's id, with a suffix where one check serves several tasks
            ("length_constraints:number_words_at_most").
        ifeval_id: The id of the check; None where a band of word counts is checked.
        group: "format", "length" or "words".
        description: What a compliant response looks like, in one line.
        split_phrasings: Split -> templates a user might write; no template is in two splits.
        query_kinds: Kinds of base query the task makes sense for; None means all.
        fixed_kwargs: The arguments that distinguish this task from others with the same check.
        word_band: Fewest and most words allowed (most: None for no limit); None where `ifeval_id`
            decides.
    """

    has_tried_check = True
    has_loose_check = True

    def __init__(
        self,
        id: str,
        ifeval_id: str | None,
        group: str,
        description: str = "",
        split_phrasings: Mapping[str, tuple[str, ...]] | None = None,
        query_kinds: tuple[str, ...] | None = None,
        fixed_kwargs: Mapping[str, Any] | None = None,
        word_band: tuple[int, int | None] | None = None,
    ) -> None:
        queries_of = partial(_queries_of_kinds, query_kinds)
        source = Phrased(split_phrasings or {}, queries_of, self.instruct, self.sample_kwargs)
        self._set(id, source, description)
        self.notices = ()
        self.group = group
        self.ifeval_id = ifeval_id
        self.query_kinds = query_kinds
        self.fixed_kwargs = dict(fixed_kwargs or {})
        self.word_band = word_band

    @property
    def definition(self) -> dict[str, Any]:
        """What defines the task, as JSON."""
        own = {"ifeval_id": self.ifeval_id, "fixed": self.fixed_kwargs, "words": self.word_band}
        return {**super().definition, **own}

    def sample_kwargs(self, rng: random.Random, query: BaseQuery) -> dict[str, Any]:
        """Draw the check's arguments for one query (keywords come from the query)."""
        return {**self.fixed_kwargs, **draw_arguments(self.id, rng, query)}

    def wording(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments that are words ("use the word *sea*"); none for most tasks.

        No direction carries every word, so a vector is fitted for these words alone; numbers and
        relations it may average over.
        """
        return {
            name: value
            for name, value in kwargs.items()
            if name in WORDINGS and name not in self.fixed_kwargs
        }

    def render(self, phrasing: str, kwargs: Mapping[str, Any]) -> str:
        """The phrasing with its `{fields}` filled from the arguments.

        Raises:
            SteerlensError: The arguments lack something the phrasing names, or contradict the task.
        """
        fields = template_fields(self._complete(kwargs))
        if self.word_band is not None:
            fields |= {"low": self.word_band[0], "high": self.word_band[1]}
        return fill_template(phrasing, fields)

    @property
    def has_check(self) -> bool:
        """Always: IFEval's, or the band of word counts."""
        return True

    def score(self, response: str, **kwargs: Any) -> float:
        """1 for a response that complies, strictly, and 0 for another."""
        return float(self.check(response, **kwargs))

    def check(
        self, response: str, *, loose: bool = False, prompt: str | None = None, **kwargs: Any
    ) -> bool:
        """Whether `response` complies; a blank one never does.

        Args:
            response: The model's answer.
            loose: Accept the response also without its first or last line or its asterisks, as
                IFEval does (`ifeval.loose_variants`).
            prompt: The user's prompt, for checks that compare with it.
            **kwargs: The arguments, as `sample_kwargs` gives them.

        Raises:
            SteerlensError: An argument is missing, unknown, or contradicts the task.
        """
        arguments = self._complete(kwargs)
        if self.ifeval_id is not None:
            return ifeval.check(self.ifeval_id, response, arguments, prompt=prompt, loose=loose)
        if arguments:
            raise SteerlensError(
                f"the instruction {self.id!r} takes no arguments, but was given {arguments}"
            )
        assert self.word_band is not None
        low, high = self.word_band[0], self.word_band[1] or math.inf
        texts = ifeval.loose_variants(response) if loose else (response,)
        return any(text.strip() != "" and low <= ifeval.count_words(text) <= high for text in texts)

    @property
    def has_rewrite(self) -> bool:
        """Whether `rewrite` can turn any response into a compliant one."""
        return self.id in REWRITERS

    def _rewritten(self, response: str, kwargs: Mapping[str, Any]) -> str:
        return REWRITERS[self.id](response, self._complete(kwargs))

    def limits_length(self, kwargs: Mapping[str, Any]) -> bool:
        """Whether the task sets an upper limit on length, which a response cut short cannot meet.

        >>> from steerlens.tasks import catalogue
        >>> [catalogue[i].limits_length({}) for i in ("length:brief", "length:extremely_verbose")]
        [True, False]
        """
        if self.group != "length":
            return False
        if self.word_band is not None:
            return self.word_band[1] is not None
        return self._complete(kwargs).get("relation") == "less than"

    def tokens_to_tell(self, kwargs: Mapping[str, Any]) -> int | None:
        """Tokens after which a response's length can be judged; None if no length is asked for.

        >>> from steerlens.tasks import catalogue
        >>> catalogue["length:brief"].tokens_to_tell({})
        75
        """
        if self.group != "length":
            return None
        low, high = self.word_band or (0, None)
        sentences = int(kwargs.get("num_sentences") or 0)
        words = (high or low, int(kwargs.get("num_words") or 0), _WORDS_PER_SENTENCE * sentences)
        return math.ceil(_TOKENS_PER_WORD * max(words))

    def _complete(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        for name, fixed in self.fixed_kwargs.items():
            if kwargs.get(name, fixed) != fixed:
                raise SteerlensError(
                    f"the instruction {self.id!r} means {name}={fixed!r}, but was given "
                    f"{name}={kwargs[name]!r}"
                )
        return {**kwargs, **self.fixed_kwargs}


def _queries_of_kinds(kinds: tuple[str, ...] | None, split: str) -> tuple[BaseQuery, ...]:
    return tuple(q for q in base_queries(split) if kinds is None or q.kind in kinds)
