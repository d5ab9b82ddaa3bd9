"""Where residuals are read: the token rows of both sides of pairs, and a span in each."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.residuals import Span
from steerlens.errors import ActivationError, PairsError, unknown_name
from steerlens.models.control_tokens import literal_ids
from steerlens.models.identity import attached_tokenizer
from steerlens.models.loading import model_info, tokenize_prompts
from steerlens.tasks.pairs import ContrastSet

__all__ = ["POSITIONS", "SIDES", "Position", "RowsToRead", "rows_to_read"]

Position = str | int
SIDES = ("instructed", "uninstructed")
RESPONSE_POSITIONS = ("response_mean", "last_response", "answer")
POSITIONS = ("last_prompt", *RESPONSE_POSITIONS)


class RowsToRead(NamedTuple):
    """All instructed rows, then all uninstructed ones.

    Attributes:
        tokens: Token ids of each row.
        spans: Half-open range of tokens that each row is read at.
        prompt_lengths: Tokens of each rendered prompt.
    """

    tokens: list[list[int]]
    spans: list[Span]
    prompt_lengths: list[int]


def rows_to_read(
    model: TransformerBridge,
    pairs: ContrastSet,
    position: Position,
    chat_format: str = "auto",
    control_tokens: str = "escape",
) -> RowsToRead:
    """The token rows of both sides of pairs, and the span that each is read at.

    Raises:
        ActivationError: A position out of range, or a row longer than the model's context.
        PairsError: No `ContrastSet`; a position in responses, and a pair without them.
        UnknownNameError: A position that does not exist.
    """
    check_pairs(pairs)
    sides = [(side, i) for side in SIDES for i in range(len(pairs))]
    prompts = [getattr(pairs[i], side) for side, i in sides]
    rows = tokenize_prompts(model, prompts, chat_format, control_tokens)
    lengths = [len(row) for row in rows]
    if position == "last_prompt":
        if pairs.same_prompts:
            raise PairsError(
                "both sides of every pair have the same prompt, so nothing differs at its last "
                "token; read at position 'answer' or 'response_mean'"
            )
        return RowsToRead(rows, [(n - 1, n) for n in lengths], lengths)
    if position in RESPONSE_POSITIONS:
        rows = _with_responses(model, rows, pairs, sides, str(position), control_tokens)
        if position == "last_response":
            return RowsToRead(rows, [(len(row) - 1, len(row)) for row in rows], lengths)
        if position == "answer":
            return RowsToRead(rows, _answer_spans(rows, pairs, lengths), lengths)
        spans = [(n, len(row)) for n, row in zip(lengths, rows, strict=True)]
        return RowsToRead(rows, spans, lengths)
    if isinstance(position, str):
        raise unknown_name("position", position, POSITIONS)
    for (side, i), n in zip(sides, lengths, strict=True):
        if not -n <= position < n:
            raise ActivationError(
                f"position {position} is out of range for the {side} prompt of pair {i}, which has "
                f"{n} tokens"
            )
    return RowsToRead(rows, [(position % n, position % n + 1) for n in lengths], lengths)


def _answer_spans(
    rows: Sequence[Sequence[int]], pairs: ContrastSet, lengths: Sequence[int]
) -> list[Span]:
    """The first token at which the two responses of each pair differ."""
    n = len(pairs)
    places = []
    for i in range(n):
        sides = zip(rows[i][lengths[i] :], rows[i + n][lengths[i + n] :], strict=False)
        place = next((place for place, (a, b) in enumerate(sides) if a != b), None)
        if place is None:
            raise PairsError(
                f"position 'answer' needs two answers that differ; those of pair {i} are the same, "
                "or one begins with the other"
            )
        places.append(place)
    starts = [length + places[i % n] for i, length in enumerate(lengths)]
    return [(start, start + 1) for start in starts]


def check_pairs(pairs: Any) -> None:
    """Refuse what is no `ContrastSet`."""
    if not isinstance(pairs, ContrastSet):
        raise PairsError(
            f"pairs must be a ContrastSet; got {type(pairs).__name__}; see ContrastSet.from_prompts"
        )


def _with_responses(
    model: TransformerBridge,
    prompts: Sequence[list[int]],
    pairs: ContrastSet,
    sides: Sequence[tuple[str, int]],
    position: str,
    control_tokens: str,
) -> list[list[int]]:
    """Token ids of each prompt and its response."""
    texts = []
    for side, i in sides:
        text = getattr(pairs[i], f"{side}_response")
        if not text:
            raise PairsError(
                f"position {position!r} needs a response on both sides; pair {i} has no "
                f"{side}_response"
            )
        texts.append(text)
    names = [f"the {side} response of pair {i}" for side, i in sides]
    responses = literal_ids(attached_tokenizer(model), texts, names, control_tokens)
    rows = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
    limit = model_info(model).context_length
    for (side, i), row in zip(sides, rows, strict=True):
        if len(row) > limit:
            raise ActivationError(
                f"{side} prompt and response of pair {i} have {len(row)} tokens together; the "
                f"model's context holds {limit}"
            )
    return rows
