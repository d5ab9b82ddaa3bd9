r"""Where two responses part, and whether they meet again.

Two greedy responses to one prompt share their beginning up to the first token the steering
changes. From there each model reads its own text, and the two may go separate ways, or come back to
the same words. The alignment is that of `difflib` over token ids: the longest common run, then the
longest to its left and to its right, and so on. Texts **meet again** at the first common run of at
least `min_run` tokens after they parted; shorter ones (an article, a comma) are chance.

>>> together = align([1, 2, 3, 4, 5, 6, 7], [1, 9, 3, 4, 5, 6, 8], min_run=3)
>>> together.parts_at, together.meets_at, together.ends_alike
(1, (2, 2), False)
>>> align([1, 2], [1, 2])
Alignment(the texts are equal)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from steerlens.errors import SteerlensError

__all__ = ["MIN_RUN", "Alignment", "Run", "align", "parts_at"]

MIN_RUN = 5


@dataclass(frozen=True)
class Run:
    """Tokens that both responses have.

    Attributes:
        baseline: Where the run starts in the baseline response.
        steered: Where it starts in the steered one.
        length: How many tokens.
    """

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
        runs: Everything they have in common, in order, however short.
        min_run: Tokens a run needs to count as meeting again.
    """

    n_baseline: int
    n_steered: int
    parts_at: int | None
    runs: tuple[Run, ...]
    min_run: int

    @property
    def meetings(self) -> tuple[Run, ...]:
        """The runs after the parting that are long enough to count."""
        if self.parts_at is None:
            return ()
        return tuple(
            run
            for run in self.runs
            if min(run.baseline, run.steered) >= self.parts_at and run.length >= self.min_run
        )

    @property
    def meets_at(self) -> tuple[int, int] | None:
        """Where they first meet again, in the baseline and in the steered response."""
        return next(((run.baseline, run.steered) for run in self.meetings), None)

    @property
    def ends_alike(self) -> bool:
        """Whether a meeting reaches the end of both responses, or they never parted."""
        return self.parts_at is None or any(
            run.baseline + run.length == self.n_baseline
            and run.steered + run.length == self.n_steered
            for run in self.meetings
        )

    @property
    def similarity(self) -> float:
        """Share of tokens in common runs, 2 · common / (both lengths); 1 for two empty texts."""
        total = self.n_baseline + self.n_steered
        return 2 * sum(run.length for run in self.runs) / total if total else 1.0

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


def align(baseline: Sequence[int], steered: Sequence[int], min_run: int = MIN_RUN) -> Alignment:
    """Align two responses.

    Args:
        baseline: Token ids of the one.
        steered: Token ids of the other.
        min_run: Tokens a common run needs to count as meeting again.

    Raises:
        SteerlensError: `min_run` is below 1.
    """
    if min_run < 1:
        raise SteerlensError(f"min_run must be at least 1; got {min_run}")
    # difflib would search for common runs inside what is equal from the start, for long texts of
    # few different tokens in quadratic time.
    parted = parts_at(baseline, steered)
    shared = len(baseline) if parted is None else parted
    # autojunk would ignore frequent tokens, which in a text are its words.
    matcher = SequenceMatcher(None, baseline[shared:], steered[shared:], autojunk=False)
    runs = [Run(0, 0, shared)] if shared else []
    for block in matcher.get_matching_blocks():
        if block.size:
            runs.append(Run(shared + block.a, shared + block.b, block.size))
    return Alignment(len(baseline), len(steered), parted, tuple(runs), min_run)


def parts_at(baseline: Sequence[int], steered: Sequence[int]) -> int | None:
    """Index of the first token where two responses differ; ``None`` when they are equal.

    >>> parts_at([5, 6, 7], [5, 8]), parts_at([5], [5, 6]), parts_at([5], [5])
    (1, 1, None)
    """
    for i, (one, other) in enumerate(zip(baseline, steered, strict=False)):
        if one != other:
            return i
    return None if len(baseline) == len(steered) else min(len(baseline), len(steered))
