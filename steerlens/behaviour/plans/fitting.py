r"""Vectors for an instruction, by every estimator that the search may choose.

==================== =============================================================================
``last_prompt``      difference of means at the last prompt token, instructed − uninstructed
                     prompts (Stolfo et al. 2025, §2.2)
``response_rewrite`` difference of means over response tokens: the model's own answers, rewritten by
                     a program so that they comply, − the answers as they are; both read after the
                     *uninstructed* prompt, so that the text is all that differs
``response_own``     the same from answers that comply by themselves: those the model gives to
                     instructed prompts and that pass the check, − those it gives without
``response_end``     for lengths: difference of means at the last token of a response, answers the
                     model ended there − the same answers cut at an earlier end of a sentence,
                     where it went on; not of Stolfo et al., and the same vector for all lengths:
                     its sign and strength tell them apart
``include``          for forbidden words: ``last_prompt`` of *using* the words, to be subtracted
                     (Stolfo et al. 2025, §5)
==================== =============================================================================

Everything is fitted on the ``fit`` split. An instruction whose arguments are words (a keyword, an
end phrase; `Task.wording`) has no vector of its own: one is fitted for the words at hand, on
fewer pairs, when it is asked for.

An estimator that cannot be had for an instruction (no rewrite; too few compliant answers) is left
out, and `VectorBook.available` says why.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from steerlens.activations.cache import ResidualCache
from steerlens.behaviour.answers import Answerer, Question
from steerlens.behaviour.fluency import fluency, is_degenerate
from steerlens.behaviour.plans.settings import Candidate
from steerlens.errors import SteerlensError, unknown_name
from steerlens.steering.interventions import Steering
from steerlens.tasks import Task, base_queries, catalogue
from steerlens.tasks.ifeval import sentence_spans
from steerlens.tasks.pairs import ContrastPair, ContrastSet, contrast_pairs
from steerlens.vectors import SteeringVector, difference_of_means, random_direction

__all__ = ["CONTRASTS", "ENDING_TOKENS", "FitRecipe", "VectorBook", "n_ending"]

CONTRASTS = ("last_prompt", "response_rewrite", "response_own", "response_end", "include")
_FORBIDDEN = "keywords:forbidden_words"
# Answers looked at for ends, and how long they may get: most of a small model's are cut or loop.
_N_ENDING, ENDING_TOKENS = 96, 256


@dataclass(frozen=True)
class FitRecipe:
    """How vectors are fitted; part of every plan.

    Attributes:
        n_pairs: Contrast pairs for ``last_prompt``.
        n_responses: Answers for the response estimators.
        n_wording: Pairs, and answers, for a vector of given words.
        response_tokens: Longest answer fitted on, in tokens.
        least_own: Fewest compliant answers for ``response_own``.
        seed: Draws pairs and placebo directions.
    """

    n_pairs: int = 64
    n_responses: int = 48
    n_wording: int = 16
    response_tokens: int = 80
    least_own: int = 8
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Its fields."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class _Fitted:
    vector: SteeringVector
    placebo: SteeringVector


class VectorBook:
    """Vectors by instruction, wording and estimator, each fitted when first asked for.

    Args:
        answerer: Gives the model's own answers, remembered in its run.
        recipe: Sizes and seed.
        batch_size: Prompts a forward pass while caching residuals.
    """

    def __init__(
        self, answerer: Answerer, recipe: FitRecipe | None = None, batch_size: int = 32
    ) -> None:
        self.answerer = answerer
        self.recipe = recipe or FitRecipe()
        self.batch_size = batch_size
        self._fitted: dict[tuple[str, str, str], _Fitted] = {}
        self._kept: dict[tuple[str, str], SteeringVector] = {}

    @property
    def model(self) -> TransformerBridge:
        """The model vectors are for."""
        return self.answerer.model

    def keep(self, instruction: str, estimator: str, vector: SteeringVector) -> None:
        """Use this vector (one that a plan saved) instead of fitting it."""
        self._kept[instruction, estimator] = vector

    def available(
        self, task: Task, kwargs: Mapping[str, Any]
    ) -> tuple[dict[str, SteeringVector], dict[str, str]]:
        """Every estimator's vector, and for those that have none, why."""
        vectors: dict[str, SteeringVector] = {}
        problems: dict[str, str] = {}
        for estimator in CONTRASTS:
            try:
                vectors[estimator] = self.vector(task, kwargs, estimator)
            except SteerlensError as error:
                problems[estimator] = str(error)
        return vectors, problems

    def vector(self, task: Task, kwargs: Mapping[str, Any], estimator: str) -> SteeringVector:
        """The vector of an instruction; for given words when its arguments are words.

        Raises:
            SteerlensError: It cannot be had for this instruction, and why.
        """
        if not task.wording(kwargs) and (task.id, estimator) in self._kept:
            return self._kept[task.id, estimator]
        return self._entry(task, task.wording(kwargs), estimator).vector

    def placebo(self, task: Task, kwargs: Mapping[str, Any], estimator: str) -> SteeringVector:
        """Random directions that push as far as the vector."""
        return self._entry(task, task.wording(kwargs), estimator).placebo

    def steering(
        self,
        task: Task,
        kwargs: Mapping[str, Any],
        candidate: Candidate,
        placebo: bool = False,
    ) -> Steering | None:
        """The candidate's interventions with their vectors, or with random ones as long.

        Returns:
            ``None`` for no steering.

        Raises:
            SteerlensError: An estimator that has no vector for this instruction, and why.
        """
        find = self.placebo if placebo else self.vector
        parts = [
            find(task, kwargs, one.estimator).at(
                one.layer, one.operation, one.strength, one.scope, one.only_below, one.only_above
            )
            for one in candidate
        ]
        if not parts:
            return None
        return Steering(tuple(one for part in parts for one in part.interventions))

    def _entry(self, task: Task, wording: Mapping[str, Any], estimator: str) -> _Fitted:
        key = (task.id, json.dumps(wording, sort_keys=True), estimator)
        if key not in self._fitted:
            cache = self._contrast(task, wording, estimator)
            vector = difference_of_means(cache)
            self._fitted[key] = _Fitted(
                replace(
                    vector,
                    metadata={**vector.metadata, "instruction": task.id, "contrast": estimator},
                ),
                random_direction(cache, seed=self.recipe.seed),
            )
        return self._fitted[key]

    def _contrast(self, task: Task, wording: Mapping[str, Any], estimator: str) -> ResidualCache:
        """Residuals of the two sides that an estimator compares."""
        recipe = self.recipe
        if estimator not in CONTRASTS:
            raise unknown_name("estimator", estimator, CONTRASTS)
        if estimator == "last_prompt":
            n_pairs = recipe.n_wording if wording else recipe.n_pairs
            return self._cache(self._pairs(task, n_pairs, wording), "last_prompt")
        if estimator == "include":
            if task.id != _FORBIDDEN:
                raise SteerlensError(f"{task.id} forbids no words that could be included")
            used = catalogue["keywords:existence"]
            words = {"keywords": list(wording["forbidden_words"])}
            return self._cache(self._pairs(used, recipe.n_wording, words), "last_prompt")
        if estimator == "response_end":
            return self._cache(self._ended(task), "last_response")
        n_responses = recipe.n_wording if wording else recipe.n_responses
        pairs = self._pairs(task, min(n_responses, len(task.queries("fit"))), wording)
        if estimator == "response_rewrite":
            return self._cache(self._rewritten(task, pairs), "response_mean")
        if wording:
            raise SteerlensError(f"compliant answers are not looked for with given words {wording}")
        return self._cache(self._own(task, pairs), "response_mean")

    def _pairs(self, task: Task, n: int, wording: Mapping[str, Any]) -> ContrastSet:
        n = min(n, task.n_pairs("fit"))
        return contrast_pairs(task, n=n, seed=self.recipe.seed, split="fit", kwargs=wording)

    def _cache(self, pairs: ContrastSet, position: str) -> ResidualCache:
        return self.answerer.residuals(pairs, position, self.batch_size)

    def _answers(self, prompts: Sequence[str]) -> list[str]:
        questions = [Question(prompt) for prompt in prompts]
        asked = self.answerer.ask(questions, self.recipe.response_tokens, "answers to fit on")
        return [answer.text for answer in asked]

    def _ended(self, task: Task) -> ContrastSet:
        """Answers the model ended by itself, and the same answers where it could have ended."""
        if task.group != "length":
            raise SteerlensError(f"{task.id} asks for no length")
        queries = [query.text for query in base_queries("fit")]
        random.Random(self.recipe.seed).shuffle(queries)
        queries = queries[: n_ending(self.recipe)]
        questions = [Question(query) for query in queries]
        answers = self.answerer.ask(questions, ENDING_TOKENS, "answers that end")
        made = []
        for query, answer in zip(queries, answers, strict=True):
            ends = [end for _, end in sentence_spans(answer.text)][:-1]
            if answer.finish_reason == "stop" and ends and not is_degenerate(fluency(answer.text)):
                pair = ContrastPair(query, query, base_query=query)
                earlier = answer.text[: ends[len(ends) // 2]]
                made.append(_after_the_same_prompt(pair, answer.text, earlier))
        return self._paired(task, made, "answers of several sentences that end by themselves")

    def _rewritten(self, task: Task, pairs: ContrastSet) -> ContrastSet:
        """The model's own answers, and compliant versions of them, after the same prompt."""
        if not task.has_rewrite:
            raise SteerlensError(f"{task.id} has no rewrite")
        made = []
        for pair, text in zip(pairs, self._answers([p.uninstructed for p in pairs]), strict=True):
            try:
                compliant = task.rewrite(text, **pair.kwargs)
            except SteerlensError:
                continue  # blank, or not to be made compliant: the others suffice, or _paired says
            if compliant != text:
                made.append(_after_the_same_prompt(pair, compliant, text))
        return self._paired(task, made, "answers that could be rewritten")

    def _own(self, task: Task, pairs: ContrastSet) -> ContrastSet:
        """Compliant answers to instructed prompts, and answers to the same without."""
        with_it = self._answers([pair.instructed for pair in pairs])
        without = self._answers([pair.uninstructed for pair in pairs])
        made = [
            _after_the_same_prompt(pair, compliant, text)
            for pair, compliant, text in zip(pairs, with_it, without, strict=True)
            if text.strip()
            and task.check(compliant, loose=True, **pair.kwargs)
            and not task.check(text, loose=True, **pair.kwargs)
        ]
        return self._paired(task, made, "answers that comply only when asked to")

    def _paired(self, task: Task, made: Sequence[ContrastPair], what: str) -> ContrastSet:
        if len(made) < self.recipe.least_own:
            raise SteerlensError(
                f"{task.id} has {len(made)} {what}; at least {self.recipe.least_own} are needed"
            )
        return ContrastSet(tuple(made), task.id, "fit", self.recipe.seed)


def _after_the_same_prompt(pair: ContrastPair, compliant: str, text: str) -> ContrastPair:
    return replace(
        pair,
        instructed=pair.uninstructed,
        instructed_response=compliant,
        uninstructed_response=text,
    )


def n_ending(recipe: FitRecipe) -> int:
    """How many answers ``response_end`` looks at."""
    return min(_N_ENDING, 2 * recipe.n_responses)
