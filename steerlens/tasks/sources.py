"""What a task's contrast pairs are drawn from: phrasings and queries, pairs, or choices.

Each source divides its texts into the splits and draws pairs from one of them. Drawing is
deterministic: pair *i* for a seed is the same on every machine, and the pairs for n are the first n
of those for any larger n.
"""

import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from steerlens.errors import PairsError, unknown_name
from steerlens.models.conversations import Prompt, users_text
from steerlens.tasks.choices import ChoiceItem, balanced
from steerlens.tasks.queries import SPLITS, BaseQuery
from steerlens.tasks.splits import divide

if TYPE_CHECKING:
    from steerlens.tasks.pairs import ContrastPair, ContrastSet

__all__ = [
    "Choices",
    "GivenPairs",
    "Instruct",
    "Phrased",
    "Source",
    "checked_split",
    "divided_phrasings",
    "own_queries",
]

# The instructed prompt for a query, in a phrasing, with arguments.
Instruct = Callable[[Prompt, str, Mapping[str, Any]], Prompt]
SampleKwargs = Callable[[random.Random, BaseQuery], Mapping[str, Any]]


@runtime_checkable
class Source(Protocol):
    """Divides its texts into splits, and draws contrast pairs from one of them."""

    def phrasings(self, split: str) -> tuple[str, ...]:
        """Phrasings of one split; none where prompts say it in their own words."""

    def queries(self, split: str) -> tuple[BaseQuery, ...]:
        """Uninstructed prompts of one split."""

    def n_pairs(self, split: str) -> int:
        """How many contrast pairs a split holds."""

    def draw(
        self,
        name: str,
        n: int,
        seed: int,
        split: str,
        kwargs: Mapping[str, Any],
    ) -> tuple["ContrastPair", ...]:
        """Draw `n` pairs."""

    @property
    def definition(self) -> dict[str, Any]:
        """Its texts, as JSON."""


class Phrased:
    """Phrasings that are appended to base queries.

    Args:
        split_phrasings: Split -> phrasings.
        queries_of: Gives the queries of a split.
        instruct: Joins a query and a phrasing.
        sample_kwargs: Draws arguments for a query.
    """

    def __init__(
        self,
        split_phrasings: Mapping[str, tuple[str, ...]],
        queries_of: Callable[[str], tuple[BaseQuery, ...]],
        instruct: Instruct,
        sample_kwargs: SampleKwargs,
    ) -> None:
        self._phrasings = split_phrasings
        self._queries_of = queries_of
        self._instruct = instruct
        self._sample_kwargs = sample_kwargs

    def phrasings(self, split: str) -> tuple[str, ...]:
        return self._phrasings.get(checked_split(split), ())

    def queries(self, split: str) -> tuple[BaseQuery, ...]:
        return self._queries_of(checked_split(split))

    def n_pairs(self, split: str) -> int:
        return len(self.queries(split)) * len(self.phrasings(split))

    def draw(
        self, name: str, n: int, seed: int, split: str, kwargs: Mapping[str, Any]
    ) -> tuple["ContrastPair", ...]:
        from steerlens.tasks.pairs import ContrastPair  # slow to import

        queries, phrasings = list(self.queries(split)), list(self.phrasings(split))
        what = f"{len(queries)} queries x {len(phrasings)} phrasings"
        check_size(name, n, self.n_pairs(split), split, what)
        # Strings seed `random` alike on every machine and in every process.
        random.Random(f"{seed}/{split}").shuffle(queries)
        rng = random.Random(f"{seed}/{split}/{name}")
        rng.shuffle(phrasings)
        pairs = []
        for i in range(n):
            # Round r gives query k the phrasing k + r: phrasings are balanced, and no combination
            # repeats.
            round_, k = divmod(i, len(queries))
            phrasing = phrasings[(k + round_) % len(phrasings)]
            drawn = {**self._sample_kwargs(rng, queries[k]), **kwargs}
            text = queries[k].text
            instructed = self._instruct(text, phrasing, drawn)
            pairs.append(ContrastPair(instructed, text, phrasing=phrasing, kwargs=drawn))
        return tuple(pairs)

    @property
    def definition(self) -> dict[str, Any]:
        return {
            "phrasings": {split: list(self.phrasings(split)) for split in SPLITS},
            "queries": {split: [query.text for query in self.queries(split)] for split in SPLITS},
        }


class GivenPairs:
    """Pairs of prompts as they were given."""

    def __init__(self, pairs: "ContrastSet") -> None:
        parts = divide([pair.base_query for pair in pairs])
        self._pairs = {split: tuple(pairs[i] for i in parts[split]) for split in SPLITS}

    def phrasings(self, split: str) -> tuple[str, ...]:
        checked_split(split)
        return ()

    def queries(self, split: str) -> tuple[BaseQuery, ...]:
        prompts = dict.fromkeys(pair.uninstructed for pair in self._pairs[checked_split(split)])
        return tuple(BaseQuery(prompt, "own", (), split) for prompt in prompts)

    def n_pairs(self, split: str) -> int:
        return len(self._pairs[checked_split(split)])

    def draw(
        self, name: str, n: int, seed: int, split: str, kwargs: Mapping[str, Any]
    ) -> tuple["ContrastPair", ...]:
        refuse_arguments(name, kwargs)
        pairs = list(self._pairs[checked_split(split)])
        check_size(name, n, len(pairs), split, "its pairs")
        random.Random(f"{seed}/{split}").shuffle(pairs)
        return tuple(pairs[:n])

    @property
    def definition(self) -> dict[str, Any]:
        return {
            "pairs": {
                split: [dataclasses.asdict(pair) for pair in self._pairs[split]] for split in SPLITS
            }
        }


class Choices:
    """Questions with either of two answers, the order of the choices balanced in each split."""

    def __init__(self, items: Sequence[ChoiceItem]) -> None:
        parts = divide([item.question for item in items])
        self._items = {split: balanced([items[i] for i in parts[split]]) for split in SPLITS}

    def items(self, split: str) -> tuple[ChoiceItem, ...]:
        """The items of one split."""
        return self._items[checked_split(split)]

    def phrasings(self, split: str) -> tuple[str, ...]:
        checked_split(split)
        return ()

    def queries(self, split: str) -> tuple[BaseQuery, ...]:
        return tuple(BaseQuery(item.question, "own", (), split) for item in self.items(split))

    def n_pairs(self, split: str) -> int:
        return len(self.items(split))

    def draw(
        self, name: str, n: int, seed: int, split: str, kwargs: Mapping[str, Any]
    ) -> tuple["ContrastPair", ...]:
        from steerlens.tasks.pairs import ContrastPair  # slow to import

        refuse_arguments(name, kwargs)
        items = list(self.items(split))
        check_size(name, n, len(items), split, "its choices")
        random.Random(f"{seed}/{split}").shuffle(items)
        return tuple(
            ContrastPair(
                item.question,
                item.question,
                instructed_response=item.matching.strip(),
                uninstructed_response=item.other.strip(),
            )
            for item in items[:n]
        )

    @property
    def definition(self) -> dict[str, Any]:
        return {
            "choices": {
                split: [[item.question, item.matching, item.other] for item in self._items[split]]
                for split in SPLITS
            }
        }


def checked_split(split: str) -> str:
    """The split, if there is one of that name.

    Raises:
        UnknownNameError: "unknown split …; did you mean …?"
    """
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    return split


def refuse_arguments(name: str, kwargs: Mapping[str, Any]) -> None:
    """Pairs and choices say everything in their own words.

    Raises:
        PairsError: "task … takes no arguments …".
    """
    if kwargs:
        raise PairsError(f"task {name!r} takes no arguments, but was given {dict(kwargs)}")


def check_size(name: str, n: int, maximum: int, split: str, of_what: str) -> None:
    """Refuse to draw fewer than 2 pairs, or more than the split holds.

    Raises:
        PairsError: "300 contrast pairs were asked for; …".
    """
    if maximum < 2:
        raise PairsError(
            f"the {split!r} split of {name!r} holds {maximum} contrast pairs ({of_what}), and at "
            "least 2 are needed; give more texts that differ"
        )
    if not 2 <= n <= maximum:
        raise PairsError(
            f"{n} contrast pairs were asked for; the {split!r} split of {name!r} gives 2 to "
            f"{maximum} ({of_what})"
        )


def divided_phrasings(phrasings: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The phrasings of each split; the same for all where there are too few to divide."""
    parts = divide(phrasings)
    if not all(parts.values()):
        return dict.fromkeys(SPLITS, tuple(phrasings))
    return {split: tuple(phrasings[i] for i in parts[split]) for split in SPLITS}


def own_queries(queries: Sequence[Prompt]) -> Callable[[str], tuple[BaseQuery, ...]]:
    """Gives the queries of a split, divided."""
    parts = divide([users_text(query) for query in queries])
    return {
        split: tuple(BaseQuery(queries[i], "own", (), split) for i in parts[split])
        for split in SPLITS
    }.__getitem__
