"""Log odds of the matching answer of choices, under any steerings, without generating text.

After the question the two answers share what they begin with and differ in one token; its
probabilities are read where it is predicted (`steerlens.attribution.choices`).

**Scope.** ``answer`` touches the tokens at which the answer is predicted: the question's last token
and what both answers begin with. To the engine these are a response of their own
(`engine_scope`), so the question is read once for all settings. In a text that the model writes
freely it touches the tokens of the response.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.scoring import ForcedRow, Visit, score_rows
from steerlens.errors import PairsError
from steerlens.models.control_tokens import literal_ids
from steerlens.models.conversations import Conversation, continued
from steerlens.models.identity import attached_tokenizer
from steerlens.models.loading import tokenize_prompts
from steerlens.steering.interventions import Steering
from steerlens.tasks.choices import ChoiceItem
from steerlens.tasks.texts import excerpt

__all__ = ["ANSWER", "engine_scope", "steered_log_odds"]

Array = np.ndarray
ANSWER = "answer"


def engine_scope(scope: str) -> str:
    """The scope of the engine that a scope of choices is.

    >>> engine_scope("answer"), engine_scope("all")
    ('response', 'all')
    """
    return "response" if scope == ANSWER else scope


def steered_log_odds(
    model: TransformerBridge,
    items: Sequence[ChoiceItem],
    steerings: Sequence[Steering | None],
    batch_size: int | None = None,
    chat_format: str = "auto",
    show_progress: bool | None = None,
    answer_is_response: bool = False,
    before: Conversation = (),
) -> tuple[Float[Array, "steering item"], Float[Array, "steering item"]]:
    """Log odds of each item's matching answer in nats, and the probability of neither answer.

    Args:
        model: A hooked model.
        items: Questions with two answers.
        steerings: What is done to every item, one after another.
        batch_size: Rows per forward pass; what memory allows by default.
        chat_format: See `steerlens.models.loading`.
        show_progress: Show a progress bar on standard error; by default only in a terminal.
        answer_is_response: Whether the response begins at the question's last token, for scopes
            that tell prompt and response apart; otherwise at the token that differs.
        before: Messages that come before every question.

    Raises:
        PairsError: The tokens of one answer begin the other's, or a question is one token.
    """
    asked = _asked(model, items, chat_format, before)
    rows = [
        question.row(place, steering, answer_is_response)
        for place, (steering, question) in enumerate(product(steerings, asked))
    ]
    measured = np.zeros((len(rows), 2))
    disable = None if show_progress is None else not show_progress
    with tqdm(total=len(rows), desc="choices", unit="row", disable=disable) as bar:
        score_rows(model, rows, _reader(measured, asked, bar.update), batch_size)
    log_odds, neither = measured.reshape(len(steerings), len(items), 2).transpose(2, 0, 1)
    return log_odds, neither


class _Asked(NamedTuple):
    """Token ids of a question and what both answers begin with, and the answers' next tokens."""

    tokens: tuple[int, ...]
    n_question: int
    matching: int
    other: int

    def row(self, index: int, steering: Steering | None, answer_is_response: bool) -> ForcedRow:
        """The row whose last step predicts the token that tells the answers apart."""
        begin = self.n_question - 1 if answer_is_response else len(self.tokens)
        predicted = (*self.tokens[begin:], self.matching)
        return ForcedRow(index, self.tokens[:begin], predicted, steering, len(predicted) - 1)


def _asked(
    model: TransformerBridge,
    items: Sequence[ChoiceItem],
    chat_format: str = "auto",
    before: Conversation = (),
) -> list[_Asked]:
    """The tokens of each item.

    Raises:
        PairsError: The tokens of one answer begin the other's, or a question is one token.
    """
    asked = [continued(before, item.question) for item in items]
    prompts = tokenize_prompts(model, asked, chat_format)
    sides = [
        literal_ids(
            attached_tokenizer(model),
            [getattr(item, side).strip() for item in items],
            [f"the {side} answer of item {i}" for i in range(len(items))],
        )
        for side in ("matching", "other")
    ]
    rows = []
    for item, prompt, matching, other in zip(items, prompts, *sides, strict=True):
        pairs = enumerate(zip(matching, other, strict=False))
        shared = next((i for i, (a, b) in pairs if a != b), None)
        if shared is None:
            raise PairsError(
                f"no token tells the answers {item.matching!r} and {item.other!r} to "
                f"{excerpt(item.question)} apart, because one begins with the other; word them so "
                "that they differ earlier"
            )
        if len(prompt) < 2:
            raise PairsError(
                f"the question {excerpt(item.question)} is a single token, and nothing before the "
                "answer is left unsteered; ask more"
            )
        tokens = (*prompt, *matching[:shared])
        rows.append(_Asked(tokens, len(prompt), matching[shared], other[shared]))
    return rows


def _reader(measured: Float[Array, "row two"], asked: Sequence[_Asked], done: Any) -> Visit:
    """A visitor that notes log odds and the probability of neither answer."""
    pairs = torch.tensor([[question.matching, question.other] for question in asked])

    def visit(rows: list[int], steps: list[int], logits: Float[Tensor, "position vocab"]) -> None:
        chosen = pairs[[row % len(asked) for row in rows]].to(logits.device)
        logprobs = torch.log_softmax(logits, -1, dtype=torch.float32).gather(1, chosen)
        measured[rows, 0] = (logprobs[:, 0] - logprobs[:, 1]).cpu().numpy()
        measured[rows, 1] = (1 - logprobs.exp().sum(-1)).clamp(min=0).cpu().numpy()
        done(len(rows))

    return visit
