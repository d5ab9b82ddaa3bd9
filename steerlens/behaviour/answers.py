"""Responses to many prompts, each under its own steering, remembered in a run folder.

Long work asks for responses in lists. `Answerer.ask` cuts a list into **pieces** of fixed size,
names each by what it is (the model's identity, the prompts and their token ids, steerings in words,
length), and looks into the run before it generates: a resumed run finds what it has, and two
questions that are alike are answered once. An edited weight, another chat template, or one that
writes today's date makes other pieces, which are computed anew.
A piece is decoded as one stream of rows with a fixed number of slots, so its texts do not depend
on what was answered before it: in bfloat16 a different batch rounds differently.

Pieces are independent, so they may be computed elsewhere (`steerlens.workers`): the same rows
together, by the same function (`answer_rows`), in whatever order. Only this process writes the run.
`Answerer.residuals` has the residuals that vectors are fitted on computed in the same place, which
are not kept in the run, and `Answerer.perplexities` what a judge makes of responses, which is.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from steerlens.activations.cache import Position, ResidualCache, check_layers
from steerlens.activations.pieces import residual_pieces
from steerlens.behaviour.answer_pieces import (
    Answer,
    Asked,
    Elsewhere,
    Piece,
    Question,
    Records,
    answer_rows,
)
from steerlens.engine.remembered import naming_key
from steerlens.errors import SteerlensError
from steerlens.models.identity import digest_of_rows
from steerlens.models.loading import end_token_ids, tokenize_prompts
from steerlens.runs import Run, piece_name
from steerlens.tasks.pairs import ContrastSet

if TYPE_CHECKING:
    from steerlens.behaviour.judge import Judge, JudgePiece

__all__ = [
    "JUDGED_AT_ONCE",
    "Answer",
    "Answerer",
    "Asked",
    "Elsewhere",
    "Piece",
    "Question",
    "Records",
    "answer_rows",
]

# Responses a judge reads as one piece.
JUDGED_AT_ONCE = 256


class SharedBar:
    """One progress bar for all lists that several threads have under way at once.

    Args:
        disable: Show none.
    """

    def __init__(self, disable: bool) -> None:
        self._disable = disable
        self._bar: Any = None
        self._n_lists = 0
        self._lock = threading.Lock()

    @contextmanager
    def part(self, total: int, what: str) -> Iterator[Callable[[int], None]]:
        """A list of so many responses, as a context; what it gives moves the bar on."""
        with self._lock:
            if self._bar is None:
                self._bar = tqdm(total=0, unit="response", disable=self._disable, leave=False)
            self._n_lists += 1
            self._bar.total += total
            self._bar.set_description(what)
        try:
            yield self._advance
        finally:
            with self._lock:
                self._n_lists -= 1
                if not self._n_lists:
                    self._bar.close()
                    self._bar = None

    def _advance(self, n: int) -> None:
        with self._lock:
            self._bar.update(n)


class Answerer:
    """Answers questions with one model, remembering answers; several threads may ask.

    Args:
        model: A hooked model.
        run: Where answers are kept; ``None`` keeps them in memory.
        batch_size: Rows decoded together.
        piece_rows: Rows a piece.
        progress: Show a progress bar, one for all lists that are asked at once.
        elsewhere: Computes pieces; ``None`` computes them here.

    Attributes:
        alone: Held by whoever uses this process's models, one thread at a time.
    """

    def __init__(
        self,
        model: TransformerBridge,
        run: Run | None = None,
        batch_size: int = 96,
        piece_rows: int = 192,
        progress: bool = False,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self.model = model
        self.run = run
        self.batch_size = batch_size
        self.piece_rows = piece_rows
        self._bar = SharedBar(not progress)
        self.elsewhere = elsewhere
        self.alone = threading.RLock()
        self.n_tokens = 0
        self._memory: dict[str, Records] = {}
        self._writing = threading.RLock()
        self._naming = threading.Lock()
        self._unanswered = threading.local()
        self._under_way: dict[str, threading.Event] = {}

    def ask(
        self, questions: Sequence[Question], max_new_tokens: int, what: str = "answering"
    ) -> list[Answer]:
        """Greedy responses in the order of the questions.

        Args:
            questions: What to answer.
            max_new_tokens: Longest response, in tokens.
            what: A word for the progress bar.

        Raises:
            ModelError: A prompt that cannot be read; see
            `steerlens.models.loading.tokenize_prompts`. SteerlensError: Pieces that workers could
            not answer; the others are kept.
        """
        pieces = self._pieces(questions, max_new_tokens)
        found = {piece.name: self._known(piece.name) for piece in pieces}
        missing = {piece.name: piece for piece in pieces if found[piece.name] is None}
        what = f"{what} (at most {len(questions) * max_new_tokens:,} tokens)"
        with self._bar.part(len(questions), what) as advance:
            advance(sum(len(piece.questions) for piece in pieces if piece.name not in missing))
            for piece, records in self._each_once(list(missing.values())):
                found[piece.name] = records
                advance(len(piece.questions))
        answers = [Answer(**one) for piece in pieces for one in found[piece.name] or ()]
        with self._writing:
            self.n_tokens += sum(answer.n_tokens for answer in answers)
        return answers

    def residuals(self, pairs: ContrastSet, position: Position, batch_size: int) -> ResidualCache:
        """Residuals of all layers, computed where answers are.

        Args:
            pairs: Contrast pairs.
            position: As for `steerlens.activations.cache.cache_residuals`.
            batch_size: Prompts a forward pass.

        Raises:
            SteerlensError: As `cache_residuals`; or a piece that workers could not compute.
        """
        layers = check_layers(self.model, None)
        [piece] = residual_pieces(self.model, [pairs], position, layers, batch_size)
        if self.elsewhere is None:
            with self.alone:
                return piece.compute(self.model)
        with self._noted():
            [(_, cache)] = self.elsewhere.residuals([piece])
        return cache

    def perplexities(
        self, judge: "Judge", responses: Sequence[str], max_tokens: int
    ) -> list[float | None]:
        """The judge's perplexity of each response, computed where answers are and kept with them.

        Args:
            judge: Reads them; workers have one like it.
            responses: Texts; those that are alike are read once.
            max_tokens: As for `Judge.perplexities`.

        Raises:
            SteerlensError: As `Judge.perplexities`; or pieces that workers could not read.
        """
        texts = list(dict.fromkeys(responses))
        starts = range(0, len(texts), JUDGED_AT_ONCE)
        parts = [texts[i : i + JUDGED_AT_ONCE] for i in starts]
        pieces = judge.pieces(parts, max_tokens)
        records = {piece.name: self._known(piece.name) for piece in pieces}
        missing = [piece for piece in pieces if records[piece.name] is None]
        with self._bar.part(sum(len(piece.texts) for piece in missing), "judging") as advance:
            for piece, values in self._judged(judge, missing):
                found = [{"perplexity": value} for value in values]
                records[piece.name] = self._keep(piece.name, found)
                advance(len(values))
        in_order = [one["perplexity"] for piece in pieces for one in records[piece.name] or ()]
        by_text = dict(zip(texts, in_order, strict=True))
        return [by_text[response] for response in responses]

    def check_answered(self) -> None:
        """Raise once more what this thread's questions met elsewhere, and forget it.

        Who asks may take an error for an answer: an estimator that cannot be fitted is left out of
        a search. That pieces were lost by workers must not look like that.

        Raises:
            SteerlensError: As `ask` raised it.
        """
        error = self._unanswered.__dict__.pop("error", None)
        if error is not None:
            raise error

    def _pieces(self, questions: Sequence[Question], max_new_tokens: int) -> list[Piece]:
        """The questions in pieces, named by the model and by what it reads at this moment."""
        if not questions:
            return []
        with self._naming:
            key = naming_key(self.model)
            prompts = [question.prompt for question in questions]
            rows = [tuple(row) for row in tokenize_prompts(self.model, prompts)]
            ends = sorted(end_token_ids(self.model))
        pieces = []
        for start in range(0, len(questions), self.piece_rows):
            own = tuple(questions[start : start + self.piece_rows])
            read = tuple(rows[start : start + self.piece_rows])
            content = {
                **key,
                "ends": ends,
                "batch_size": self.batch_size,
                "max_new_tokens": max_new_tokens,
                "rows": [[question.prompt, question.label] for question in own],
                "tokens": digest_of_rows(read),
            }
            pieces.append(Piece(piece_name(content), own, max_new_tokens, self.batch_size, read))
        return pieces

    def _each_once(self, pieces: Sequence[Piece]) -> Iterator[tuple[Piece, Records]]:
        """Compute and keep pieces; those another thread is at are waited for, after one's own."""
        own, others, since = [], [], []
        with self._writing:
            for piece in pieces:
                if (known := self._known(piece.name)) is not None:
                    since.append((piece, known))
                elif (event := self._under_way.get(piece.name)) is not None:
                    others.append((piece, event))
                else:
                    self._under_way[piece.name] = threading.Event()
                    own.append(piece)
        try:
            yield from since
            for piece, records in self._computed(own):
                kept = self._keep(piece.name, records)
                self._end(piece)
                yield piece, kept
        finally:
            for piece in own:
                self._end(piece)
        for piece, event in others:
            event.wait()
            known = self._known(piece.name)
            # Its thread may have failed; then it is this one's.
            yield from self._each_once([piece]) if known is None else [(piece, known)]

    def _end(self, piece: Piece) -> None:
        """Whoever waits for a piece goes on; again for one that was ended changes nothing."""
        with self._writing:
            event = self._under_way.pop(piece.name, None)
        if event is not None:
            event.set()

    def _computed(self, pieces: Sequence[Piece]) -> Iterator[tuple[Piece, Records]]:
        if self.elsewhere is not None:
            with self._noted():
                yield from self.elsewhere.answers(pieces)
            return
        for piece in pieces:
            with self.alone:
                records = self._generate(piece)
            yield piece, records

    def _judged(
        self, judge: "Judge", pieces: Sequence["JudgePiece"]
    ) -> Iterator[tuple["JudgePiece", list[float | None]]]:
        if self.elsewhere is not None:
            with self._noted():
                yield from self.elsewhere.perplexities(pieces)
            return
        for piece in pieces:
            with self.alone:
                values = piece.compute(judge)
            yield piece, values

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """What workers could not compute is told once more by `check_answered`."""
        try:
            yield
        except SteerlensError as error:
            self._unanswered.error = error
            raise

    def _known(self, name: str) -> Records | None:
        with self._writing:
            return self.run.finished(name) if self.run else self._memory.get(name)

    def _keep(self, name: str, records: Records) -> Records:
        with self._writing:
            if self.run:
                return self.run.finish(name, records)
            return self._memory.setdefault(name, records)

    def _generate(self, piece: Piece) -> Records:
        return answer_rows(
            self.model,
            piece.asked,
            [question.steering for question in piece.questions],
            piece.max_new_tokens,
            self.batch_size,
        )
