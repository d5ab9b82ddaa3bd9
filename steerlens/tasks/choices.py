r"""Choices: questions with one answer that shows a behaviour and one that does not.

The form is that of Anthropic's model-written evaluations (Perez et al., arXiv 2212.09251) and of
contrastive activation addition (Rimsky et al., arXiv 2312.06681). A file has one JSON object per
line:

    {"question": "…\n\nChoices:\n (A) Yes\n (B) No",
     "answer_matching_behavior": " (A)", "answer_not_matching_behavior": " (B)"}

A contrast pair is the question followed by either answer. Activations are read at the first token
at which the two answers differ (position ``"answer"``), and behaviour is measured there without
generating text.

**Balance.** Models prefer a letter whatever it stands for. Where both answers are lettered choices
of the question, the texts of the two are exchanged in some items, so that the matching answer comes
first in half of the items of each split. Other questions (yes or no to a statement) stay as they
are.

>>> item = ChoiceItem("Stay on?\n\nChoices:\n (A) Yes\n (B) No", " (A)", " (B)")
>>> print(item.exchanged().question.splitlines()[-1], item.exchanged().matching)
 (B) Yes  (B)
"""

import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerlens.errors import PairsError, SteerlensWarning

if TYPE_CHECKING:
    from steerlens.files.fields import Foreign

__all__ = ["ChoiceItem", "balanced", "items_from", "read_items"]

_FIELDS = ("question", "answer_matching_behavior", "answer_not_matching_behavior")


@dataclass(frozen=True)
class ChoiceItem:
    """One question with two answers.

    Attributes:
        question: What the user asks.
        matching: The answer that shows the behaviour.
        other: The answer that does not.
    """

    question: str
    matching: str
    other: str

    def __post_init__(self) -> None:
        for name in ("question", "matching", "other"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise PairsError(f"the {name} of a choice must be a text, but is {value!r}")
        if self.matching.strip() == self.other.strip():
            raise PairsError(
                f"the two answers to {_excerpt(self.question)} are the same, {self.matching!r}"
            )

    @property
    def _lines(self) -> tuple[re.Match[str], re.Match[str]] | None:
        """The lines of the question that the two answers are letters of."""
        found = [_choice_line(self.question, answer) for answer in (self.matching, self.other)]
        return None if None in found else (found[0], found[1])  # type: ignore[return-value]

    @property
    def is_lettered(self) -> bool:
        """Whether both answers name a choice that the question lists."""
        return self._lines is not None

    @property
    def matching_is_first(self) -> bool:
        """Whether the matching answer is listed before the other one; lettered choices only."""
        lines = self._lines
        return lines is not None and lines[0].start() < lines[1].start()

    def exchanged(self) -> "ChoiceItem":
        """The same item with the texts of its two choices exchanged; others are returned as is."""
        lines = self._lines
        if lines is None:
            return self
        first, second = sorted(lines, key=lambda line: line.start())
        text = self.question
        question = (
            text[: first.start(1)]
            + second.group(1)
            + text[first.end(1) : second.start(1)]
            + first.group(1)
            + text[second.end(1) :]
        )
        return ChoiceItem(question, self.other, self.matching)


def balanced(items: Sequence[ChoiceItem]) -> tuple[ChoiceItem, ...]:
    """The items, with the matching answer first in every other lettered one."""
    result, wants_first = [], True
    for item in items:
        if item.is_lettered:
            item = item if item.matching_is_first == wants_first else item.exchanged()
            wants_first = not wants_first
        result.append(item)
    return tuple(result)


def read_items(path: str | os.PathLike[str]) -> tuple[ChoiceItem, ...]:
    """Items from a file with one JSON object per line; blank lines are skipped.

    Raises:
        PairsError: The file is missing, not UTF-8 or not JSON, or an item is malformed; file and
            line are named.
    """
    from steerlens.files.records import jsonl_records, read_text  # slow to import

    file = Path(path)
    records = jsonl_records(file, read_text(file, "choices", PairsError), PairsError)
    return _items(records, f"{file}, line", f"the choices file {file}")


def items_from(records: Iterable[ChoiceItem | Mapping[str, Any]]) -> tuple[ChoiceItem, ...]:
    """Items from mappings with the fields of a file, or items as they are.

    Raises:
        PairsError: An item is malformed; its row is named, counted from 1.
    """
    return _items(enumerate(records, 1), "row", "the list of choices")


def _items(
    records: Iterable[tuple[int, object]], place: str, source: str
) -> tuple[ChoiceItem, ...]:
    from steerlens.files.fields import Foreign  # slow to import

    fields = Foreign(_FIELDS)
    items: dict[ChoiceItem, str] = {}
    n_read = 0
    for number, record in records:
        where = f"{place} {number}"
        n_read += 1
        item = record if isinstance(record, ChoiceItem) else _item(record, where, fields)
        contrary = ChoiceItem(item.question, item.other, item.matching)
        if contrary in items:
            raise PairsError(
                f"{where}: {_excerpt(item.question)} is asked again with its answers exchanged "
                f"({items[contrary]}), so either answer would match; keep one of the two"
            )
        items.setdefault(item, where)
    fields.warn(source)
    if len(items) < 2:
        raise PairsError(f"{source} has {len(items)} different items; at least 2 are needed")
    if len(items) < n_read:
        warnings.warn(
            f"{n_read - len(items)} of {n_read} items of {source} repeat another one word for word "
            "and are left out",
            SteerlensWarning,
            stacklevel=4,
        )
    return tuple(items)


def _item(record: object, where: str, fields: "Foreign") -> ChoiceItem:
    if not isinstance(record, Mapping):
        raise PairsError(f"{where}: an object with the fields {', '.join(_FIELDS)} is needed")
    for name in _FIELDS:
        if record.get(name) is None:
            present = ", ".join(repr(str(key)) for key in record) or "none"
            raise PairsError(f"{where}: the field {name!r} is missing (fields: {present})")
    fields.check(record, where, PairsError)
    try:
        return ChoiceItem(*(record[name] for name in _FIELDS))
    except PairsError as error:
        raise PairsError(f"{where}: {error}") from error


def _choice_line(question: str, answer: str) -> re.Match[str] | None:
    """The text of the choice that an answer such as " (A)" names, as group 1."""
    letter = re.fullmatch(r"\s*\(?([A-Za-z0-9])[).]?\s*", answer)
    if letter is None:
        return None
    mark = re.escape(letter.group(1))
    return re.search(rf"^[ \t]*\(?{mark}[).][ \t]+(.+?)[ \t]*$", question, re.MULTILINE)


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
