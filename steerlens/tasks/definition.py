"""`Instruction`: one instruction with its phrasings, its arguments, its check and its rewrite.

The fixed texts come from `steerlens/data/instructions.json`; drawing arguments and rewriting
responses are functions, found by the instruction's id in `arguments.SAMPLERS` and
`rewrites.REWRITERS`.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from steerlens.errors import SteerlensError, unknown_name
from steerlens.tasks import ifeval
from steerlens.tasks.arguments import SAMPLERS, WORDINGS, fill_template, template_fields
from steerlens.tasks.queries import SPLITS, BaseQuery
from steerlens.tasks.rewrites import REWRITERS

__all__ = ["Instruction"]


@dataclass(frozen=True)
class Instruction:
    """A verifiable instruction.

    Attributes:
        id: its name in the catalogue: IFEval's id, with a suffix where one check serves several
            instructions ("length_constraints:number_words_at_most").
        ifeval_id: the id of the check, None where steerlens checks a band of word counts.
        group: "format", "length" or "words".
        description: what a compliant response looks like, in one line.
        split_phrasings: split -> templates a user might write; no template is in two splits.
        query_kinds: kinds of base query the instruction makes sense for; None means all.
        fixed_kwargs: the arguments that make this instruction out of a check that serves several.
        word_band: fewest and most words allowed (most: None for no limit); None where `ifeval_id`
            decides.
    """

    id: str
    ifeval_id: str | None
    group: str
    description: str
    split_phrasings: Mapping[str, tuple[str, ...]] = field(repr=False, hash=False)
    query_kinds: tuple[str, ...] | None = field(default=None, repr=False)
    fixed_kwargs: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)
    word_band: tuple[int, int | None] | None = field(default=None, repr=False)

    @property
    def phrasings(self) -> tuple[str, ...]:
        """Every phrasing: those to fit on, then to select, then to report."""
        return tuple(text for split in SPLITS for text in self.split_phrasings[split])

    @property
    def has_rewrite(self) -> bool:
        """Whether `rewrite` can turn any response into a compliant one."""
        return self.id in REWRITERS

    def wording(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments that are words ("end with *That is all.*", "use the word *sea*").

        No direction carries every word, so a vector is fitted for these words alone; numbers and
        relations it may average over. Empty for most instructions.
        """
        return {
            name: value
            for name, value in kwargs.items()
            if name in WORDINGS and name not in self.fixed_kwargs
        }

    def phrasings_for(self, split: str) -> tuple[str, ...]:
        """The phrasings of one split.

        Raises:
            UnknownNameError: "unknown split …; did you mean …?"
        """
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        return self.split_phrasings[split]

    def sample_kwargs(self, rng: random.Random, query: BaseQuery) -> dict[str, Any]:
        """Draw IFEval's arguments for one query (keywords come from the query)."""
        sampler = SAMPLERS.get(self.id)
        return {**self.fixed_kwargs, **(sampler(rng, query) if sampler else {})}

    def render(self, phrasing: str, kwargs: Mapping[str, Any]) -> str:
        """The phrasing with its `{fields}` filled from the arguments.

        Raises:
            SteerlensError: the arguments lack something the phrasing names, or contradict the
                instruction.
        """
        fields = template_fields(self._complete(kwargs))
        if self.word_band is not None:
            fields |= {"low": self.word_band[0], "high": self.word_band[1]}
        return fill_template(phrasing, fields)

    def instruct(self, base_query: str, phrasing: str, kwargs: Mapping[str, Any]) -> str:
        """The query followed by the instruction: after a space, or on a new line if the query
        itself has several lines."""
        separator = "\n" if "\n" in base_query else " "
        return f"{base_query}{separator}{self.render(phrasing, kwargs)}"

    def check(self, response: str, *, loose: bool = False, **kwargs: Any) -> bool:
        """Whether `response` complies; a blank one never does.

        Args:
            response: the model's answer.
            loose: accept the response also without its first or last line or its asterisks, as
                IFEval does (`ifeval.loose_variants`).
            **kwargs: the arguments, as `sample_kwargs` gives them.

        Raises:
            SteerlensError: an argument is missing, unknown, or contradicts the instruction.
        """
        arguments = self._complete(kwargs)
        if self.ifeval_id is not None:
            return ifeval.check(self.ifeval_id, response, arguments, loose=loose)
        if arguments:
            raise SteerlensError(
                f"the instruction {self.id!r} takes no arguments, but was given {arguments}"
            )
        texts = ifeval.loose_variants(response) if loose else (response,)
        return any(text.strip() != "" and self._in_band(text) for text in texts)

    def rewrite(self, response: str, **kwargs: Any) -> str:
        """A compliant version of `response` that keeps its content as far as possible.

        A response that complies already is returned unchanged.

        Raises:
            SteerlensError: there is no rewrite for this instruction (`has_rewrite`), the response
                is blank, or it cannot be made to comply (lowercase English from a Chinese text).
        """
        if self.id not in REWRITERS:
            raise SteerlensError(
                f"the instruction {self.id!r} has no rewrite; ask the model for compliant responses"
            )
        if not response.strip():
            raise SteerlensError("a blank response cannot be rewritten; give a text with content")
        arguments = self._complete(kwargs)
        if self.check(response, **arguments):
            return response
        rewritten = REWRITERS[self.id](response, arguments)
        if not self.check(rewritten, **arguments):
            raise SteerlensError(
                f"the response {_excerpt(response)} cannot be made to follow {self.id!r}"
                + (f" with {arguments}" if arguments else "")
            )
        return rewritten

    def _complete(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        for name, fixed in self.fixed_kwargs.items():
            if kwargs.get(name, fixed) != fixed:
                raise SteerlensError(
                    f"the instruction {self.id!r} means {name}={fixed!r}, but was given "
                    f"{name}={kwargs[name]!r}"
                )
        return {**kwargs, **self.fixed_kwargs}

    def _in_band(self, text: str) -> bool:
        assert self.word_band is not None
        low, high = self.word_band
        return low <= ifeval.count_words(text) <= (float("inf") if high is None else high)


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
