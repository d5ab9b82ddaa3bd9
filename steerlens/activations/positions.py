"""Where residuals are read: the token rows of both sides of pairs, and a span in each."""

from collections.abc import Sequence

from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.residuals import Span
from steerlens.errors import ActivationError, PairsError, unknown_name
from steerlens.models.control_tokens import literal_ids
from steerlens.models.identity import attached_tokenizer
from steerlens.models.loading import model_info, tokenize_prompts
from steerlens.tasks.pairs import ContrastPair, ContrastSet

__all__ = ["POSITIONS", "SIDES", "Position", "prompt_lengths", "rows_and_spans"]

Position = str | int
SIDES = ("instructed", "uninstructed")
_OF_RESPONSES = ("response_mean", "last_response")
POSITIONS = ("last_prompt", *_OF_RESPONSES)


def rows_and_spans(
    model: TransformerBridge,
    pairs: ContrastSet,
    position: Position,
    chat_format: str,
    control_tokens: str,
) -> tuple[list[list[int]], list[Span]]:
    """Token rows (all instructed, then all uninstructed) and the span each is read at."""
    rows = _prompts(model, pairs, chat_format, control_tokens)
    if position == "last_prompt":
        return rows, [(len(row) - 1, len(row)) for row in rows]
    if position in _OF_RESPONSES:
        which = [(side, i) for side in SIDES for i in range(len(pairs))]
        responses = literal_ids(
            attached_tokenizer(model),
            [_response(pairs, side, i, str(position)) for side, i in which],
            [f"the {side} response of pair {i}" for side, i in which],
            control_tokens,
        )
        whole = [p + r for p, r in zip(rows, responses, strict=True)]
        _check_context(model, whole, len(pairs))
        if position == "last_response":
            return whole, [(len(row) - 1, len(row)) for row in whole]
        return whole, [(len(p), len(row)) for p, row in zip(rows, whole, strict=True)]
    if isinstance(position, str):
        raise unknown_name("position", str(position), POSITIONS)
    for i, row in enumerate(rows):
        if not -len(row) <= position < len(row):
            raise ActivationError(
                f"position {position} is out of range for the {SIDES[i // len(pairs)]} prompt of "
                f"pair {i % len(pairs)}, which has {len(row)} tokens"
            )
    return rows, [(position % len(row), position % len(row) + 1) for row in rows]


def prompt_lengths(
    model: TransformerBridge,
    pairs: ContrastSet,
    chat_format: str = "auto",
    control_tokens: str = "escape",
) -> tuple[list[int], list[int]]:
    """Tokens of each instructed and of each uninstructed prompt, rendered."""
    rows = _prompts(model, pairs, chat_format, control_tokens)
    lengths = [len(row) for row in rows]
    return lengths[: len(pairs)], lengths[len(pairs) :]


def _prompts(
    model: TransformerBridge, pairs: ContrastSet, chat_format: str, control_tokens: str
) -> list[list[int]]:
    """Token ids of all instructed prompts, then of all uninstructed ones."""
    prompts = [pair.instructed for pair in pairs] + [pair.uninstructed for pair in pairs]
    return tokenize_prompts(model, prompts, chat_format, control_tokens)


def _response(pairs: ContrastSet, side: str, i: int, position: str) -> str:
    pair: ContrastPair = pairs[i]
    text = pair.instructed_response if side == "instructed" else pair.uninstructed_response
    if not text:
        raise PairsError(
            f"position {position!r} needs a response on both sides; pair {i} has no {side}_response"
        )
    return text


def _check_context(model: TransformerBridge, rows: Sequence[Sequence[int]], n_pairs: int) -> None:
    """Refuse rows (all instructed, then all uninstructed) that the model cannot read."""
    limit = model_info(model).context_length
    for i, row in enumerate(rows):
        if len(row) > limit:
            raise ActivationError(
                f"{SIDES[i // n_pairs]} prompt and response of pair {i % n_pairs} have "
                f"{len(row)} tokens together; the model's context holds {limit}"
            )
