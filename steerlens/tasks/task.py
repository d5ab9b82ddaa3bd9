r"""`Task`: a behaviour to steer towards, and what tells whether a response shows it.

A task is defined in one of three ways:

* by **phrasings** a user would ask for it with, which are appended to base queries (the package's,
  or your own). Phrasings and queries are each divided into `fit`, `select` and `report`
  (`steerlens.tasks.splits`), so nothing is reported on a text that something was chosen by;
* by **pairs** of prompts, with and without whatever asks for the behaviour (`Task.from_pairs`);
* by **choices** between two answers to a question (`Task.from_choices`).

The `check` decides whether a response shows the behaviour: a truth value, or a score from 0 to 1,
which counts as a pass from 0.5 on. Without one, behaviour is measured by causal recovery
(`steerlens.attribution.causal`), and for choices by log odds (`steerlens.attribution.choices`).

>>> pirate = Task(
...     "pirate",
...     phrasings=["Answer like a pirate.", "Talk as a pirate would.", "Use pirate speech."],
...     check=lambda text: "arr" in text.lower(),
... )
>>> pirate
Task('pirate', pairs: 174 fit, 87 select, 87 report; with a check)
>>> pirate.check("Arr, matey!")
True
"""

import hashlib
import json
import os
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerlens.errors import SteerlensError
from steerlens.models.conversations import Prompt, asked_text, with_asked_text
from steerlens.tasks.arguments import fill_template
from steerlens.tasks.choices import ChoiceItem, items_from, read_items
from steerlens.tasks.definitions import described
from steerlens.tasks.queries import SPLITS, BaseQuery, base_queries
from steerlens.tasks.sources import (
    Choices,
    GivenPairs,
    Phrased,
    Source,
    divided_phrasings,
    own_queries,
)
from steerlens.tasks.texts import excerpt, query_list, text_list
from steerlens.tasks.written_checks import PASS, Check, score_of

if TYPE_CHECKING:
    from steerlens.tasks.pairs import ContrastSet

__all__ = ["Task"]

Rewrite = Callable[..., str]


class Task:
    """A behaviour to steer towards.

    Args:
        id: A short name.
        phrasings: Sentences that ask for the behaviour, such as "Answer like a pirate."; a
            ``{name}`` in them is filled from `arguments`. Eight or more are best: a vector is
            fitted on half of them, and the others show whether it holds for other words.
        queries: Requests without the instruction, as texts or conversations; the package's base
            queries by default.
        check: A function of the response, called with the arguments by name, that returns a truth
            value or a score from 0 to 1.
        rewrite: A function of a response, called like `check`, that returns a compliant version.
        arguments: For each ``{name}`` of the phrasings the values to draw from.
        description: What a compliant response looks like, in one line.
        samples: Answers that ``steerlens tasks --check FILE`` shows the scores of.

    Attributes:
        notices: Sentences on what too few texts cost.

    Raises:
        SteerlensError: No phrasing, a text that is empty or given twice, or a query of token ids,
            which no phrasing can be added to.
    """

    group = "own"
    # Whether the check is known to pass some answers and fail others, and has a looser form.
    has_tried_check = has_loose_check = False
    _arguments: dict[str, list[Any]]
    _check: Check | None
    _rewrite: Rewrite | None
    notices: tuple[str, ...]
    samples: tuple[str, ...]

    def __init__(
        self,
        id: str,
        phrasings: Sequence[str],
        queries: Sequence[Prompt] | None = None,
        check: Check | None = None,
        rewrite: Rewrite | None = None,
        *,
        arguments: Mapping[str, Sequence[Any]] | None = None,
        description: str = "",
        samples: Sequence[str] = (),
    ) -> None:
        split_phrasings = divided_phrasings(text_list("phrasing", phrasings))
        own = base_queries if queries is None else own_queries(query_list(queries))
        self._set(id, Phrased(split_phrasings, own, self.instruct, self.sample_kwargs), description)
        self._arguments |= {name: list(values) for name, values in (arguments or {}).items()}
        self._check = _called("check", check)
        self._rewrite = _called("rewrite", rewrite)
        self.samples = tuple(samples)
        if split_phrasings["fit"] == split_phrasings["report"]:
            self.notices += (
                f"task {id!r} has too few phrasings to keep any back ({len(self.phrasings)}): "
                "vectors are fitted and reported on the same words, so nothing shows whether they "
                "hold for others",
            )

    def _set(self, id: str, source: Source, description: str) -> None:
        if not isinstance(id, str) or not id.strip():
            raise SteerlensError(f"a task needs a short name as its id, but was given {id!r}")
        if re.search(r"[/\\\x00-\x1f]|\.\.", id):
            raise SteerlensError(f"the id {id!r} names files, so it may hold no '/', '\\' or '..'")
        self.id, self.description, self.source = id, description, source
        self.samples, self._arguments = (), {}
        self._check = self._rewrite = None
        self.notices = tuple(
            f"task {id!r} has too few texts for a {split!r} split; give at least 8 different ones"
            for split in SPLITS
            if source.n_pairs(split) < 2
        )

    @classmethod
    def from_pairs(
        cls,
        pairs: "str | os.PathLike[str] | ContrastSet",
        check: Check | None = None,
        *,
        id: str | None = None,
        description: str = "",
    ) -> "Task":
        """A task from prompts with and without what asks for the behaviour.

        Args:
            pairs: A ``.jsonl`` or ``.csv`` file (`ContrastSet.from_jsonl`), or the pairs.
            check: As for a task; without one, behaviour is measured by causal recovery.
            id: A short name; the file's by default.
            description: What a compliant response looks like, in one line.

        Raises:
            PairsError: The file cannot be read or a pair is malformed.
        """
        from steerlens.tasks.pairs import ContrastSet  # slow to import

        if not isinstance(pairs, ContrastSet):
            path = Path(pairs)
            id = id or path.stem
            read = ContrastSet.from_csv if path.suffix == ".csv" else ContrastSet.from_jsonl
            pairs = read(path)
        task = cls.__new__(cls)
        task._set(id or "pairs", GivenPairs(pairs), description)
        task.group = "pairs"
        task._check = _called("check", check)
        return task

    @classmethod
    def from_choices(
        cls,
        items: str | os.PathLike[str] | Iterable[ChoiceItem | Mapping[str, Any]],
        *,
        id: str | None = None,
        description: str = "",
    ) -> "Task":
        """A task from questions with an answer that shows the behaviour and one that does not.

        Args:
            items: A file of choices (`steerlens.tasks.choices`), or its records.
            id: A short name; the file's by default.
            description: What the behaviour is, in one line.

        Raises:
            PairsError: The file cannot be read or an item is malformed.
        """
        if isinstance(items, str | os.PathLike):
            id = id or Path(items).stem
            read = read_items(items)
        else:
            read = items_from(items)
        task = cls.__new__(cls)
        task._set(id or "choices", Choices(read), description)
        task.group = "choices"
        return task

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Task) and self.definition == other.definition

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        n_pairs = ", ".join(f"{self.n_pairs(split)} {split}" for split in SPLITS)
        checked = "with a check" if self.has_check else "without a check"
        return f"Task({self.id!r}, pairs: {n_pairs}; {checked})"

    @property
    def phrasings(self) -> tuple[str, ...]:
        """Every phrasing: those to fit on, then to select, then to report."""
        texts = (text for split in SPLITS for text in self.source.phrasings(split))
        return tuple(dict.fromkeys(texts))

    def phrasings_for(self, split: str) -> tuple[str, ...]:
        """The phrasings of one split.

        Raises:
            UnknownNameError: "unknown split …; did you mean …?"
        """
        return self.source.phrasings(split)

    def queries(self, split: str) -> tuple[BaseQuery, ...]:
        """The base queries of one split.

        Raises:
            UnknownNameError: "unknown split …; did you mean …?"
        """
        return self.source.queries(split)

    def n_pairs(self, split: str) -> int:
        """How many contrast pairs a split holds."""
        return self.source.n_pairs(split)

    def items(self, split: str) -> tuple[ChoiceItem, ...]:
        """The choices of one split.

        Raises:
            SteerlensError: The task is not one of choices.
        """
        if not isinstance(self.source, Choices):
            raise SteerlensError(
                f"task {self.id!r} has no choices; Task.from_choices makes a task of them"
            )
        return self.source.items(split)

    def pairs(
        self, n: int, seed: int = 0, split: str = "fit", kwargs: Mapping[str, Any] | None = None
    ) -> "ContrastSet":
        """Contrast pairs; see `steerlens.contrast_pairs`."""
        from steerlens.tasks.pairs import ContrastSet  # slow to import

        drawn = self.source.draw(self.id, n, seed, split, kwargs or {})
        return ContrastSet(drawn, self.id, split, seed)

    def sample_kwargs(self, rng: random.Random, query: BaseQuery) -> dict[str, Any]:
        """Draw the check's arguments for one query."""
        return {name: rng.choice(values) for name, values in self._arguments.items()}

    def wording(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments that are words ("use the word *sea*"): a vector is fitted for each."""
        return {
            name: value
            for name, value in kwargs.items()
            if name in self._arguments and isinstance(value, str)
        }

    def render(self, phrasing: str, kwargs: Mapping[str, Any]) -> str:
        """The phrasing with its `{fields}` filled from the arguments.

        Raises:
            SteerlensError: The arguments lack something the phrasing names.
        """
        return fill_template(phrasing, kwargs)

    def instruct(self, base_query: Prompt, phrasing: str, kwargs: Mapping[str, Any]) -> Prompt:
        """The query followed by the instruction, on a new line if the query has several lines.

        In a conversation the instruction follows the last user's message.
        """
        asked = asked_text(base_query)
        separator = "\n" if "\n" in asked else " "
        instructed = f"{asked}{separator}{self.render(phrasing, kwargs)}"
        return with_asked_text(base_query, instructed)

    @property
    def has_check(self) -> bool:
        """Whether there is a check."""
        return self._check is not None

    def score(self, response: str, **kwargs: Any) -> float:
        """How far the response shows the behaviour, from 0 to 1; a blank one scores 0.

        Raises:
            SteerlensError: The task has no check, or the check raises or returns something that is
                neither a truth value nor a score.
        """
        if self._check is None:
            raise SteerlensError(
                f"task {self.id!r} has no check; give it one, or measure causal recovery instead"
            )
        if not response.strip():
            return 0.0
        try:
            verdict = self._check(response, **kwargs)
        except SteerlensError as error:
            raise type(error)(f"task {self.id!r}: {error}") from error
        except Exception as error:
            raise SteerlensError(
                f"the check of task {self.id!r} raised {type(error).__name__}: {error} "
                f"on the response {excerpt(response)}"
            ) from error
        return score_of(verdict, f"the check of task {self.id!r}")

    def check(
        self, response: str, *, loose: bool = False, prompt: str | None = None, **kwargs: Any
    ) -> bool:
        """Whether the response shows the behaviour: its score is at least 0.5.

        Args:
            response: The model's answer.
            loose: Used by instructions of the catalogue.
            prompt: The user's prompt, for checks that compare with it.
            **kwargs: The check's arguments.
        """
        return self.score(response, **kwargs) >= PASS

    @property
    def has_rewrite(self) -> bool:
        """Whether `rewrite` can turn any response into a compliant one."""
        return self._rewrite is not None

    def rewrite(self, response: str, **kwargs: Any) -> str:
        """A compliant version of `response`; unchanged if it complies.

        Raises:
            SteerlensError: No rewrite, a blank response, or a result that fails the check.
        """
        if not self.has_rewrite:
            raise SteerlensError(
                f"task {self.id!r} has no rewrite; ask the model for compliant responses"
            )
        if not response.strip():
            raise SteerlensError("a blank response cannot be rewritten; give a text with content")
        if self.has_check and self.check(response, **kwargs):
            return response
        rewritten = self._rewritten(response, kwargs)
        if self.has_check and not self.check(rewritten, **kwargs):
            raise SteerlensError(
                f"the response {excerpt(response)} cannot be made to follow {self.id!r}"
                + (f" with {kwargs}" if kwargs else "")
            )
        return rewritten

    def _rewritten(self, response: str, kwargs: Mapping[str, Any]) -> str:
        assert self._rewrite is not None
        rewritten = self._rewrite(response, **kwargs)
        if not isinstance(rewritten, str):
            raise SteerlensError(f"the rewrite of task {self.id!r} returned {rewritten!r}, no text")
        return rewritten

    def limits_length(self, kwargs: Mapping[str, Any]) -> bool:
        """Whether the task limits length from above, which a response cut short cannot meet."""
        return False

    def tokens_to_tell(self, kwargs: Mapping[str, Any]) -> int | None:
        """Tokens after which a response's length can be judged; None if no length is asked for."""
        return None

    @property
    def definition(self) -> dict[str, Any]:
        """What defines the task, as JSON: texts, arguments, and the code of its functions."""
        return {
            "id": self.id,
            **self.source.definition,
            "arguments": self._arguments,
            "check": described(self._check),
            "rewrite": described(self._rewrite),
        }

    @property
    def hash(self) -> str:
        """`"sha256:…"` of `definition`; a run refuses to resume with another one."""
        text = json.dumps(self.definition, sort_keys=True, default=repr)
        return f"sha256:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"


def _called(what: str, function: Any) -> Any:
    if function is not None and not callable(function):
        raise SteerlensError(f"{what} must be a function of the response, but is {function!r}")
    return function
