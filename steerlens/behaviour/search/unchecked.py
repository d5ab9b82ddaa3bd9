"""Successive halving for one task without a check: by causal recovery, or by log odds of choices.

The stages are those of `steerlens.behaviour.search.halving`, on the same candidates and splits, but
a candidate is scored by `steerlens.behaviour.unchecked` instead of by what its answers pass:

1. **Evidence.** First-token causal recovery chooses the layers of ``last_prompt`` vectors.
2. **Broad, narrow, final.** More and more ``select`` pairs. What moves nothing in the right
   direction by the narrow stage does not go on.
3. **Confirmation.** The winner's effect is corrected for the choice by the bootstrap
   (`steerlens.stats.queries.best_ratio`), and its placebo is measured on the same pairs. Without a
   corrected effect above 0, or with one that does not exceed the placebo's, no steering is chosen.

Settings that leave no numbers, or that raise the probability of neither answer to a choice by more
than 0.1, are not chosen: they break the form of the answer instead of moving the choice.

Prompts that state the instruction are not steered: what steering adds to them cannot be told from
the instructed run itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steerlens.behaviour.plans.candidates import Candidate, describe, to_json
from steerlens.behaviour.plans.fitting import VectorBook
from steerlens.behaviour.search.cost import add_cost
from steerlens.behaviour.search.evidence import layer_recovery
from steerlens.behaviour.search.scoring import leading
from steerlens.behaviour.search.settings import SearchSettings, Stage
from steerlens.behaviour.search.space import combinations, first_candidates, neighbours
from steerlens.behaviour.unchecked import Effects, Labelled, measure_of, measured
from steerlens.stats.queries import best_ratio
from steerlens.stats.rates import Interval
from steerlens.tasks import Task
from steerlens.tasks.drawing import contrast_pairs
from steerlens.vectors import SteeringVector

__all__ = ["search_unchecked"]

_N_REFINED = 2
_MOST_NEITHER = 0.1


@dataclass(frozen=True, eq=False)
class _Effect:
    """A candidate and how far it goes towards the behaviour."""

    candidate: Candidate
    interval: Interval
    neither: float

    @property
    def is_allowed(self) -> bool:
        """Whether it leaves numbers, and the form of the answer."""
        return bool(np.isfinite(self.interval.value)) and self.neither <= _MOST_NEITHER

    @property
    def rank_key(self) -> tuple[float, ...]:
        return (-self.interval.value,) if self.is_allowed else (np.inf,)


def search_unchecked(
    book: VectorBook, task: Task, settings: SearchSettings
) -> tuple[dict[str, Any], dict[str, SteeringVector]]:
    """The task's entry in ``plan.json``, and its vectors by estimator.

    Raises:
        SteeringError: The instruction has no effect on the pairs of the ``select`` split.
        LostPiecesError: Workers could not compute what was needed.
    """
    return _Search(book, task, settings).run()


class _Search:
    def __init__(self, book: VectorBook, task: Task, settings: SearchSettings) -> None:
        self.book = book
        self.task = task
        self.settings = settings
        n = min(settings.final.n_prompts, task.n_pairs("select"))
        self.pairs = contrast_pairs(task, n=n, seed=settings.seed, split="select")
        self.measure = measure_of(task)
        self.n_layers = book.model.cfg.n_layers
        self.table: list[dict[str, Any]] = []

    def run(self) -> tuple[dict[str, Any], dict[str, SteeringVector]]:
        settings, task = self.settings, self.task
        by_words = any(task.wording(pair.kwargs) for pair in self.pairs)
        vectors, problems = self.book.available(task, self.pairs[0].kwargs)
        recovery: dict[int, float] = {}
        if self.measure == "recovery" and not by_words:
            recovery = layer_recovery(self.book, task, vectors, settings)
        first = first_candidates(list(vectors), self.n_layers, recovery, by_words)
        kept = leading(self._stage("broad", first, settings.broad), settings.broad.n_kept)
        near = [near for best in kept[:_N_REFINED] for near in neighbours(best, self.n_layers)]
        narrow = self._stage("narrow", list(dict.fromkeys([*kept, *near])), settings.narrow)
        helpful = [score for score in narrow if score.is_allowed and score.interval.value > 0]
        ordered = leading(helpful, len(helpful))
        finalists = [*ordered[: settings.narrow.n_kept], *combinations(ordered)]
        chosen = self._choice(list(dict.fromkeys(finalists)))
        record = {
            "measure": self.measure,
            "uninstructed": chosen,
            "instructed": {"parts": []},
            "by_words": by_words,
            "vectors": [] if by_words else sorted(vectors),
            "problems": problems,
            "recovery": {str(layer): round(value, 4) for layer, value in recovery.items()},
            "n_prompts": len(self.pairs),
            "table": self.table,
        }
        return record, {} if by_words else vectors

    def _stage(self, name: str, candidates: Sequence[Candidate], stage: Stage) -> list[_Effect]:
        """Every candidate's effect on the stage's pairs."""
        n = min(max(stage.n_prompts, 2), len(self.pairs))
        effects = self._effects(candidates, n)
        queries = self.pairs.query_groups[:n]
        scores = [
            _Effect(candidate, effects.interval(place, queries), float(effects.neither[place]))
            for place, candidate in enumerate(candidates)
        ]
        self.table += [self._row(name, score, n) for score in scores]
        return scores

    def _row(self, stage: str, score: _Effect, n: int) -> dict[str, Any]:
        return {
            "stage": stage,
            "setting": describe(score.candidate),
            "parts": to_json(score.candidate),
            "n": n,
            **self._named(score.interval),
            **({"neither": round(score.neither, 4)} if self.task.group == "choices" else {}),
        }

    def _named(self, interval: Interval) -> dict[str, float | None]:
        ends = {self.measure: interval.value, "low": interval.low, "high": interval.high}
        return {
            name: round(value, 4) if np.isfinite(value) else None for name, value in ends.items()
        }

    def _effects(self, candidates: Sequence[Candidate], n: int, placebo: bool = False) -> Effects:
        def settings_for(kwargs: Mapping[str, Any]) -> list[Labelled]:
            return [self._labelled(candidate, kwargs, placebo) for candidate in candidates]

        return measured(
            *(self.book.answerer, self.task, self.pairs[:n], settings_for),
            *(self.settings.horizon, self.settings.conversation),
        )

    def _labelled(self, candidate: Candidate, kwargs: Mapping[str, Any], placebo: bool) -> Labelled:
        steering = self.book.steering(self.task, kwargs, candidate, placebo)
        assert steering is not None  # no steering is not measured: its effect is 0
        label = {"instruction": self.task.id, "parts": to_json(candidate), "placebo": placebo}
        return {**label, "words": self.task.wording(kwargs)}, steering

    def _choice(self, finalists: Sequence[Candidate]) -> dict[str, Any]:
        """The winner, confirmed on all pairs and beside its placebo; else no steering."""
        none: dict[str, Any] = {
            "parts": [],
            **self._named(Interval(0.0, 0.0, 0.0)),
            "n": len(self.pairs),
        }
        none["n_candidates"] = len(finalists) + 1
        allowed: list[_Effect] = []
        if finalists:
            scores = self._stage("final", finalists, self.settings.final)
            allowed = [score for score in scores if score.is_allowed]
        if not allowed:
            return none
        queries, n = self.pairs.query_groups, len(self.pairs)
        effects = self._effects([score.candidate for score in allowed], n)
        gains = np.vstack([np.zeros(n), effects.gains])
        place, corrected = best_ratio(gains, effects.weights, queries, self.settings.seed)
        if not place:
            return none
        winner = allowed[place - 1]
        placebo = self._effects([winner.candidate], n, placebo=True).interval(0, queries)
        beside = {
            "placebo": placebo.value,
            "placebo_low": placebo.low,
            "placebo_high": placebo.high,
            f"corrected_{self.measure}": corrected,
        }
        measured_as = {**self._named(winner.interval), **beside}
        if corrected <= max(0.0, placebo.value):
            return {**none, "refused": {"setting": describe(winner.candidate), **measured_as}}
        choice = {**none, "parts": to_json(winner.candidate), **measured_as}
        rows = [row for row in self.table if row["stage"] == "final"]
        add_cost(self.book, self.task, self.pairs[0].kwargs, choice, winner.candidate, rows)
        return choice
