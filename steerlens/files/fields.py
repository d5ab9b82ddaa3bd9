"""Fields of records that people write: a misspelt one is refused, a foreign one is told of.

A file of pairs or prompts has fields that are needed and fields that are optional. A needed one
that is misspelt is missed; an optional one (``instructed_reponse``) would be dropped in silence,
and with it the experiment. So an unknown field whose name is close to that of a field the record
lacks is refused (`misspelt_field`), and any other is ignored with one warning a file (`Foreign`).

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
_CLOSE = 0.7


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
    lacking = {_plain(name): name for name in known if name not in names}
    for name in names:
        if name not in known and name not in foreign:
            near = difflib.get_close_matches(_plain(name), lacking, n=3, cutoff=_CLOSE)
            if near:
                return name, [lacking[one] for one in near]
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
        """Look at one record.

        Args:
            record: The record.
            where: Where it stands, for the message ("pairs.jsonl, line 3").
            error: The kind of error to raise.

        Raises:
            SteerlensError: "pairs.jsonl, line 3: unknown field 'base-query'; did you mean …?".
        """
        found = misspelt_field(record, self.known, self.foreign)
        if found is not None:
            name, near = found
            meant = " or ".join(repr(one) for one in near)
            raise error(
                f"{where}: unknown field {name!r}; did you mean {meant}? Rename it, or leave it "
                "out if it is something else"
            )
        names = (str(name) for name in record)
        self.ignored |= dict.fromkeys(
            name for name in names if name not in self.known and name not in self.foreign
        )

    def warn(self, source: str) -> None:
        """One warning that names what was ignored, if anything was.

        Args:
            source: What held the fields.
        """
        if self.ignored:
            names = ", ".join(map(repr, list(self.ignored)[:6]))
            names += ", …" if len(self.ignored) > 6 else ""
            warnings.warn(
                f"{source} has fields that mean nothing here and are ignored: {names}; those that "
                f"do are {', '.join(self.known)}",
                SteerlensWarning,
                stacklevel=3,
            )


def _plain(name: str) -> str:
    return name.strip().casefold().replace("-", "_").replace(" ", "_")
