"""Several threads ask workers: one bar shows them all, one failure does not stop the others."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import pytest
import torch

from steerlens.activations.cache import ResidualCache
from steerlens.activations.pieces import ResidualPiece
from steerlens.behaviour import answers
from steerlens.behaviour.answers import Answerer, Piece, Question, Records
from steerlens.behaviour.judge import Judge, JudgePiece
from steerlens.behaviour.plans import FitRecipe, VectorBook
from steerlens.behaviour.search import SearchSettings
from steerlens.behaviour.search import run as search_run
from steerlens.behaviour.search.halving import Found
from steerlens.errors import SteerlensError
from steerlens.runs import Run
from steerlens.tasks import catalogue
from steerlens.tasks.pairs import ContrastSet


class Bar:
    """In tqdm's place: what was shown."""

    made: list["Bar"]

    def __init__(self, total: int, disable: bool, **_more: Any) -> None:
        self.total, self.n, self.open, self.shown = total, 0, True, not disable
        self.made.append(self)

    def update(self, n: int) -> None:
        assert self.open
        self.n += n

    def set_description(self, _what: str) -> None:
        pass

    def close(self) -> None:
        self.open = False


class AnswersOnly:
    """Workers that are not asked for residuals, and have no judge."""

    def residuals(
        self, pieces: Sequence[ResidualPiece]
    ) -> Iterator[tuple[ResidualPiece, ResidualCache]]:
        raise AssertionError(f"no residuals were to be cached: {pieces}")

    def perplexities(
        self, pieces: Sequence[JudgePiece]
    ) -> Iterator[tuple[JudgePiece, list[float | None]]]:
        raise AssertionError(f"nothing was to be judged: {pieces}")


class Together(AnswersOnly):
    """Workers that answer when both lists have been asked for."""

    def __init__(self) -> None:
        self.both = threading.Barrier(2, timeout=60)

    def answers(self, pieces: Sequence[Piece]) -> Iterator[tuple[Piece, Records]]:
        self.both.wait()
        for piece in pieces:
            yield (
                piece,
                [{"text": "", "n_tokens": 1, "finish_reason": "stop"}] * len(piece.questions),
            )
        self.both.wait()


def test_lists_asked_for_at_once_share_one_progress_bar(tiny_model, monkeypatch):
    monkeypatch.setattr(Bar, "made", [], raising=False)
    monkeypatch.setattr(answers, "tqdm", Bar)
    answerer = Answerer(tiny_model, piece_rows=2, progress=True, elsewhere=Together())
    lists = [[Question(f"{name} {n}") for n in range(size)] for name, size in (("a", 3), ("b", 4))]
    threads = [threading.Thread(target=answerer.ask, args=(one, 4)) for one in lists]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    [bar] = Bar.made
    assert (bar.total, bar.n, bar.open, bar.shown) == (7, 7, False, True)
    # A later list has a bar of its own, from 0; what is known counts as done.
    answerer.elsewhere = None
    answerer.ask(lists[0], 4)
    assert [(one.total, one.n) for one in Bar.made] == [(7, 7), (3, 3)]


def test_an_instruction_that_workers_set_aside_does_not_stop_the_others(tiny_model, monkeypatch):
    tasks = [catalogue[name] for name in list(catalogue)[:3]]

    def search_one(_book: Any, task: Any, *_rest: Any) -> str:
        if task is tasks[1]:
            raise SteerlensError("1 of 2 pieces were set aside")
        time.sleep(0.2)
        return Found({"id": task.id}, {})

    monkeypatch.setattr(search_run, "search_instruction", search_one)
    book = VectorBook(Answerer(tiny_model), FitRecipe())
    found = []
    words = rf"1 of 3 instructions .* first is {tasks[1].id}: 1 of 2 pieces were set aside"
    with pytest.raises(SteerlensError, match=words):
        for one in search_run._searched(book, tasks, SearchSettings(), None, 2):
            found.append(one)
    assert [(task, one.record) for task, one in found] == [
        (task, {"id": task.id}) for task in (tasks[0], tasks[2])
    ]


def test_a_fault_of_the_program_is_raised_as_it_is_after_the_others(tiny_model, monkeypatch):
    tasks = [catalogue[name] for name in list(catalogue)[:3]]

    def search_one(_book: Any, task: Any, *_rest: Any) -> Found:
        if task is tasks[0]:
            raise ZeroDivisionError("a fault")
        return Found({"id": task.id}, {})

    monkeypatch.setattr(search_run, "search_instruction", search_one)
    book = VectorBook(Answerer(tiny_model), FitRecipe())
    found = []
    with pytest.raises(ZeroDivisionError, match="a fault"):
        for one in search_run._searched(book, tasks, SearchSettings(), None, 2):
            found.append(one)
    assert [task for task, _ in found] == tasks[1:]


def test_pieces_that_workers_lost_are_no_estimator_that_cannot_be_had(tiny_model, monkeypatch):
    """Fitting leaves out what raises; the plan would then be another than the local one."""

    class Broken(AnswersOnly):
        def answers(self, pieces: Sequence[Piece]) -> Iterator[tuple[Piece, Records]]:
            raise SteerlensError("no worker is left")
            yield

    def search_one(book: Any, task: Any, *_rest: Any) -> Found:
        with suppress(SteerlensError):
            if task is tasks[0]:
                book.answerer.ask([Question("Hi")], 4)
        return Found({"id": task.id}, {})

    monkeypatch.setattr(search_run, "search_instruction", search_one)
    tasks = [catalogue[name] for name in list(catalogue)[:4]]
    book = VectorBook(Answerer(tiny_model, elsewhere=Broken()), FitRecipe())
    found = []
    with pytest.raises(SteerlensError, match=r"1 of 4 instructions .*: no worker is left"):
        for one in search_run._searched(book, tasks, SearchSettings(), None, 2):
            found.append(one)
    assert [task for task, _ in found] == tasks[1:]


class Slow(AnswersOnly):
    """Workers that take their time, and fail the first time when told to."""

    def __init__(self, failing: bool = False) -> None:
        self.asked: list[str] = []
        self.failing = failing

    def answers(self, pieces: Sequence[Piece]) -> Iterator[tuple[Piece, Records]]:
        for piece in pieces:
            self.asked.append(piece.name)
            time.sleep(0.2)
            if self.failing:
                self.failing = False
                raise SteerlensError("lost")
            yield piece, [{"text": "a", "n_tokens": 1, "finish_reason": "stop"}]


@pytest.mark.parametrize("failing", [False, True])
def test_a_piece_two_threads_ask_for_is_computed_once(tiny_model, failing):
    workers = Slow(failing)
    answerer = Answerer(tiny_model, elsewhere=workers)
    found: list[str] = []

    def ask() -> None:
        with suppress(SteerlensError):
            found.extend(one.text for one in answerer.ask([Question("the same")], 4))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    # then one failure costs the thread that met it, and one of those that waited takes over
    assert found == ["a"] * (2 if failing else 3)
    assert len(workers.asked) == (2 if failing else 1)
    assert not answerer._under_way


class Caching:
    """Workers that compute residuals, and judge, as this process does, unless told not to."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.asked: list[ResidualPiece] = []
        self.judged: list[JudgePiece] = []
        self.failing = False

    def perplexities(
        self, pieces: Sequence[JudgePiece]
    ) -> Iterator[tuple[JudgePiece, list[float | None]]]:
        for piece in pieces:
            self.judged.append(piece)
            if self.failing:
                raise SteerlensError("no worker is left")
            yield piece, piece.compute(Judge(self.model))

    def answers(self, pieces: Sequence[Piece]) -> Iterator[tuple[Piece, Records]]:
        raise AssertionError(f"nothing was to be answered: {pieces}")

    def residuals(
        self, pieces: Sequence[ResidualPiece]
    ) -> Iterator[tuple[ResidualPiece, ResidualCache]]:
        for piece in pieces:
            self.asked.append(piece)
            if self.failing:
                raise SteerlensError("no worker is left")
            yield piece, piece.compute(self.model)


def test_residuals_to_fit_on_are_computed_where_answers_are(tiny_model):
    workers = Caching(tiny_model)
    pairs = ContrastSet.from_prompts(["Name 1. Now.", "Name 2. Now."], ["Name 1.", "Name 2."])
    here = Answerer(tiny_model).residuals(pairs, "last_prompt", 4)
    answerer = Answerer(tiny_model, elsewhere=workers)
    there = answerer.residuals(pairs, "last_prompt", 4)
    assert [(one.position, one.pairs) for one in workers.asked] == [("last_prompt", pairs)]
    assert torch.equal(here.instructed, there.instructed)
    # What they lose is no estimator that cannot be had.
    workers.failing = True
    with pytest.raises(SteerlensError, match="no worker is left"):
        answerer.residuals(pairs, "last_prompt", 4)
    with pytest.raises(SteerlensError, match="no worker is left"):
        answerer.check_answered()


def test_responses_are_judged_where_answers_are_and_kept_with_them(tiny_model, tmp_path):
    judge, texts = Judge(tiny_model), ["The sea.", "Yes.", "The sea.", ""]
    expected = judge.perplexities(texts)
    workers = Caching(tiny_model)
    with Run.open(tmp_path / "run", kind="evaluate", settings={}) as run:
        answerer = Answerer(tiny_model, run, elsewhere=workers)
        assert answerer.perplexities(judge, texts, 64) == pytest.approx(expected)
        assert [piece.texts for piece in workers.judged] == [("The sea.", "Yes.", "")]
    # A resumed run asks nobody; in this process the numbers are the same.
    with Run.open(tmp_path / "run", kind="evaluate", settings={}, resume=True) as run:
        again = Answerer(tiny_model, run, elsewhere=workers).perplexities(judge, texts, 64)
    assert again == Answerer(tiny_model).perplexities(judge, texts, 64)
    assert len(workers.judged) == 1 and again[3] is None
    # What they lose is told once more.
    workers.failing = True
    answerer = Answerer(tiny_model, elsewhere=workers)
    for ask in (lambda: answerer.perplexities(judge, texts, 64), answerer.check_answered):
        with pytest.raises(SteerlensError, match="no worker is left"):
            ask()
