"""How candidates are compared: what they pass, and what they cost in fluency.

A response **succeeds** when it passes the task's loose check and is not degenerate; one that was
cut does not pass a task that limits its length (`Task.limits_length`). In early stages, where
responses are cut short, candidates are ranked by successes, then by fewer degenerate responses,
then by the cheap evidence.

In the final stage a candidate is **allowed** when it passes more prompts than no steering does, and
its median judge perplexity stays within the limit (the perplexity filter of Stolfo et al. 2025,
§4.1, made relative to no steering). Among those the **worth** decides, and must exceed that of no
steering: passes, minus the degenerate responses beyond those of no steering times their price.

Why a price and not a limit: with two dozen prompts one more degenerate response is four points, so
a limit of a few points would by chance drop most of what works; and a small model that falls into
loops anyway could not be steered at all.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from steerlens.behaviour.answers import Answer
from steerlens.behaviour.plans.candidates import Candidate, describe, to_json
from steerlens.models.conversations import asked_text
from steerlens.stats.rates import Interval, best_of_many, score_interval
from steerlens.tasks import Task
from steerlens.tasks.checks import follows
from steerlens.tasks.fluency import fluency, is_degenerate
from steerlens.tasks.pairs import ContrastPair

__all__ = [
    "Ranked",
    "Score",
    "choose",
    "gains",
    "is_allowed",
    "judged",
    "leading",
    "ranked",
    "scored",
    "worth",
]


@runtime_checkable
class Ranked(Protocol):
    """What candidates are ordered by."""

    @property
    def candidate(self) -> Candidate:
        """What was applied."""

    @property
    def rank_key(self) -> tuple[float, ...]:
        """Smaller is better."""


@dataclass(frozen=True, eq=False)
class Score:
    """A candidate's responses, judged.

    Attributes:
        candidate: What was applied.
        passed: For each response, whether the loose check passes.
        degenerate: For each response, whether it is degenerate.
        n_tokens: Tokens of all responses.
        perplexity: Median under the judge; ``None`` without one, and for what passes no more
            prompts than no steering, which cannot be chosen anyway.
        evidence: The cheap evidence for it, where there is some.
        samples: Responses per prompt, which stand side by side.
    """

    candidate: Candidate
    passed: tuple[bool, ...]
    degenerate: tuple[bool, ...]
    n_tokens: int
    perplexity: float | None = None
    evidence: float | None = None
    samples: int = 1

    @property
    def n_prompts(self) -> int:
        """How many prompts were answered."""
        return len(self.passed) // self.samples

    @property
    def successes(self) -> tuple[bool, ...]:
        """Passed and not degenerate, by response."""
        return tuple(p and not d for p, d in zip(self.passed, self.degenerate, strict=True))

    @property
    def rate(self) -> float:
        """Share of responses that pass."""
        return sum(self.passed) / len(self.passed)

    @property
    def degenerate_share(self) -> float:
        """Share of responses that are degenerate."""
        return sum(self.degenerate) / len(self.degenerate)

    @property
    def rank_key(self) -> tuple[float, float, float]:
        """Smaller is better."""
        n = len(self.passed)
        return -sum(self.successes) / n, self.degenerate_share, -(self.evidence or 0.0)

    def to_json(self, stage: str) -> dict[str, Any]:
        """A row of the searched table."""
        return {
            "stage": stage,
            "setting": describe(self.candidate),
            "parts": to_json(self.candidate),
            "n": len(self.passed),
            "passed": sum(self.passed),
            "successes": sum(self.successes),
            "degenerate": sum(self.degenerate),
            "perplexity": None if self.perplexity is None else round(self.perplexity, 3),
            "evidence": None if self.evidence is None else round(self.evidence, 4),
        }


def scored(
    candidate: Candidate,
    task: Task,
    pairs: Sequence[ContrastPair],
    answers: Sequence[Answer],
    evidence: float | None = None,
) -> Score:
    """Check the answers to the pairs' prompts, the same number to each, side by side."""
    samples = len(answers) // len(pairs)
    prompts = [pair for pair in pairs for _ in range(samples)]
    return Score(
        candidate=candidate,
        passed=tuple(
            follows(task, answer.text, pair.kwargs, asked_text(pair.instructed), loose=True)
            and not (answer.finish_reason == "length" and task.limits_length(pair.kwargs))
            for answer, pair in zip(answers, prompts, strict=True)
        ),
        degenerate=tuple(is_degenerate(fluency(answer.text)) for answer in answers),
        n_tokens=sum(answer.n_tokens for answer in answers),
        evidence=evidence,
        samples=samples,
    )


def judged(score: Score, perplexities: Sequence[float | None]) -> Score:
    """The score with the median of its responses' perplexities; blank responses have none."""
    known = [value for value in perplexities if value is not None]
    return replace(score, perplexity=statistics.median(known) if known else None)


def gains(score: Score, baseline: Score) -> bool:
    """Whether more of a candidate's responses pass than without steering."""
    return sum(score.passed) > sum(baseline.passed)


def is_allowed(score: Score, baseline: Score, most_perplexity: float) -> bool:
    """Whether a candidate gains anything and reads well enough, relative to no steering."""
    if not gains(score, baseline):
        return False
    if score.perplexity is None or baseline.perplexity is None:
        return True
    return score.perplexity <= most_perplexity * baseline.perplexity


def worth(score: Score, baseline: Score, price: float) -> list[float]:
    """For each response its pass, minus the price of a degenerate one where there was none.

    A degenerate response that is gone counts as gained; the sum decides.
    """
    sides = zip(score.passed, score.degenerate, baseline.degenerate, strict=True)
    return [passed - price * (now - before) for passed, now, before in sides]


def choose(
    scores: Sequence[Score], most_perplexity: float, price: float, seed: int = 0
) -> tuple[Score, Interval, int]:
    """The winner among a last stage's candidates, the first of which is no steering.

    A perfect tie goes to the first: no steering, then the candidate ranked higher before.

    Args:
        scores: On the same prompts; no steering first.
        most_perplexity: See `steerlens.behaviour.search.settings.SearchSettings`.
        price: Of a degenerate response, in passes.
        seed: Of the bootstrap that corrects the winner's rate.

    Returns:
        The winner, its rate corrected for having been chosen, and how many were allowed. If its
        corrected rate is not above that of no steering, it gained by the luck of being chosen, and
        no steering wins.
    """
    baseline = scores[0]
    allowed = [
        score
        for score in scores
        if score is baseline or is_allowed(score, baseline, most_perplexity)
    ]
    shape = len(allowed), baseline.n_prompts, baseline.samples
    passes = np.array([score.passed for score in allowed], dtype=float)
    worths = np.array([worth(score, baseline, price) for score in allowed])
    choosing = best_of_many(
        passes.reshape(shape).mean(-1), seed=seed, worth=worths.reshape(shape).mean(-1)
    )
    winner, corrected = allowed[choosing.chosen], choosing.corrected
    if winner is not baseline and corrected.value <= baseline.rate:
        winner, corrected = baseline, score_interval(baseline.rate, baseline.n_prompts)
    return winner, corrected, len(allowed)


def ranked(scores: Sequence[Ranked]) -> list[Candidate]:
    """Candidates, the best first."""
    return [score.candidate for score in sorted(scores, key=lambda score: score.rank_key)]


def leading(scores: Sequence[Ranked], n: int) -> list[Candidate]:
    """The best, and among them the best of every estimator."""
    ordered = ranked(scores)
    leaders = {candidate[0].estimator: candidate for candidate in reversed(ordered)}
    missing = [leader for leader in leaders.values() if leader not in ordered[:n]]
    return [*ordered[: max(n - len(missing), 0)], *missing]
