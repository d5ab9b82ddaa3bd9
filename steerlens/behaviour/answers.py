"""Responses to many prompts, each under its own steering, remembered in a run folder.

`Answerer.ask` cuts a list of questions into **pieces** of fixed size, names each by what it depends
on (the model's identity, the prompts and their token ids, steerings in words, length, decoding),
and looks into the run before it generates: a resumed run finds what it has, and equal pieces are
answered once. An edited weight, another chat template, or one that writes today's date makes other
pieces.
A piece is decoded as one stream of rows with a fixed number of slots, so its texts do not depend
on what was answered before it: in bfloat16 a different batch rounds differently.

Pieces are independent, so workers may compute them (`steerlens.workers`): the same rows together,
by the same function (`answer_rows`), in whatever order. Only this process writes the run.
`Answerer.residuals` has the residuals that vectors are fitted on computed in the same place, which
are not kept in the run, and `Answerer.perplexities` a judge's perplexities, which are.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from steerlens.activations.cache import Position, ResidualCache, check_layers
from steerlens.activations.pieces import ResidualPiece, residual_pieces
from steerlens.behaviour.judge import Judge, JudgePiece
from steerlens.engine.generation import generate_from_tokens
from steerlens.engine.remembered import naming_key, rendered_example
from steerlens.engine.sampling import GREEDY, Decoding
from steerlens.errors import SteerlensError
from steerlens.errors.progress import shown
from steerlens.models.conversations import Prompt
from steerlens.models.identity import attached_tokenizer, digest_of_rows
from steerlens.models.loading import end_token_ids, tokenize_prompts
from steerlens.runs import Run, piece_name
from steerlens.runs.executors import Workers, executor
from steerlens.steering.interventions import Steering
from steerlens.tasks.pairs import ContrastSet

__all__ = [
    "JUDGED_AT_ONCE",
    "Answer",
    "Answerer",
    "Elsewhere",
    "LostPiecesError",
    "Piece",
    "Question",
    "Records",
    "answer_rows",
    "answering",
]

Records = list[dict[str, Any]]
# Gives each piece with its result, as it is finished.
Compute = Callable[[Sequence[Any]], Iterator[tuple[Any, Any]]]
# Responses a judge reads as one piece.
JUDGED_AT_ONCE = 256


class LostPiecesError(SteerlensError):
    """Workers could not compute what was asked of them; what they finished is kept."""


@dataclass(frozen=True, eq=False)
class Question:
    """A prompt to answer.

    Attributes:
        prompt: The user's message, or a conversation.
        steering: What to apply; ``None`` for nothing.
        label: Everything that decides `steering`, as plain data: the piece's name is made of it.
        sample: Which of its prompt's samples it is.
    """

    prompt: Prompt
    steering: Steering | None = None
    label: Mapping[str, Any] | None = None
    sample: int = 0


@dataclass(frozen=True)
class Answer:
    """A response: its text, its length in tokens, and why it ended ("stop", "length", …)."""

    text: str
    n_tokens: int
    finish_reason: str


@dataclass(frozen=True, eq=False)
class Piece:
    """Questions answered together: the unit that is named, computed anywhere, and kept.

    Attributes:
        name: See `steerlens.runs.piece_name`.
        questions: Its rows.
        max_new_tokens: Longest response, in tokens.
        batch_size: Rows decoded together.
        rows: Token ids of each prompt, by which it is named and from which it is computed; None:
            the prompts are rendered where it is computed.
        decoding: How its rows are decoded.
    """

    name: str
    questions: tuple[Question, ...]
    max_new_tokens: int
    batch_size: int
    rows: tuple[tuple[int, ...], ...] | None = None
    decoding: Decoding = GREEDY

    def __len__(self) -> int:
        return len(self.questions)


@runtime_checkable
class Elsewhere(Protocol):
    """Workers that compute pieces; see `steerlens.workers`."""

    def answers(self, pieces: Sequence[Piece]) -> Iterator[tuple[Piece, Records]]:
        """Each piece with its records."""

    def residuals(
        self, pieces: Sequence[ResidualPiece]
    ) -> Iterator[tuple[ResidualPiece, ResidualCache]]:
        """Each piece with its residuals."""

    def perplexities(
        self, pieces: Sequence[JudgePiece]
    ) -> Iterator[tuple[JudgePiece, list[float | None]]]:
        """Each piece with the perplexity of its responses."""


class Answerer:
    """Answers questions with one model, remembering answers; several threads may ask.

    Args:
        model: A hooked model.
        run: Where answers are kept; ``None`` keeps them in memory.
        batch_size: Rows decoded together.
        piece_rows: Rows per piece.
        show_progress: Show a progress bar for each list of questions.
        elsewhere: Workers that compute pieces; ``None`` computes them here.

    Attributes:
        alone: Held by whoever uses this process's models, one thread at a time.
        n_tokens: Tokens answered so far.
    """

    def __init__(
        self,
        model: TransformerBridge,
        run: Run | None = None,
        batch_size: int = 96,
        piece_rows: int = 192,
        show_progress: bool = False,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self.model = model
        self.run = run
        self.batch_size = batch_size
        self.piece_rows = piece_rows
        self.show_progress = show_progress
        self.elsewhere = elsewhere
        self.alone = threading.RLock()
        self.n_tokens = 0
        self._memory: dict[str, Records] = {}
        self._lock = threading.RLock()

    def ask(
        self,
        questions: Sequence[Question],
        max_new_tokens: int,
        what: str = "answering",
        decoding: Decoding = GREEDY,
    ) -> list[Answer]:
        """Responses in the order of the questions, the samples of one side by side.

        Questions with the same prompt draw from the same stream, whatever their steering.

        Args:
            questions: What to answer.
            max_new_tokens: Longest response, in tokens.
            what: A word for the progress bar.
            decoding: How, and how many times each.

        Raises:
            ModelError: A prompt that cannot be read (`steerlens.models.loading.tokenize_prompts`).
            LostPiecesError: Workers could not answer some pieces; the others are kept.
        """
        samples = range(decoding.samples)
        questions = [replace(asked, sample=i) for asked in questions for i in samples]
        pieces = self._pieces(questions, max_new_tokens, replace(decoding, samples=1))
        there = None if self.elsewhere is None else self.elsewhere.answers
        what = f"{what} (at most {len(questions) * max_new_tokens:,} tokens)"
        records = self._records(pieces, self._computed(self._generate, there), what)
        answers = [Answer(**record) for record in records]
        with self._lock:
            self.n_tokens += sum(answer.n_tokens for answer in answers)
        return answers

    def residuals(self, pairs: ContrastSet, position: Position, batch_size: int) -> ResidualCache:
        """Residuals of all layers, as `cache_residuals` gives them, computed where answers are.

        Raises:
            SteerlensError: As `cache_residuals`.
            LostPiecesError: Workers could not compute them.
        """
        layers = check_layers(self.model, None)
        pieces = residual_pieces(self.model, [pairs], position, layers, batch_size)
        there = None if self.elsewhere is None else self.elsewhere.residuals
        compute = self._computed(lambda piece: piece.compute(self.model), there)
        cache: ResidualCache
        [(_, cache)] = compute(pieces)
        return cache

    def perplexities(
        self, judge: Judge, responses: Sequence[str], max_tokens: int
    ) -> list[float | None]:
        """The judge's perplexity of each response, computed where answers are and kept with them.

        Raises:
            SteerlensError: As `Judge.perplexities`.
            LostPiecesError: Workers could not read some pieces.
        """
        texts = list(dict.fromkeys(responses))
        starts = range(0, len(texts), JUDGED_AT_ONCE)
        pieces = judge.pieces([texts[i : i + JUDGED_AT_ONCE] for i in starts], max_tokens)
        there = None if self.elsewhere is None else self.elsewhere.perplexities
        compute = self._computed(lambda piece: piece.compute(judge), there)

        def judged(missing: Sequence[JudgePiece]) -> Iterator[tuple[JudgePiece, Records]]:
            for piece, values in compute(missing):
                yield piece, [{"perplexity": value} for value in values]

        records = self._records(pieces, judged, "judging")
        by_text = dict(zip(texts, (record["perplexity"] for record in records), strict=True))
        return [by_text[response] for response in responses]

    def remembered(self, content: Mapping[str, Any], compute: Callable[[], Records]) -> Records:
        """Records of anything else, named by the model and `content`; computed here, and kept."""
        name = piece_name({**naming_key(self.model), **content})
        records = self._kept(name)
        if records is None:
            with self.alone:
                records = self._keep(name, compute())
        return records

    def _pieces(
        self, questions: Sequence[Question], max_new_tokens: int, decoding: Decoding = GREEDY
    ) -> list[Piece]:
        """The questions in pieces, named by the model and by what it reads at this moment."""
        if not questions:
            return []
        with self._lock:
            key = naming_key(self.model)
            prompts = [question.prompt for question in questions]
            tokens = [tuple(row) for row in tokenize_prompts(self.model, prompts)]
            ends = sorted(end_token_ids(self.model))
        pieces = []
        for start in range(0, len(questions), self.piece_rows):
            part = tuple(questions[start : start + self.piece_rows])
            rows = tuple(tokens[start : start + self.piece_rows])
            content = {
                **key,
                "ends": ends,
                "batch_size": self.batch_size,
                "max_new_tokens": max_new_tokens,
                "rows": [[question.prompt, question.label] for question in part],
                "tokens": digest_of_rows(rows),
            }
            if not decoding.is_plain:
                content["decoding"] = asdict(decoding)
                content["samples"] = [question.sample for question in part]
            name = piece_name(content)
            pieces.append(Piece(name, part, max_new_tokens, self.batch_size, rows, decoding))
        return pieces

    def _records(self, pieces: Sequence[Any], compute: Compute, what: str) -> Records:
        """The records of all pieces, in order: those that are kept, and the others computed."""
        records = {piece.name: self._kept(piece.name) for piece in pieces}
        missing = {piece.name: piece for piece in pieces if records[piece.name] is None}
        done = sum(len(piece) for piece in pieces if piece.name not in missing)
        total, disable = sum(map(len, pieces)), not self.show_progress
        with tqdm(
            total=total, initial=done, desc=what, unit="response", disable=disable, leave=False
        ) as bar:
            for piece, computed in compute(list(missing.values())):
                records[piece.name] = self._keep(piece.name, computed)
                bar.update(len(piece))
        return [record for piece in pieces for record in records[piece.name] or ()]

    def _computed(self, here: Callable[[Any], Any], there: Compute | None) -> Compute:
        """A function that computes pieces: one by one here, or all of them in workers."""

        def compute(pieces: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
            if there is not None:
                try:
                    yield from there(pieces)
                except SteerlensError as error:
                    raise LostPiecesError(str(error)) from error
                return
            for piece in pieces:
                with self.alone:
                    result = here(piece)
                yield piece, result

        return compute

    def _generate(self, piece: Piece) -> Records:
        return answer_rows(self.model, piece)

    def _kept(self, name: str) -> Records | None:
        with self._lock:
            return self.run.finished(name) if self.run else self._memory.get(name)

    def _keep(self, name: str, records: Records) -> Records:
        with self._lock:
            if self.run:
                return self.run.finish(name, records)
            return self._memory.setdefault(name, records)


@contextmanager
def answering(
    model: TransformerBridge,
    out: str | Path,
    kind: str,
    described: Mapping[str, Any],
    settings: Any,
    resume: bool = False,
    show_progress: bool | None = None,
    workers: Workers | None = None,
    judge: Judge | None = None,
) -> Iterator[tuple[Run, Answerer]]:
    """A run folder, open, and an answerer that keeps its answers there, as a context.

    `described` is all that the result depends on, for the run's manifest; `settings` has
    `batch_size` and `piece_rows`.
    """
    with (
        Run.open(out, kind=kind, settings=described, resume=resume) as run,
        executor(model, workers, run, judge) as pool,
    ):
        run.note(rendered_example(model))
        rows = settings.batch_size, settings.piece_rows
        yield run, Answerer(model, run, *rows, shown(show_progress), pool)


def answer_rows(model: TransformerBridge, piece: Piece) -> Records:
    """The records of a piece, wherever it is computed."""
    steerings = [question.steering for question in piece.questions]
    rows = piece.rows or tokenize_prompts(model, [asked.prompt for asked in piece.questions])
    for steering in {id(steering): steering for steering in steerings}.values():
        if steering is not None:
            steering.check_model(model)
    finished, _ = generate_from_tokens(
        model,
        rows,
        steerings,
        piece.max_new_tokens,
        piece.batch_size,
        show_progress=False,
        decodings=[piece.decoding] * len(rows),
        seeds=[
            _seed(piece.decoding.seed, row, asked.sample)
            for row, asked in zip(rows, piece.questions, strict=True)
        ],
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


def _seed(seed: int, row: Sequence[int], sample: int) -> int:
    """The seed of a row's stream: by its prompt, so that steerings are compared on equal draws."""
    digest = hashlib.sha256(repr((seed, sample, list(row))).encode()).digest()
    return int.from_bytes(digest[:7], "big")
