r"""Vectors for a task, by every estimator that the search may choose.

==================== =============================================================================
``last_prompt``      difference of means at the last prompt token, instructed − uninstructed
                     prompts (Stolfo et al. 2025, §2.2)
``response_rewrite`` difference of means over response tokens: the model's own answers, rewritten by
                     a program so that they comply, − the answers as they are; both read after the
                     *uninstructed* prompt, so that only the text differs
``response_own``     the same from answers that comply by themselves: those the model gives to
                     instructed prompts and that pass the check (all, where there is none), −
                     those it gives without
``response_end``     for lengths: difference of means at the last token of a response, answers the
                     model ended there − the same answers cut at an earlier end of a sentence,
                     where it went on. Not of Stolfo et al.; the same vector for all lengths, which
                     its sign and strength tell apart
``include``          for forbidden words: ``last_prompt`` of *using* the words, to be subtracted
                     (Stolfo et al. 2025, §5)
``answer``           for choices: difference of means at the first token at which the two answers to
                     a question differ (Rimsky et al., arXiv 2312.06681, §3)
``prompt_neutral``   ``last_prompt`` with a neutral sentence of the instruction's length on the
                     uninstructed side (`steerlens.tasks.contrasts`)
``prompt_others``    ``last_prompt`` with another task's instruction on the uninstructed side
``prompt_own``       ``last_prompt`` without its part in the span of the other tasks' differences
                     (`steerlens.vectors.others`)
==================== =============================================================================

Everything is fitted on the ``fit`` split. A task whose arguments are words (a keyword, an end
phrase; `Task.wording`) has no vector of its own: one is fitted for the words at hand, on fewer
pairs, when it is needed. An estimator that a task cannot have (no rewrite, too few compliant
answers) is left out, and `VectorBook.available` says why. The last three are tried where the recipe
names them: their candidates cost a search half as much again. So are ``trained_comply``,
``trained_prefer``, ``trained_imitate`` and ``trained_regress``: gated directions found by training
(`steerlens.behaviour.plans.trained`), minutes for each, and about one for each wording of a task
about words.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from steerlens.activations.cache import ResidualCache
from steerlens.activations.grids import residual_grid
from steerlens.attribution.log_odds import engine_scope
from steerlens.behaviour.answers import Answerer, LostPiecesError, Question
from steerlens.behaviour.plans.candidates import Candidate
from steerlens.behaviour.plans.trained import TRAINED, gated_placebo, trained_vector
from steerlens.errors import SteerlensError, unknown_name
from steerlens.models.conversations import Prompt
from steerlens.models.loading import token_counter
from steerlens.steering.interventions import Steering
from steerlens.tasks import Task, base_queries, catalogue
from steerlens.tasks.contrasts import contrasted
from steerlens.tasks.drawing import contrast_pairs
from steerlens.tasks.fluency import fluency, is_degenerate
from steerlens.tasks.grids import task_grid
from steerlens.tasks.ifeval import sentence_spans
from steerlens.tasks.notices import warn_of_pairs
from steerlens.tasks.pairs import ContrastPair, ContrastSet
from steerlens.training import TrainingSettings
from steerlens.vectors import SteeringVector, difference_of_means, own_part, random_direction

__all__ = ["CONTRASTS", "SPECIFIC", "FitRecipe", "VectorBook"]

CONTRASTS = (
    "last_prompt",
    "response_rewrite",
    "response_own",
    "response_end",
    "include",
    "answer",
)
SPECIFIC = ("prompt_neutral", "prompt_others", "prompt_own")
# Most answers looked at for ends: most of a small model's are cut or loop.
_N_ENDING = 96
# Prompts per forward pass.
_BATCH_SIZE = 32
# Held-out loss stops falling after some 15 steps of 4 examples.
_TRAINING = TrainingSettings(n_examples=40, n_steps=14, batch_size=4, look_every=7)


@dataclass(frozen=True)
class FitRecipe:
    """How vectors are fitted; part of every plan.

    Attributes:
        n_pairs: Contrast pairs for ``last_prompt``.
        n_responses: Answers for the response estimators.
        n_wording: Pairs, and answers, for a vector of given words; twice as many to train one.
        response_tokens: Longest answer fitted on, in tokens.
        ending_tokens: Longest answer looked at for where it ends, for ``response_end``, in tokens.
        least_own: Fewest pairs of answers for a response estimator.
        seed: Draws pairs and placebo directions.
        estimators: Those that are tried, of `CONTRASTS`, `SPECIFIC` and `TRAINED`.
        training: How directions are trained, for `TRAINED`.
        loop_weight: Weight of their term against loops (`steerlens.training.objectives`).

    Raises:
        UnknownNameError: An estimator that does not exist.
    """

    n_pairs: int = 64
    n_responses: int = 48
    n_wording: int = 16
    response_tokens: int = 80
    ending_tokens: int = 256
    least_own: int = 8
    seed: int = 0
    estimators: tuple[str, ...] = CONTRASTS
    training: TrainingSettings = _TRAINING
    loop_weight: float = 0.5

    def __post_init__(self) -> None:
        # JSON has lists and objects only.
        object.__setattr__(self, "estimators", tuple(self.estimators))
        if isinstance(self.training, Mapping):
            object.__setattr__(self, "training", TrainingSettings(**self.training))
        for name in self.estimators:
            _check_estimator(name)


class VectorBook:
    """Vectors by task, wording and estimator, each fitted when first asked for.

    Args:
        answerer: Gives the model's own answers, remembered in its run.
        recipe: Sizes and seed.
    """

    def __init__(self, answerer: Answerer, recipe: FitRecipe | None = None) -> None:
        self.answerer = answerer
        self.recipe = recipe or FitRecipe()
        # Each vector beside its placebo.
        self._fitted: dict[tuple[str, str, str], tuple[SteeringVector, SteeringVector]] = {}
        self._saved: dict[tuple[str, str], SteeringVector] = {}

    @property
    def model(self) -> TransformerBridge:
        """The model the vectors are for."""
        return self.answerer.model

    def keep(self, task_id: str, estimator: str, vector: SteeringVector) -> None:
        """Use this vector (one that a plan saved) instead of fitting it."""
        self._saved[task_id, estimator] = vector

    def available(
        self, task: Task, kwargs: Mapping[str, Any]
    ) -> tuple[dict[str, SteeringVector], dict[str, str]]:
        """Every estimator's vector, and for those that have none, why.

        Raises:
            LostPiecesError: Workers could not compute what a vector is fitted on.
        """
        vectors: dict[str, SteeringVector] = {}
        problems: dict[str, str] = {}
        for estimator in self.recipe.estimators:
            try:
                vectors[estimator] = self.vector(task, kwargs, estimator)
            except LostPiecesError:
                raise
            except SteerlensError as error:
                problems[estimator] = str(error)
        return vectors, problems

    def vector(self, task: Task, kwargs: Mapping[str, Any], estimator: str) -> SteeringVector:
        """A task's vector; for given words when its arguments are words.

        Raises:
            SteerlensError: The task cannot have it, and why.
        """
        wording = task.wording(kwargs)
        if not wording and (task.id, estimator) in self._saved:
            return self._saved[task.id, estimator]
        return self._fit(task, wording, estimator)[0]

    def placebo(self, task: Task, kwargs: Mapping[str, Any], estimator: str) -> SteeringVector:
        """Random directions that push as far as the vector."""
        if estimator in TRAINED:
            return gated_placebo(self.vector(task, kwargs, estimator), self.recipe.seed)
        return self._fit(task, task.wording(kwargs), estimator)[1]

    def steering(
        self, task: Task, kwargs: Mapping[str, Any], candidate: Candidate, placebo: bool = False
    ) -> Steering | None:
        """The candidate's interventions with their vectors, or with random ones of equal norm.

        Raises:
            SteerlensError: An estimator that has no vector for this task, and why.
        """
        vector = self.placebo if placebo else self.vector
        parts = [
            vector(task, kwargs, spec.estimator).at(
                spec.layer,
                spec.operation,
                spec.strength,
                engine_scope(spec.scope),
                only_below=spec.only_below,
                only_above=spec.only_above,
                adaptive=spec.adaptive,
            )
            for spec in candidate
        ]
        return joined(parts)

    def _fit(
        self, task: Task, wording: Mapping[str, Any], estimator: str
    ) -> tuple[SteeringVector, SteeringVector]:
        key = (task.id, json.dumps(wording, sort_keys=True), estimator)
        if key not in self._fitted:
            make = self._trained if estimator in TRAINED else self._from_means
            self._fitted[key] = make(task, wording, estimator)
        return self._fitted[key]

    def _from_means(
        self, task: Task, wording: Mapping[str, Any], estimator: str
    ) -> tuple[SteeringVector, SteeringVector]:
        cache = self._residuals(task, wording, estimator)
        vector = difference_of_means(cache)
        if estimator == "prompt_own":
            vector = self._own_part(task, cache)
        metadata = {**vector.metadata, "instruction": task.id, "contrast": estimator}
        placebo = random_direction(cache, seed=self.recipe.seed, like=vector)
        return replace(vector, metadata=metadata), placebo

    def _trained(
        self, task: Task, wording: Mapping[str, Any], estimator: str
    ) -> tuple[SteeringVector, SteeringVector]:
        recipe = self.recipe
        settings = recipe.training
        n = 2 * recipe.n_wording if wording else settings.n_examples
        pairs = self._pairs(task, min(n, len(task.queries("fit"))), wording)
        vector = trained_vector(
            self.answerer, task, pairs, estimator, settings, recipe.loop_weight, bool(wording)
        )
        metadata = {**vector.metadata, "instruction": task.id, "contrast": estimator}
        vector = replace(vector, metadata=metadata)
        return vector, gated_placebo(vector, self.recipe.seed)

    def _residuals(self, task: Task, wording: Mapping[str, Any], estimator: str) -> ResidualCache:
        """Residuals of the two sides that an estimator compares."""
        recipe = self.recipe
        _check_estimator(estimator)
        if (estimator == "answer") != (task.group == "choices"):
            has = "choices" if task.group == "choices" else "no choices"
            raise SteerlensError(f"{task.id} has {has}")
        if estimator == "answer":
            return self._cached(self._pairs(task, recipe.n_pairs, wording), "answer")
        if estimator == "last_prompt" or estimator in SPECIFIC:
            pairs = self._pairs(task, recipe.n_wording if wording else recipe.n_pairs, wording)
            contrast = estimator.removeprefix("prompt_")
            if contrast in ("neutral", "others"):
                count = token_counter(self.model)
                pairs = contrasted(pairs, task, contrast, None, recipe.seed, count)
            cache = self._cached(pairs, "last_prompt")
            if estimator == "last_prompt":
                warn_of_pairs(cache.metadata, stacklevel=4)
            return cache
        if estimator == "include":
            if "forbidden_words" not in wording:
                raise SteerlensError(f"{task.id} forbids no words that could be included")
            words = {"keywords": list(wording["forbidden_words"])}
            used = self._pairs(catalogue["keywords:existence"], recipe.n_wording, words)
            return self._cached(used, "last_prompt")
        if estimator == "response_end":
            return self._cached(self._ended(task), "last_response")
        n = recipe.n_wording if wording else recipe.n_responses
        pairs = self._pairs(task, min(n, len(task.queries("fit"))), wording)
        if estimator == "response_rewrite":
            return self._cached(self._rewritten(task, pairs), "response_mean")
        if wording:
            raise SteerlensError(f"compliant answers are not looked for with given words {wording}")
        return self._cached(self._own(task, pairs), "response_mean")

    def _own_part(self, task: Task, cache: ResidualCache) -> SteeringVector:
        with self.answerer.alone:
            grid = residual_grid(
                self.model, task_grid(task, seed=self.recipe.seed), show_progress=False
            )
        return own_part(grid, cache)

    def _pairs(self, task: Task, n: int, wording: Mapping[str, Any]) -> ContrastSet:
        n = min(n, task.n_pairs("fit"))
        return contrast_pairs(task, n=n, seed=self.recipe.seed, split="fit", kwargs=wording)

    def _cached(self, pairs: ContrastSet, position: str) -> ResidualCache:
        return self.answerer.residuals(pairs, position, _BATCH_SIZE)

    def _answers(self, prompts: Sequence[Prompt]) -> list[str]:
        questions = [Question(prompt) for prompt in prompts]
        answers = self.answerer.ask(questions, self.recipe.response_tokens, "answers to fit on")
        return [answer.text for answer in answers]

    def _ended(self, task: Task) -> ContrastSet:
        """Answers the model ended by itself, and the same answers where it could have ended."""
        if task.group != "length":
            raise SteerlensError(f"{task.id} asks for no length")
        queries = [query.text for query in base_queries("fit")]
        random.Random(self.recipe.seed).shuffle(queries)
        queries = queries[: min(_N_ENDING, 2 * self.recipe.n_responses)]
        questions = [Question(query) for query in queries]
        longest = self.recipe.ending_tokens
        answers = self.answerer.ask(questions, longest, "answers that end")
        pairs = []
        for query, answer in zip(queries, answers, strict=True):
            ends = [end for _, end in sentence_spans(answer.text)][:-1]
            if answer.finish_reason == "stop" and ends and not is_degenerate(fluency(answer.text)):
                earlier = answer.text[: ends[len(ends) // 2]]
                pair = ContrastPair(query, query)
                pairs.append(_after_the_same_prompt(pair, answer.text, earlier))
        return self._enough(task, pairs, "answers of several sentences that end by themselves")

    def _rewritten(self, task: Task, pairs: ContrastSet) -> ContrastSet:
        """The model's own answers, and compliant versions of them, after the same prompt."""
        if not task.has_rewrite:
            raise SteerlensError(f"{task.id} has no rewrite")
        answered = []
        for pair, text in zip(pairs, self._answers([p.uninstructed for p in pairs]), strict=True):
            try:
                compliant = task.rewrite(text, **pair.kwargs)
            except SteerlensError:
                continue  # blank, or not to be made compliant
            if compliant != text:
                answered.append(_after_the_same_prompt(pair, compliant, text))
        return self._enough(task, answered, "answers that could be rewritten")

    def _own(self, task: Task, pairs: ContrastSet) -> ContrastSet:
        """Compliant answers to instructed prompts, and answers to the same without."""
        instructed = self._answers([pair.instructed for pair in pairs])
        uninstructed = self._answers([pair.uninstructed for pair in pairs])
        answered = [
            _after_the_same_prompt(pair, compliant, text)
            for pair, compliant, text in zip(pairs, instructed, uninstructed, strict=True)
            if text.strip() and compliant.strip() and compliant != text
            if not task.has_check
            or (
                task.check(compliant, loose=True, **pair.kwargs)
                and not task.check(text, loose=True, **pair.kwargs)
            )
        ]
        return self._enough(task, answered, "answers that comply only when asked to")

    def _enough(self, task: Task, pairs: Sequence[ContrastPair], what: str) -> ContrastSet:
        if len(pairs) < self.recipe.least_own:
            raise SteerlensError(
                f"{task.id} has {len(pairs)} {what}; at least {self.recipe.least_own} are needed"
            )
        return ContrastSet(tuple(pairs), task.id, "fit", self.recipe.seed)


def _check_estimator(name: str) -> None:
    known = (*CONTRASTS, *SPECIFIC, *TRAINED)
    if name not in known:
        raise unknown_name("estimator", name, known)


def joined(steerings: Sequence[Steering]) -> Steering | None:
    """All interventions together, in order; ``None`` for none."""
    interventions = tuple(part for steering in steerings for part in steering.interventions)
    return Steering(interventions) if interventions else None


def _after_the_same_prompt(pair: ContrastPair, compliant: str, text: str) -> ContrastPair:
    return replace(
        pair,
        instructed=pair.uninstructed,
        instructed_response=compliant,
        uninstructed_response=text,
    )
