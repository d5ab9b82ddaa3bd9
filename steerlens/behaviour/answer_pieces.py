"""Questions, their answers, and the pieces in which they are computed, here or elsewhere."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from transformer_lens.model_bridge import TransformerBridge

from steerlens.activations.cache import ResidualCache
from steerlens.activations.pieces import ResidualPiece
from steerlens.engine.generation import generate_from_tokens
from steerlens.models.identity import attached_tokenizer
from steerlens.models.loading import tokenize_prompts
from steerlens.steering.interventions import Steering

if TYPE_CHECKING:
    from steerlens.behaviour.judge import JudgePiece

__all__ = ["Answer", "Asked", "Elsewhere", "Piece", "Question", "Records", "answer_rows"]

Records = list[dict[str, Any]]
# A prompt, or the token ids it is read as.
Asked = str | tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Question:
    """A prompt to answer.

    Attributes:
        prompt: The user's message.
        steering: What to apply; ``None`` for nothing.
        label: Everything that decides `steering`, as plain data: the piece's name is made of it.
    """

    prompt: str
    steering: Steering | None = None
    label: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Answer:
    """A response.

    Attributes:
        text: The response.
        n_tokens: Its length.
        finish_reason: See `steerlens.engine.generation.Generations`.
    """

    text: str
    n_tokens: int
    finish_reason: str


@dataclass(frozen=True, eq=False)
class Piece:
    """Questions answered together: the unit that is named, computed anywhere, kept, and lost.

    Attributes:
        name: See `steerlens.runs.piece_name`.
        questions: Its rows.
        max_new_tokens: Longest response, in tokens.
        batch_size: Rows decoded together.
        rows: Token ids of each prompt, by which it is named and of which it is computed; None: the
            prompts are rendered where it is computed.
    """

    name: str
    questions: tuple[Question, ...]
    max_new_tokens: int
    batch_size: int
    rows: tuple[tuple[int, ...], ...] | None = None

    @property
    def asked(self) -> tuple[Asked, ...]:
        """What is answered, a row each: token ids, else the prompt."""
        return self.rows or tuple(question.prompt for question in self.questions)


@runtime_checkable
class Elsewhere(Protocol):
    """Computes pieces outside this process; see `steerlens.workers.pool`."""

    def answers(self, pieces: Sequence[Piece]) -> Iterator[tuple[Piece, Records]]:
        """Each piece with its records, as they are finished."""

    def residuals(
        self, pieces: Sequence[ResidualPiece]
    ) -> Iterator[tuple[ResidualPiece, ResidualCache]]:
        """Each piece with its residuals, as they are finished."""

    def perplexities(
        self, pieces: Sequence["JudgePiece"]
    ) -> Iterator[tuple["JudgePiece", list[float | None]]]:
        """Each piece with the perplexity of its responses, as they are finished."""


def answer_rows(
    model: TransformerBridge,
    asked: Sequence[Asked],
    steerings: Sequence[Steering | None],
    max_new_tokens: int,
    batch_size: int,
) -> Records:
    """The records of a piece; every engine comes down to this call."""
    rows: list[Sequence[int]] = [
        tokenize_prompts(model, [one])[0] if isinstance(one, str) else one for one in asked
    ]
    for steering in {id(one): one for one in steerings}.values():
        if steering is not None:
            steering.check_model(model)
    finished, _ = generate_from_tokens(
        model, rows, steerings, max_new_tokens, batch_size, progress=False
    )
    decode = attached_tokenizer(model).decode
    return [
        asdict(
            Answer(
                text=decode(row.produced, skip_special_tokens=True),
                n_tokens=len(row.produced),
                finish_reason=row.reason or "length",
            )
        )
        for row in finished
    ]
