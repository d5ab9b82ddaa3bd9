"""Responses to many prompts, each under its own steering, remembered in a run folder.

Long work asks for responses in lists. `Answerer.ask` cuts a list into **pieces** of fixed size,
names each by what it is (prompts, steerings in words, length), and looks into the run before it
generates: a resumed run finds what it has, and two questions that are alike are answered once.
A piece is decoded as one stream of rows with a fixed number of slots, so its texts do not depend
on what was answered before it: in bfloat16 a different batch rounds differently.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from steerlens.generation import generate
from steerlens.models import model_info
from steerlens.runs import Run, piece_name
from steerlens.steering import Steering

__all__ = ["Answer", "Answerer", "Question"]


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
        finish_reason: See `steerlens.generation.Generations`.
    """

    text: str
    n_tokens: int
    finish_reason: str


class Answerer:
    """Answers questions with one model, remembering answers.

    Args:
        model: A hooked model.
        run: Where answers are kept; ``None`` keeps them in memory.
        batch_size: Rows decoded together.
        piece_rows: Rows a piece.
        progress: Show a progress bar for each list of questions.
    """

    def __init__(
        self,
        model: TransformerBridge,
        run: Run | None = None,
        batch_size: int = 96,
        piece_rows: int = 192,
        progress: bool = False,
    ) -> None:
        self.model = model
        self.run = run
        self.batch_size = batch_size
        self.piece_rows = piece_rows
        self.progress = progress
        self.n_tokens = 0
        self._memory: dict[str, list[dict[str, Any]]] = {}

    def ask(
        self, questions: Sequence[Question], max_new_tokens: int, what: str = "answering"
    ) -> list[Answer]:
        """Greedy responses in the order of the questions.

        Args:
            questions: What to answer.
            max_new_tokens: Longest response, in tokens.
            what: A word for the progress bar.
        """
        answers: list[Answer] = []
        disable = not self.progress
        with tqdm(
            total=len(questions), desc=what, unit="response", disable=disable, leave=False
        ) as bar:
            for start in range(0, len(questions), self.piece_rows):
                piece = questions[start : start + self.piece_rows]
                answers += [Answer(**record) for record in self._piece(piece, max_new_tokens)]
                bar.update(len(piece))
        self.n_tokens += sum(answer.n_tokens for answer in answers)
        return answers

    def _piece(self, questions: Sequence[Question], max_new_tokens: int) -> list[dict[str, Any]]:
        info = model_info(self.model)
        name = piece_name(
            {
                "weights": info.weights_hash,
                "dtype": info.precision,
                "batch_size": self.batch_size,
                "max_new_tokens": max_new_tokens,
                "rows": [[question.prompt, question.label] for question in questions],
            }
        )
        known = self.run.finished(name) if self.run else self._memory.get(name)
        if known is not None:
            return known
        records = self._generate(questions, max_new_tokens)
        if self.run:
            return self.run.finish(name, records)
        self._memory[name] = records
        return records

    def _generate(self, questions: Sequence[Question], max_new_tokens: int) -> list[dict[str, Any]]:
        responses = generate(
            self.model,
            [question.prompt for question in questions],
            steering=[question.steering for question in questions],
            max_new_tokens=max_new_tokens,
            batch_size=self.batch_size,
            progress=False,
        )
        rows = zip(
            responses.texts, map(len, responses.tokens), responses.finish_reasons, strict=True
        )
        return [asdict(Answer(*row)) for row in rows]
