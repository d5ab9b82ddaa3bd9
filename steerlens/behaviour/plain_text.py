"""Passages and questions as rows of a model, for `steerlens.behaviour.side_effects`."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.likelihood import log_likelihoods
from steerlens.engine.scoring import ForcedRow
from steerlens.errors import SteerlensError
from steerlens.models.control_tokens import literal_ids
from steerlens.models.identity import attached_tokenizer
from steerlens.models.loading import model_info
from steerlens.steering.interventions import Steering
from steerlens.tasks.plain import CommonQuestion

__all__ = ["PlainText"]

Array = np.ndarray
# Tokens of a passage that are its prompt, and that it has at most.
_N_PROMPT, _N_TOKENS = 32, 128


class PlainText:
    """Passages and questions as rows of a model.

    Args:
        model: A hooked model.
        texts: Passages.
        questions: Questions.

    Raises:
        SteerlensError: Fewer than 2 texts, a text that is too short, or no question.
    """

    def __init__(
        self,
        model: TransformerBridge,
        texts: Sequence[str],
        questions: Sequence[CommonQuestion],
    ) -> None:
        if isinstance(texts, str) or len(texts) < 2 or not questions:
            raise SteerlensError(
                "side effects need at least 2 texts in a list, and at least 1 question; got "
                f"{'one text' if isinstance(texts, str) else f'{len(texts)} texts'} and "
                f"{len(questions)} questions"
            )
        self.model = model
        self.passages: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        for i, tokens in enumerate(self._tokens(texts)):
            if len(tokens) <= _N_PROMPT:
                raise SteerlensError(
                    f"text {i} has {len(tokens)} tokens; a passage needs more than {_N_PROMPT}, "
                    "which are its prompt"
                )
            self.passages.append((tokens[:_N_PROMPT], tokens[_N_PROMPT:_N_TOKENS]))
        # Answers of one question side by side, the right one first.
        self.n_answers = [1 + len(question.others) for question in questions]
        self.answers = [row for question in questions for row in self._answer_rows(question)]

    @property
    def n_tokens(self) -> int:
        """Tokens scored for one setting."""
        scored = sum(len(row) - first for _, row, first in self.answers)
        return scored + sum(len(response) for _, response in self.passages)

    def rows(self, steering: Steering | None, start: int) -> list[ForcedRow]:
        """The rows of one setting, numbered from `start`."""
        parts = [*((prompt, response, 0) for prompt, response in self.passages), *self.answers]
        return [
            ForcedRow(start + i, prompt, response, steering, first)
            for i, (prompt, response, first) in enumerate(parts)
        ]

    def measured(
        self,
        steerings: Sequence[Steering | None],
        batch_size: int | None = None,
        done: Callable[[int], object] = lambda n: None,
    ) -> tuple[Float[Array, "setting passage"], Bool[Array, "setting question"]]:
        """Mean negative log-likelihoods, and which questions are right, under each steering.

        Raises:
            SteeringError: A steering does not fit the model.
        """
        rows: list[ForcedRow] = []
        for steering in steerings:
            rows += self.rows(steering and _at_full_strength(steering), len(rows))
        logprobs, _ = log_likelihoods(self.model, rows, batch_size, done)
        by_setting = logprobs.reshape(len(steerings), -1)
        n = len(self.passages)
        nll = -by_setting[:, :n] / [len(response) for _, response in self.passages]
        ends = np.cumsum(self.n_answers)[:-1]
        right = [
            np.stack([_is_first_best(likely) for likely in np.split(row, ends)])
            for row in by_setting[:, n:]
        ]
        return nll, np.stack(right)

    def _answer_rows(
        self, question: CommonQuestion
    ) -> list[tuple[tuple[int, ...], tuple[int, ...], int]]:
        """Prompt, response, and the response's first token that is scored, of each answer."""
        asked = f"Question: {question.question}"
        context = f"{asked}\nAnswer:"
        answers = (question.answer, *question.others)
        texts = [asked, context, *(f"{context} {answer}" for answer in answers)]
        prompt, known, *wholes = self._tokens(texts)
        # Tokens may join across a border: what is shared counts as before it.
        n_prompt, n_known = _n_shared([prompt, known]), _n_shared([known, *wholes])
        return [(w[:n_prompt], w[n_prompt:], n_known - n_prompt) for w in wholes]

    def _tokens(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Token ids of texts without a chat template, with BOS where the tokenizer puts one."""
        tokenizer = attached_tokenizer(self.model)
        names = [f"text {i}" for i in range(len(texts))]
        begin = [tokenizer.bos_token_id] if model_info(self.model).prepends_bos else []
        return [tuple(begin + row) for row in literal_ids(tokenizer, texts, names)]


def _at_full_strength(steering: Steering) -> Steering:
    return Steering(tuple(replace(each, adaptive=0.0) for each in steering.interventions))


def _is_first_best(likely: Float[Array, "answer"]) -> bool:
    """Whether the first is the largest; not where any is NaN."""
    return bool(np.isfinite(likely).all()) and int(likely.argmax()) == 0


def _n_shared(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all begin with."""
    columns = list(zip(*rows, strict=False))
    return next((i for i, column in enumerate(columns) if len(set(column)) > 1), len(columns))
