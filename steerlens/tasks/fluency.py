r"""Repetition: does a response read as text, or has the model fallen into a loop?

Perplexity alone rewards loops: "the the the …" is easily predicted. So a response is also measured
by its own repetition, on words; in scripts without spaces between words (Chinese, Japanese, Thai,
…) every character is a word here. Case, punctuation and the numbers of list items do not count.

======================== =========================================================================
distinct trigrams        share of different ones among all runs of three words
frequent trigrams        share of runs of three words that occur three times or more
longest repeated span    longest run of words that occurs again after it, as a share of the words
loop                     longest stretch that is one block at least three times in a row ("a b a b
                         a b a"), as a share of the words
counting loop            the same with all numbers alike and eight times ("Step 1: Water. Step 2:
                         Water. …")
character loop           the same on the characters without white space, blocks of 1 to 40, three
                         times ("hahaha…", "**********", "111111")
======================== =========================================================================

**The rule.** A response is *degenerate* when one of these holds:

1. it says nothing: it has no letter and no digit;
2. it ends in 40 or more characters of white space;
3. a loop is more than ¾ of it, or has 12 or more words and either is at least ⅕ of it or is still
   going on at its end;
4. a counting loop of 24 or more words is at least ⅕ of it or is still going on at its end;
5. a character loop has 40 or more characters and is at least ⅓ of it;
6. it has 20 or more trigrams and at least half of them are frequent.

**How the thresholds were set.** By reading 270 different greedy responses of SmolLM2 (256 new
tokens; 12 instructions, unsteered and steered up to six times the gap). The rule flags 197 of them,
of which four are repetitive rather than stuck; of the 73 others two end in a loop too short for it.
It was then tried on text that is not degenerate: of 1,324 prompts of IFEval and its kin it flags
none, of 504 rewrites of 24 fluent responses into the forms of 21 instructions one, of 2,207 pieces
of software documentation of up to 200 words 39, all of them tables, numbers or lists of links.

Caveats: a response that was asked to repeat or to count ("write *hello* 20 times") is degenerate
by this rule, and so is a multiplication table. Nonsense that does not repeat itself is not; that is
what perplexity is for. Words of scripts with vowel signs may be divided at them.

>>> is_degenerate(fluency("The sea is wide. The sea is wide. The sea is wide. The sea is wide."))
True
>>> is_degenerate(fluency("My answer is yes."))
False
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

__all__ = ["Fluency", "fluency", "is_degenerate", "why_degenerate"]

Array = np.ndarray

# Thai, Lao, Tibetan, Burmese, Khmer, Japanese syllables, Chinese characters.
_UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_LETTERS = rf"(?:(?![{_UNSPACED}])[^\W_])+"
_WORD = re.compile(rf"[{_UNSPACED}]|{_LETTERS}(?:['\u2019]{_LETTERS})*")
_ITEM_NUMBER = re.compile(r"^[ \t]*(?:[-*•+]+[ \t]+)?\d+[.)](?=\s)", re.MULTILINE)
_N = 3
_FREQUENT = 3
_LONGEST_BLOCK = 40


@dataclass(frozen=True)
class Fluency:
    """How much a response repeats itself, as in the module's table.

    Attributes:
        n_words: Words; the numbers of list items do not count.
        n_characters: Characters without white space.
        distinct_trigrams: Share, 1 for a response of fewer than three words.
        frequent_trigrams: Share, 0 for a response of fewer than three words.
        repeated_span: Share of the words, at most ½.
        loop: Words in the longest loop; `final_loop` of those that go on to the end.
        counting_loop: The same for counting loops; likewise `final_counting_loop`.
        character_loop: Characters in the longest character loop.
        final_blanks: Characters of white space at the end.
        says_something: Whether there is a letter or a digit.
    """

    n_words: int
    n_characters: int
    distinct_trigrams: float
    frequent_trigrams: float
    repeated_span: float
    loop: int
    final_loop: int
    counting_loop: int
    final_counting_loop: int
    character_loop: int
    final_blanks: int
    says_something: bool


def fluency(response: str) -> Fluency:
    """Measure the repetition in a response; any text, also an empty one."""
    words = _WORD.findall(_ITEM_NUMBER.sub("", response.casefold()))
    characters = re.sub(r"\s", "", response.casefold())
    exact = _repeats(words, copies=3)
    counting = _repeats(["0" if word.isdecimal() else word for word in words], copies=8)
    trigrams = Counter(zip(*(words[i:] for i in range(_N)), strict=False))
    n_trigrams = max(trigrams.total(), 1)
    frequent = sum(times for times in trigrams.values() if times >= _FREQUENT)
    return Fluency(
        n_words=len(words),
        n_characters=len(characters),
        distinct_trigrams=len(trigrams) / n_trigrams if trigrams else 1.0,
        frequent_trigrams=frequent / n_trigrams,
        repeated_span=exact.span / max(len(words), 1),
        loop=exact.loop,
        final_loop=exact.final_loop,
        counting_loop=counting.loop,
        final_counting_loop=counting.final_loop,
        character_loop=_repeats(characters, copies=3, longest_block=_LONGEST_BLOCK).loop,
        final_blanks=len(response) - len(response.rstrip()),
        says_something=any(character.isalnum() for character in response),
    )


def why_degenerate(measured: Fluency) -> str | None:
    """Which clause of the module's rule a response meets, in words; None when none."""
    fifth = measured.n_words / 5
    if not measured.says_something:
        return "says nothing"
    if measured.final_blanks >= 40:
        return "ends in blanks"
    if measured.loop > 0.75 * measured.n_words:
        return "is one loop"
    if measured.final_loop >= 12 or measured.loop >= max(12, fifth):
        return "loops"
    if measured.final_counting_loop >= 24 or measured.counting_loop >= max(24, fifth):
        return "only counts on"
    if measured.character_loop >= max(40, measured.n_characters / 3):
        return "loops in its characters"
    if measured.n_words >= 20 + _N - 1 and measured.frequent_trigrams >= 0.5:
        return "repeats the same phrases"
    return None


def is_degenerate(measured: Fluency) -> bool:
    """Whether a response is degenerate by the module's rule.

    >>> is_degenerate(fluency(""))
    True
    """
    return why_degenerate(measured) is not None


class _Repeats(NamedTuple):
    """Longest repeated span, loop, and loop at the end, in items."""

    span: int
    loop: int
    final_loop: int


def _repeats(items: Sequence[str], copies: int, longest_block: int | None = None) -> _Repeats:
    """Compare the sequence with itself shifted by every lag.

    Items that equal those `lag` earlier, `run` times in a row, are a span of `run` items that
    occurs twice and, from `(copies − 1)·lag` on, a loop of `run + lag` items.
    """
    number: dict[str, int] = {}
    codes = np.array([number.setdefault(item, len(number)) for item in items], dtype=np.int64)
    n = len(codes)
    span = loop = final_loop = 0
    for lag in range(1, min(n - 1, longest_block or n) + 1):
        longest, final = _runs(codes[lag:] == codes[:-lag])
        # Beyond `lag` items the second occurrence would overlap the first.
        span = max(span, min(longest, lag))
        if longest >= (copies - 1) * lag:
            loop = max(loop, longest + lag)
        if final >= (copies - 1) * lag:
            final_loop = max(final_loop, final + lag)
    return _Repeats(span, loop, final_loop)


def _runs(equal: Bool[Array, "item"]) -> tuple[int, int]:
    """Length of the longest run of True, and of the run at the end."""
    breaks = np.flatnonzero(np.concatenate(([True], ~equal, [True])))
    lengths = np.diff(breaks) - 1
    return int(lengths.max()), int(lengths[-1])
