"""Tokens laid out in lines, as a page would flow them: places for a figure.

Wide characters take two columns, combining ones none. A paragraph whose first strong character is
right-to-left (Unicode rule P2) is laid out from the right.

Caveat: widths are those that Unicode gives (East Asian Width). A font that draws a sequence of
emoji as one picture leaves a gap beside it.

>>> pieces = lay_out(["one", " two\\n", "three"], columns=20)
>>> [(piece.text, piece.line, piece.start) for piece in pieces]
[('one', 0, 0.0), (' two⏎', 0, 3.0), ('three', 1, 0.0)]
"""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from steerlens.views.tokens import visible

__all__ = ["Piece", "lay_out"]


@dataclass(frozen=True)
class Piece:
    """A token, or the part of one on one line, in columns of the fixed-width font."""

    token: int
    text: str
    line: int
    start: float
    width: float


def lay_out(texts: Sequence[str], columns: int = 96) -> list[Piece]:
    """Tokens in lines: broken after a newline, and before a token that does not fit.

    A token wider than a line is broken where the line ends.
    """
    pieces: list[Piece] = []
    line, column = 0, 0.0
    paragraph: list[Piece] = []

    def close() -> None:
        pieces.extend(_mirrored(paragraph, columns) if _is_rtl(paragraph) else paragraph)
        paragraph.clear()

    for token, text in enumerate(texts):
        shown = visible(text)
        lines = shown.split("\n")
        for place, part in enumerate(lines):
            if place:
                close()
                line, column = line + 1, 0.0
            if not part:
                continue
            for chunk in _fitting(part, columns):
                width = _width(chunk)
                if column and column + width > columns:
                    line, column = line + 1, 0.0
                paragraph.append(Piece(token, chunk, line, column, width))
                column += width
    close()
    return pieces


def _fitting(text: str, columns: int) -> Iterable[str]:
    """A token's text in parts no wider than a line; nearly always itself."""
    while _width(text) > columns:
        cut = next(n for n in range(1, len(text) + 1) if _width(text[: n + 1]) > columns)
        yield text[:cut]
        text = text[cut:]
    yield text


def _width(text: str) -> float:
    """Columns that a text takes in a fixed-width font; at least one."""
    if text.isascii():
        return float(len(text))
    return float(max(1, sum(map(_columns, text))))


def _columns(character: str) -> int:
    if unicodedata.combining(character) or unicodedata.category(character) in {"Cf", "Mn"}:
        return 0
    return 2 if unicodedata.east_asian_width(character) in {"W", "F"} else 1


def _is_rtl(paragraph: Sequence[Piece]) -> bool:
    """Whether the first character with a direction is right-to-left (Unicode rule P2)."""
    characters = (character for piece in paragraph for character in piece.text)
    directions = map(unicodedata.bidirectional, characters)
    return next((d for d in directions if d in {"L", "R", "AL"}), "L") != "L"


def _mirrored(paragraph: Sequence[Piece], columns: int) -> list[Piece]:
    return [replace(piece, start=columns - piece.start - piece.width) for piece in paragraph]
