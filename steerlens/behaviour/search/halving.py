"""Successive halving for one instruction: broad and short, then narrow, then in full.

1. **Evidence.** Vectors by every estimator (`steerlens.behaviour.plans.fitting`); first-token
   causal recovery of the ``last_prompt`` vector at every other layer, on pairs of the ``select``
   split.
2. **Broad.** Every first candidate (`steerlens.behaviour.search.space`) answers a few ``select``
   prompts.
3. **Narrow.** The better ones, at least one for each estimator, and the neighbours of the best two
   answer more prompts at greater length.
4. **Final.** The best, their combinations, and no steering answer all prompts in full; the winner
   is the choice for prompts without the instruction. When nothing has succeeded on any prompt so
   far, no steering stands alone.
5. **With the instruction.** What is best there need not be best here: the leading settings, each
   also at half strength, answer the narrow stage's prompts *with* the instruction, and the better
   ones all of them, against no steering, for the other choice.

For instructions about length, responses are as long in every stage as it takes to tell whether they
comply, and the judge reads no more of any response than that: the beginning of a text surprises a
judge more than its rest, which would speak against all that is short.

A stage is one stream of rows through the engine: every candidate × every prompt.

The rate of a winner chosen on the prompts that are counted is too high; the plan gives it corrected
by the bootstrap (`steerlens.stats.rates.best_of_many`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steerlens.attribution import first_token_recovery
from steerlens.behaviour.answers import Question
from steerlens.behaviour.judge import Judge
from steerlens.behaviour.plans.fitting import VectorBook
from steerlens.behaviour.plans.settings import NO_STEERING, Candidate
from steerlens.behaviour.search.scoring import Score, choose, gains, judged, scored
from steerlens.behaviour.search.settings import SearchSettings, Stage
from steerlens.behaviour.search.space import (
    combinations,
    first_candidates,
    instructed_candidates,
    neighbours,
)
from steerlens.errors import SteeringError
from steerlens.stats.rates import wilson
from steerlens.tasks import Task
from steerlens.tasks.pairs import ContrastPair, contrast_pairs
from steerlens.vectors import SteeringVector

__all__ = ["Found", "search_instruction"]

_EVERY = 2
_N_REFINED = 2
_N_INSTRUCTED = 3
_WITH_INSTRUCTION = ("instructed narrow", "instructed")


@dataclass(frozen=True, eq=False)
class Found:
    """What a search found for one instruction.

    Attributes:
        record: Its entry in ``plan.json``.
        vectors: The fitted vectors, by estimator; empty when they depend on words.
    """

    record: dict[str, Any]
    vectors: Mapping[str, SteeringVector]


def search_instruction(
    book: VectorBook, task: Task, settings: SearchSettings, judge: Judge | None = None
) -> Found:
    """Choose where and how hard to steer for one instruction.

    Args:
        book: Fits vectors and answers prompts.
        task: The instruction.
        settings: How much to try.
        judge: Scores fluency in the final stage; ``None`` leaves repetition as the only measure.
    """
    return _Search(book, task, settings, judge).run()


class _Search:
    """One search; its parts share prompts, vectors and the table of what was tried."""

    def __init__(
        self, book: VectorBook, task: Task, settings: SearchSettings, judge: Judge | None
    ) -> None:
        self.book = book
        self.task = task
        self.settings = settings
        self.judge = judge
        n = min(settings.final.n_prompts, len(task.queries("select")))
        self.pairs = list(contrast_pairs(task, n=n, seed=settings.seed, split="select"))
        self.by_words = any(task.wording(pair.kwargs) for pair in self.pairs)
        self.tokens_to_tell = max(task.tokens_to_tell(pair.kwargs) or 0 for pair in self.pairs)
        self.table: list[dict[str, Any]] = []
        self.n_tokens = 0
        self.n_layers = book.model.cfg.n_layers

    def run(self) -> Found:
        """All stages."""
        vectors, problems = self.book.available(self.task, self.pairs[0].kwargs)
        recovery = self._recovery(vectors)
        first = first_candidates(list(vectors), self.n_layers, recovery)
        broad = self._stage("broad", first, self.settings.broad, recovery)
        kept = _kept(broad, self.settings.broad.n_kept)
        near = [near for one in kept[:_N_REFINED] for near in neighbours(one, self.n_layers)]
        entering = list(dict.fromkeys([*kept, *near]))
        narrow = self._stage("narrow", entering, self.settings.narrow, recovery)
        ranked = _kept(narrow, len(narrow))
        n_kept = self.settings.narrow.n_kept
        leading = ranked[:n_kept]
        # What has not succeeded once by now does not go into the longest stage.
        hopeful = [one for one in leading if _succeeds(one, narrow)]
        trying = [*hopeful, *combinations(ranked)] if hopeful else []
        final = self._stage(
            "final", [NO_STEERING, *trying], self.settings.final, recovery, is_last=True
        )
        chosen, choice = self._choice(final)
        best = [one.candidate for one in sorted(final[1:], key=lambda one: one.rank_key)]
        ahead = [chosen, *best, *leading] if chosen else [*best, *leading]
        trying = instructed_candidates(list(dict.fromkeys(ahead))[:n_kept])
        tried = self._stage("instructed narrow", trying, self.settings.narrow, recovery)
        ranked = [one.candidate for one in sorted(tried, key=lambda one: one.rank_key)]
        with_it = self._stage(
            "instructed",
            [NO_STEERING, *ranked[:_N_INSTRUCTED]],
            self.settings.final,
            recovery,
            is_last=True,
        )
        return Found(
            record={
                "uninstructed": choice,
                "instructed": self._choice(with_it)[1],
                "by_words": self.by_words,
                "vectors": [] if self.by_words else sorted(vectors),
                "problems": problems,
                "recovery": {str(layer): round(r, 4) for layer, r in (recovery or {}).items()},
                "n_prompts": len(self.pairs),
                "n_tokens": self.n_tokens,
                "table": self.table,
            },
            vectors={} if self.by_words else vectors,
        )

    def _recovery(self, vectors: Mapping[str, SteeringVector]) -> dict[int, float] | None:
        """First-token causal recovery by layer; a vector of words has none of its own."""
        if self.by_words or "last_prompt" not in vectors:
            return None
        n = min(self.settings.n_evidence, self.task.n_pairs("select"))
        pairs = contrast_pairs(self.task, n=n, seed=self.settings.seed, split="select")
        layers = range(0, max(self.n_layers - 1, 1), _EVERY)
        answerer = self.book.answerer
        try:
            with answerer.alone:
                curve = first_token_recovery(
                    self.book.model, pairs, vectors["last_prompt"], layers=layers, progress=False
                )
        except SteeringError:
            return None  # the first token does not show this instruction: layers are spread out
        rows = curve.table
        return dict(zip(rows.layer.tolist(), rows.recovery.tolist(), strict=True))

    def _stage(
        self,
        name: str,
        candidates: Sequence[Candidate],
        stage: Stage,
        recovery: Mapping[int, float] | None,
        is_last: bool = False,
    ) -> list[Score]:
        """Every candidate on the stage's prompts, as one list of questions.

        In a last stage the judge reads no steering (the first) and what passes more than it.
        """
        pairs = self.pairs[: stage.n_prompts]
        instructed = name in _WITH_INSTRUCTION
        questions = [
            self._question(candidate, pair, instructed)
            for candidate in candidates
            for pair in pairs
        ]
        n_tokens = max(stage.n_tokens, self.tokens_to_tell)
        answers = self.book.answerer.ask(questions, n_tokens, f"{self.task.id} {name}")
        answerer = self.book.answerer
        own = [slice(i * len(pairs), (i + 1) * len(pairs)) for i in range(len(candidates))]
        with answerer.alone:
            scores = [
                scored(one, self.task.id, pairs, answers[rows], _evidence(one, recovery))
                for one, rows in zip(candidates, own, strict=True)
            ]
        if is_last and self.judge is not None:
            read = [i for i, one in enumerate(scores) if not i or gains(one, scores[0])]
            texts = [answer.text for i in read for answer in answers[own[i]]]
            found = self._perplexities(self.judge, texts)
            for place, i in enumerate(read):
                scores[i] = judged(scores[i], found[own[place]])
        self.n_tokens += sum(one.n_tokens for one in scores)
        self.table += [one.to_json(name) for one in scores]
        return scores

    def _question(self, candidate: Candidate, pair: ContrastPair, instructed: bool) -> Question:
        prompt = pair.instructed if instructed else pair.uninstructed
        if not candidate:
            return Question(prompt)
        return Question(
            prompt,
            self.book.steering(self.task, pair.kwargs, candidate),
            {
                "instruction": self.task.id,
                "words": self.task.wording(pair.kwargs),
                "parts": [one.to_json() for one in candidate],
            },
        )

    def _perplexities(self, judge: Judge, texts: Sequence[str]) -> list[float | None]:
        most = self.settings.judge_tokens
        return self.book.answerer.perplexities(judge, texts, min(self.tokens_to_tell or most, most))

    def _choice(self, scores: Sequence[Score]) -> tuple[Candidate, dict[str, Any]]:
        """The winner among a stage's candidates, the first of which is no steering."""
        baseline, settings = scores[0], self.settings
        winner, corrected, n_allowed = choose(
            scores, settings.most_perplexity, settings.degenerate_price, settings.seed
        )
        n = len(winner.passed)
        plain, own = (wilson(sum(one.passed), n) for one in (baseline, winner))
        return winner.candidate, {
            "parts": [one.to_json() for one in winner.candidate],
            "rate": own.value,
            "low": own.low,
            "high": own.high,
            "corrected_rate": corrected.value,
            "corrected_low": corrected.low,
            "corrected_high": corrected.high,
            "n": n,
            "degenerate": winner.degenerate_share,
            "perplexity": winner.perplexity,
            "unsteered_rate": plain.value,
            "unsteered_low": plain.low,
            "unsteered_high": plain.high,
            "unsteered_perplexity": baseline.perplexity,
            "n_candidates": len(scores),
            "n_dropped": len(scores) - n_allowed,
        }


def _evidence(candidate: Candidate, recovery: Mapping[int, float] | None) -> float | None:
    """Recovery at the layer of a single last-prompt setting (its own layer or the one below)."""
    if recovery is None or len(candidate) != 1 or candidate[0].estimator != "last_prompt":
        return None
    layer = candidate[0].layer
    return recovery.get(layer, recovery.get(layer - 1))


def _succeeds(candidate: Candidate, scores: Sequence[Score]) -> bool:
    """Whether it has succeeded on any prompt."""
    return any(one.candidate == candidate and any(one.successes) for one in scores)


def _kept(scores: Sequence[Score], n: int) -> list[Candidate]:
    """The best, and among them the best of every estimator."""
    ranked = [one.candidate for one in sorted(scores, key=lambda one: one.rank_key)]
    leaders = {one[0].estimator: one for one in reversed(ranked)}
    chosen = ranked[:n]
    missing = [one for one in leaders.values() if one not in chosen]
    return [*chosen[: max(n - len(missing), 0)], *missing]
