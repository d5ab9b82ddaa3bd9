"""Fields of records that people write: a misspelt one is refused, an unknown one is told of.

A misspelt optional field (``instructed_reponse``) would be dropped in silence, and the experiment
with it. So an unknown field whose name is close to that of a field the record lacks is refused
(`misspelt_field`); any other is ignored with one warning per file (`Foreign`).

>>> misspelt_field({"instructed": "a", "base-query": "b"}, ("instructed", "base_query"))
('base-query', ['base_query'])
>>> misspelt_field({"instructed": "a", "source": "b"}, ("instructed", "base_query"))
"""

import difflib
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from steerlens.errors import SteerlensError, SteerlensWarning

__all__ = ["Foreign", "misspelt_field"]

# Misspellings of optional fields (a letter left out, doubled, swapped or wrong; another case; a
# hyphen for the underscore; a plural) have a ratio of at least 0.83; "id", "source", "category",
# "split", "label", "question" and "response" have at most 0.6 to any field of ours.
CLOSE = 0.7


def misspelt_field(
    record: Iterable[Any], known: Collection[str], foreign: Collection[str] = ()
) -> tuple[str, list[str]] | None:
    """The first field that seems to be another one misspelt, and what it may have meant.

    Args:
        record: The record, or its fields.
        known: Fields that have a meaning.
        foreign: Fields of other tools' files, known to have none here.
    """
    names = [str(name) for name in record]
    lacking = {_normalised(name): name for name in known if name not in names}
    for name in names:
        if name not in known and name not in foreign:
            near = difflib.get_close_matches(_normalised(name), lacking, n=3, cutoff=CLOSE)
            if near:
                return name, [lacking[match] for match in near]
    return None


@dataclass
class Foreign:
    """Refuses misspelt fields of one source's records, and collects those that are ignored.

    Attributes:
        known: Fields that have a meaning.
        foreign: Fields of other tools' files that are ignored without a word.
        ignored: Other fields that were ignored, in the order they came.
    """

    known: Collection[str]
    foreign: Collection[str] = ()
    ignored: dict[str, None] = field(default_factory=dict)

    def check(self, record: Mapping[Any, Any], where: str, error: type[SteerlensError]) -> None:
        """Look at one record; `where` is its place for the message ("pairs.jsonl, line 3").

        Raises:
            SteerlensError: Of the kind `error`: "pairs.jsonl, line 3: unknown field 'base-query';
                did you mean …?".
        """
        misspelt = misspelt_field(record, self.known, self.foreign)
        if misspelt is not None:
            name, near = misspelt
            raise error(
                f"{where}: unknown field {name!r}; did you mean {' or '.join(map(repr, near))}? "
                "Rename it, or leave it out if it is something else"
            )
        names = map(str, record)
        self.ignored |= dict.fromkeys(n for n in names if n not in {*self.known, *self.foreign})

    def warn(self, source: str) -> None:
        """Warn once of what was ignored in this source, if anything was."""
        if self.ignored:
            names = ", ".join(map(repr, list(self.ignored)[:6]))
            names += ", …" if len(self.ignored) > 6 else ""
            warnings.warn(
                f"{source} has fields that mean nothing here and are ignored: {names}; those that "
                f"do are {', '.join(self.known)}",
                SteerlensWarning,
                stacklevel=3,
            )


def _normalised(name: str) -> str:
    return name.strip().casefold().replace("-", "_").replace(" ", "_")
