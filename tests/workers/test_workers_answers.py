"""Work that workers do: one failure does not stop the others, and is never taken for a result."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from steerlens.activations.cache import ResidualCache
from steerlens.activations.pieces import ResidualPiece
from steerlens.behaviour.answers import Answerer, LostPiecesError, Piece, Records
from steerlens.behaviour.judge import Judge, JudgePiece
from steerlens.behaviour.plans import FitRecipe, VectorBook
from steerlens.behaviour.search import SearchSettings
from steerlens.behaviour.search import run as search_run
from steerlens.behaviour.search.halving import SearchedTask
from steerlens.errors import SteerlensError
from steerlens.runs import Run
from steerlens.tasks import catalogue
from steerlens.tasks.pairs import ContrastSet


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


def test_an_instruction_that_workers_set_aside_does_not_stop_the_others(tiny_model, monkeypatch):
    tasks = [catalogue[name] for name in list(catalogue)[:3]]

    def search_one(_book: Any, task: Any, *_rest: Any) -> str:
        if task is tasks[1]:
            raise SteerlensError("1 of 2 pieces were set aside")
        time.sleep(0.2)
        return SearchedTask({"id": task.id}, {})

    monkeypatch.setattr(search_run, "search_task", search_one)
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

    def search_one(_book: Any, task: Any, *_rest: Any) -> SearchedTask:
        if task is tasks[0]:
            raise ZeroDivisionError("a fault")
        return SearchedTask({"id": task.id}, {})

    monkeypatch.setattr(search_run, "search_task", search_one)
    book = VectorBook(Answerer(tiny_model), FitRecipe())
    found = []
    with pytest.raises(ZeroDivisionError, match="a fault"):
        for one in search_run._searched(book, tasks, SearchSettings(), None, 2):
            found.append(one)
    assert [task for task, _ in found] == tasks[1:]


def test_pieces_that_workers_lost_are_no_estimator_that_cannot_be_had(tiny_model):
    """Fitting leaves out what raises; the plan would then be another than the local one."""

    class Broken(AnswersOnly):
        def answers(self, pieces: Sequence[Piece]) -> Iterator[tuple[Piece, Records]]:
            raise SteerlensError("no worker is left")
            yield

        def residuals(
            self, pieces: Sequence[ResidualPiece]
        ) -> Iterator[tuple[ResidualPiece, ResidualCache]]:
            for piece in pieces:
                yield piece, piece.compute(tiny_model)

    queries = [f"Name {i}." for i in range(4)]
    pairs = ContrastSet.from_prompts([f"{query} Now." for query in queries], queries)
    task, recipe = catalogue["detectable_format:title"], FitRecipe(response_tokens=4)
    there, here = (
        VectorBook(Answerer(tiny_model, elsewhere=workers), recipe) for workers in (Broken(), None)
    )
    there._pairs = here._pairs = lambda *_: pairs
    with pytest.raises(LostPiecesError, match="no worker is left"):
        there.available(task, {})
    # What cannot be had for another reason is left out, and said.
    vectors, problems = here.available(task, {})
    assert "last_prompt" in vectors and "are needed" in problems["response_own"]


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
    with pytest.raises(LostPiecesError, match="no worker is left"):
        answerer.residuals(pairs, "last_prompt", 4)


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
    workers.failing = True
    answerer = Answerer(tiny_model, elsewhere=workers)
    with pytest.raises(LostPiecesError, match="no worker is left"):
        answerer.perplexities(judge, texts, 64)
