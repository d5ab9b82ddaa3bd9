r"""Where two responses part, and whether they meet again.

Two greedy responses to one prompt share their beginning up to the first token the steering changes.
From there each model reads its own text, and the two may go separate ways or come back to the same
words. The alignment is that of `difflib` over token ids: the longest span in common, then the
longest to its left and to its right, and so on. Texts **meet again** at the first span of at least
`min_shared` tokens after they parted; shorter ones (an article, a comma) are chance.

>>> together = align([1, 2, 3, 4, 5, 6, 7], [1, 9, 3, 4, 5, 6, 8], min_shared=3)
>>> together.parts_at, together.meets_at, together.ends_alike
(1, (2, 2), False)
>>> align([1, 2], [1, 2])
Alignment(the texts are equal)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from steerlens.errors import SteerlensError

__all__ = ["MIN_SHARED", "Alignment", "SharedSpan", "align", "parts_at"]

MIN_SHARED = 5


@dataclass(frozen=True)
class SharedSpan:
    """Tokens that both responses have: where they start in each, and how many they are."""

    baseline: int
    steered: int
    length: int


@dataclass(frozen=True, repr=False)
class Alignment:
    """Two responses side by side; indices count response tokens from 0.

    Attributes:
        n_baseline: Length of the baseline response, in tokens.
        n_steered: Length of the steered one.
        parts_at: First token where they differ; ``None`` when they are equal.
        spans: Everything they have in common, in order, however short.
        min_shared: Tokens a span needs to count as meeting again.
    """

    n_baseline: int
    n_steered: int
    parts_at: int | None
    spans: tuple[SharedSpan, ...]
    min_shared: int

    @property
    def meetings(self) -> tuple[SharedSpan, ...]:
        """The spans after the parting that are long enough to count."""
        if self.parts_at is None:
            return ()
        return tuple(
            span
            for span in self.spans
            if min(span.baseline, span.steered) >= self.parts_at and span.length >= self.min_shared
        )

    @property
    def meets_at(self) -> tuple[int, int] | None:
        """Where they first meet again, in the baseline and in the steered response."""
        return next(((span.baseline, span.steered) for span in self.meetings), None)

    @property
    def ends_alike(self) -> bool:
        """Whether a meeting reaches the end of both responses, or they never parted."""
        return self.parts_at is None or any(
            span.baseline + span.length == self.n_baseline
            and span.steered + span.length == self.n_steered
            for span in self.meetings
        )

    @property
    def similarity(self) -> float:
        """Share of tokens in common spans, 2 · common / (both lengths); 1 for two empty texts."""
        total = self.n_baseline + self.n_steered
        return 2 * sum(span.length for span in self.spans) / total if total else 1.0

    def describe(self) -> str:
        """One sentence, for example ``the texts part at token 3 and do not meet again``."""
        if self.parts_at is None:
            return "the texts are equal"
        if self.meets_at is None:
            return f"the texts part at token {self.parts_at} and do not meet again"
        end = ", to the end" if self.ends_alike else ""
        return (
            f"the texts part at token {self.parts_at}, meet again at {self.meets_at[0]} (baseline) "
            f"and {self.meets_at[1]} (steered){end}"
        )

    def __repr__(self) -> str:
        return f"Alignment({self.describe()})"


def align(
    baseline: Sequence[int], steered: Sequence[int], min_shared: int = MIN_SHARED
) -> Alignment:
    """Align the token ids of two responses.

    Args:
        baseline: Ids of the baseline response.
        steered: Ids of the steered one.
        min_shared: Tokens a span in common needs to count as meeting again.

    Raises:
        SteerlensError: `min_shared` is below 1.
    """
    if min_shared < 1:
        raise SteerlensError(f"min_shared must be at least 1; got {min_shared}")
    # difflib would search inside the shared beginning too, in quadratic time where a long text has
    # few different tokens.
    parted = parts_at(baseline, steered)
    shared = len(baseline) if parted is None else parted
    # autojunk would ignore frequent tokens, which in a text are its words.
    matcher = SequenceMatcher(None, baseline[shared:], steered[shared:], autojunk=False)
    spans = [SharedSpan(0, 0, shared)] if shared else []
    for start, other_start, size in matcher.get_matching_blocks():
        if size:
            spans.append(SharedSpan(shared + start, shared + other_start, size))
    return Alignment(len(baseline), len(steered), parted, tuple(spans), min_shared)


def parts_at(baseline: Sequence[int], steered: Sequence[int]) -> int | None:
    """Index of the first token where two responses differ; ``None`` when they are equal.

    >>> parts_at([5, 6, 7], [5, 8]), parts_at([5], [5, 6]), parts_at([5], [5])
    (1, 1, None)
    """
    shortest = min(len(baseline), len(steered))
    differing = (i for i in range(shortest) if baseline[i] != steered[i])
    return next(differing, None if len(baseline) == len(steered) else shortest)
