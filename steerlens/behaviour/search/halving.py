"""Successive halving for one task: broad and short, then narrow, then in full.

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
5. **With the instruction.** What is best there need not be best here: the leading candidates, each
   also at half strength, answer the narrow stage's prompts *with* the instruction, and the better
   ones all of them, against no steering, for the other choice.

For tasks about length, responses are in every stage as long as it takes to tell whether they
comply, and the judge reads no more of any response than that: the beginning of a text surprises a
judge more than its rest, which would speak against all that is short.

The rate of a winner chosen on the prompts that are counted is too high; the plan gives it corrected
by the bootstrap (`steerlens.stats.rates.best_of_many`), and beside it what the winner costs on
plain text (`steerlens.behaviour.side_effects`).
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steerlens.behaviour.answers import Question
from steerlens.behaviour.judge import Judge
from steerlens.behaviour.plans.candidates import NO_STEERING, Candidate, to_json
from steerlens.behaviour.plans.fitting import VectorBook
from steerlens.behaviour.search.cost import add_cost
from steerlens.behaviour.search.evidence import layer_recovery
from steerlens.behaviour.search.scoring import (
    Score,
    choose,
    gains,
    judged,
    leading,
    ranked,
    scored,
)
from steerlens.behaviour.search.settings import SearchSettings, Stage
from steerlens.behaviour.search.space import (
    combinations,
    first_candidates,
    instructed_candidates,
    neighbours,
)
from steerlens.behaviour.search.unchecked import search_unchecked
from steerlens.behaviour.unchecked import measure_of
from steerlens.errors import SteerlensWarning
from steerlens.models.conversations import continued
from steerlens.stats.rates import score_interval
from steerlens.tasks import Task
from steerlens.tasks.drawing import contrast_pairs
from steerlens.tasks.pairs import ContrastPair
from steerlens.vectors import SteeringVector

__all__ = ["SearchedTask", "search_task"]

_N_REFINED = 2
_N_INSTRUCTED = 3


@dataclass(frozen=True, eq=False)
class SearchedTask:
    """What a search found for one task.

    Attributes:
        record: Its entry in ``plan.json``.
        vectors: The fitted vectors, by estimator; empty when they depend on words.
    """

    record: dict[str, Any]
    vectors: Mapping[str, SteeringVector]


def search_task(
    book: VectorBook, task: Task, settings: SearchSettings, judge: Judge | None = None
) -> SearchedTask:
    """Choose where and how hard to steer for one task.

    Without a judge, repetition is the only measure of fluency.

    Raises:
        LostPiecesError: Workers could not compute what was needed.
    """
    if measure_of(task) != "rate":
        return SearchedTask(*search_unchecked(book, task, settings))
    return _Search(book, task, settings, judge).run()


class _Search:
    """One search; its stages share prompts, vectors and the table of what was tried."""

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
        self.recovery: dict[int, float] = {}
        self.table: list[dict[str, Any]] = []
        self.n_tokens = 0
        self.n_layers = book.model.cfg.n_layers

    def run(self) -> SearchedTask:
        """All stages."""
        settings = self.settings
        if not self.task.has_tried_check:
            self._look_at_check()
        vectors, problems = self.book.available(self.task, self.pairs[0].kwargs)
        if not self.by_words:  # a vector of words has none of its own
            self.recovery = layer_recovery(self.book, self.task, vectors, settings)
        first = first_candidates(list(vectors), self.n_layers, self.recovery, self.by_words)
        kept = leading(self._stage("broad", first, settings.broad), settings.broad.n_kept)
        near = [near for best in kept[:_N_REFINED] for near in neighbours(best, self.n_layers)]
        narrow = self._stage("narrow", list(dict.fromkeys([*kept, *near])), settings.narrow)
        ordered = leading(narrow, len(narrow))
        ahead = ordered[: settings.narrow.n_kept]
        # What has not succeeded once by now does not go into the longest stage.
        successful = {score.candidate for score in narrow if any(score.successes)}
        hopeful = [candidate for candidate in ahead if candidate in successful]
        finalists = [*hopeful, *combinations(ordered)] if hopeful else []
        final = self._stage("final", [NO_STEERING, *finalists], settings.final)
        chosen, uninstructed = self._choice(final, "final")
        leaders = [chosen] if chosen else []
        leaders = list(dict.fromkeys([*leaders, *ranked(final[1:]), *ahead]))
        trying = instructed_candidates(leaders[: settings.narrow.n_kept])
        better = ranked(self._stage("instructed narrow", trying, settings.narrow))
        last = [NO_STEERING, *better[:_N_INSTRUCTED]]
        _, instructed = self._choice(self._stage("instructed", last, settings.final), "instructed")
        return SearchedTask(
            record={
                "measure": "rate",
                "uninstructed": uninstructed,
                "instructed": instructed,
                "by_words": self.by_words,
                "vectors": [] if self.by_words else sorted(vectors),
                "problems": problems,
                "recovery": {str(layer): round(r, 4) for layer, r in self.recovery.items()},
                "n_prompts": len(self.pairs),
                "n_tokens": self.n_tokens,
                "table": self.table,
            },
            vectors={} if self.by_words else vectors,
        )

    def _look_at_check(self) -> None:
        """Warn of a check that no answer, or every answer, of the unsteered model passes."""
        stage = self.settings.broad
        without, asked = (
            self._stage(name, [NO_STEERING], stage)[0]
            for name in ("unsteered", "instructed unsteered")
        )
        n = len(without.passed)
        if all(without.passed):
            warnings.warn(
                f"the check of task {self.task.id!r} passes all {n} answers of the unsteered model "
                "to prompts without the instruction, so steering has nothing to gain",
                SteerlensWarning,
                stacklevel=4,
            )
        elif not any((*without.passed, *asked.passed)):
            warnings.warn(
                f"the check of task {self.task.id!r} passes none of {2 * n} answers of at most "
                f"{stage.n_tokens} tokens, with or without the instruction; try it on answers that "
                "should pass (`steerlens tasks --check FILE`)",
                SteerlensWarning,
                stacklevel=4,
            )

    def _stage(self, name: str, candidates: Sequence[Candidate], stage: Stage) -> list[Score]:
        """Every candidate on the stage's prompts, as one list of questions.

        In a last stage the judge reads no steering (the first) and what passes more than it.
        """
        pairs = self.pairs[: stage.n_prompts]
        questions = [
            self._question(candidate, pair, name.startswith("instructed"))
            for candidate in candidates
            for pair in pairs
        ]
        answerer = self.book.answerer
        n_tokens = max(stage.n_tokens, self.tokens_to_tell)
        decoding = self.settings.decoding
        answers = answerer.ask(questions, n_tokens, f"{self.task.id} {name}", decoding)
        n = len(pairs) * decoding.samples
        parts = [answers[i * n : (i + 1) * n] for i in range(len(candidates))]
        with answerer.alone:
            scores = [
                scored(candidate, self.task, pairs, part, self._evidence(candidate))
                for candidate, part in zip(candidates, parts, strict=True)
            ]
        if name in ("final", "instructed") and self.judge is not None:
            read = [i for i, score in enumerate(scores) if not i or gains(score, scores[0])]
            texts = [answer.text for i in read for answer in parts[i]]
            most = self.settings.judge_tokens
            n_read = min(self.tokens_to_tell or most, most)
            perplexities = iter(answerer.perplexities(self.judge, texts, n_read))
            for i in read:
                scores[i] = judged(scores[i], [next(perplexities) for _ in range(n)])
        self.n_tokens += sum(score.n_tokens for score in scores)
        self.table += [score.to_json(name) for score in scores]
        return scores

    def _question(self, candidate: Candidate, pair: ContrastPair, instructed: bool) -> Question:
        text = pair.instructed if instructed else pair.uninstructed
        prompt = continued(self.settings.conversation, text)
        if not candidate:
            return Question(prompt)
        label = {
            "instruction": self.task.id,
            "words": self.task.wording(pair.kwargs),
            "parts": to_json(candidate),
        }
        return Question(prompt, self.book.steering(self.task, pair.kwargs, candidate), label)

    def _evidence(self, candidate: Candidate) -> float | None:
        """Recovery at the layer of a single last-prompt vector (that layer or the one below)."""
        if len(candidate) != 1 or candidate[0].estimator != "last_prompt":
            return None
        layer = candidate[0].layer
        return self.recovery.get(layer, self.recovery.get(layer - 1))

    def _choice(self, scores: Sequence[Score], stage: str) -> tuple[Candidate, dict[str, Any]]:
        """The winner among a stage's candidates, the first of which is no steering."""
        baseline, settings = scores[0], self.settings
        winner, corrected, n_allowed = choose(
            scores, settings.most_perplexity, settings.degenerate_price, settings.seed
        )
        n = winner.n_prompts
        unsteered, steered = (score_interval(score.rate, n) for score in (baseline, winner))
        choice = {
            "parts": to_json(winner.candidate),
            "rate": steered.value,
            "low": steered.low,
            "high": steered.high,
            "corrected_rate": corrected.value,
            "corrected_low": corrected.low,
            "corrected_high": corrected.high,
            "n": n,
            "degenerate": winner.degenerate_share,
            "perplexity": winner.perplexity,
            "unsteered_rate": unsteered.value,
            "unsteered_low": unsteered.low,
            "unsteered_high": unsteered.high,
            "unsteered_perplexity": baseline.perplexity,
            "n_candidates": len(scores),
            "n_dropped": len(scores) - n_allowed,
        }
        rows = [row for row in self.table if row["stage"] == stage]
        add_cost(self.book, self.task, self.pairs[0].kwargs, choice, winner.candidate, rows)
        return winner.candidate, choice
