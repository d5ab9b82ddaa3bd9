"""The pool without Ray: what it says and does when workers are not there, or not the same."""

import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from steerlens.behaviour.answers import Piece, Question
from steerlens.behaviour.judge import Judge, JudgePiece
from steerlens.errors import SteerlensError
from steerlens.runs import Run
from steerlens.runs.executors import executor
from steerlens.workers import WorkerSettings
from steerlens.workers.cluster import _start
from steerlens.workers.pool import Pool
from steerlens.workers.worker import (
    SAME_LIBRARIES,
    WorkerModels,
    check_versions,
    installed_versions,
)

Record = dict[str, Any]


class RayError(Exception):
    pass


class RayTaskError(RayError):
    """What a worker raised is its cause."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class GetTimeoutError(RayError):
    pass


class FakeRay:
    """What the pool uses of Ray, in this process: a reference is a call that gives the result."""

    exceptions = SimpleNamespace(
        RayError=RayError, RayTaskError=RayTaskError, GetTimeoutError=GetTimeoutError
    )

    def __init__(self, answer: Callable[..., Any]) -> None:
        self.answer = answer
        self.n_made = 0
        self.lets_in = True

    def get(self, reference: Any, timeout: float | None = None) -> Any:
        return [one() for one in reference] if isinstance(reference, list) else reference()

    def kill(self, actor: Any) -> None:
        pass

    def remote(self, **_options: Any) -> Callable[[type], Any]:
        return lambda _class: SimpleNamespace(remote=self._made)

    def _made(self, _models: Any) -> Any:
        self.n_made += 1

        def later(call: Callable[..., Any]) -> Any:
            return SimpleNamespace(remote=lambda *given: lambda: call(*given))

        return SimpleNamespace(prepare=later(self._prepare), compute=later(self._compute))

    def _prepare(self) -> Record:
        if not self.lets_in:
            raise RayError("no room on the cluster")
        return {"machine": "node-7", "pid": 1}

    def _compute(self, piece: Any) -> Any:
        return [2.0] * len(piece.texts) if isinstance(piece, JudgePiece) else self.answer(piece)


@pytest.fixture
def made(tiny_model):
    """A function that starts a pool of two workers on a fake Ray."""

    def make(fake: FakeRay) -> Pool:
        settings = WorkerSettings(workers=2)
        pool = Pool(fake, WorkerModels.of(tiny_model, None, settings), settings)
        pool.start()
        return pool

    return make


def pieces(n: int) -> list[Piece]:
    return [Piece(f"piece-{i}", (Question(f"Name {i}."), Question("Hi")), 4, 4) for i in range(n)]


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """What a call gives or raises; a call that waits for ever fails."""
    found: dict[str, Any] = {}

    def run() -> None:
        try:
            found["value"] = call()
        except BaseException as error:
            found["error"] = error

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert found, "the call still waits"
    if "error" in found:
        raise found["error"]
    return found["value"]


def answered(piece: Piece) -> list[Record]:
    return [{"text": "", "n_tokens": 1, "finish_reason": "stop"}] * len(piece.questions)


def test_with_no_worker_left_all_pieces_and_later_ones_get_an_error_at_once(made):
    def die(*_given: Any) -> Any:
        fake.lets_in = False
        raise RayError("killed")

    fake = FakeRay(die)
    pool = made(fake)
    with pytest.raises(SteerlensError, match=r"9 of 9 pieces were set aside.*no worker is left"):
        within(20, lambda: list(pool.answers(pieces(9))))
    with pytest.raises(SteerlensError, match=r"no worker is left \(a worker cannot be started: no"):
        within(20, lambda: list(pool.answers(pieces(2))))
    # A piece that is asked for by a caller who had begun before is refused as well.
    with pytest.raises(SteerlensError, match="no worker is left"):
        within(20, pool._submitted(pieces(1)[0]).result)
    pool.close()


def test_a_worker_that_fails_for_reasons_of_its_own_is_replaced_and_that_is_said(made, caplog):
    """A device that has failed once fails for every piece after, faster than others compute."""
    broken = iter([True, True])

    def answer(piece: Piece) -> Any:
        if next(broken, False):
            raise RayTaskError(RuntimeError("CUDA error: device-side assert\nmore"))
        return answered(piece)

    fake = FakeRay(answer)
    pool = made(fake)
    assert len(within(20, lambda: list(pool.answers(pieces(4))))) == 4
    assert (pool.n_lost, fake.n_made) == (2, 4)
    assert caplog.text.count("was lost (RuntimeError: CUDA error: device-side assert)") == 2
    pool.close()


def test_an_error_of_this_package_costs_no_worker(made):
    def refuse(*_given: Any) -> Any:
        raise RayTaskError(SteerlensError("no such layer"))

    fake = FakeRay(refuse)
    pool = made(fake)
    with pytest.raises(SteerlensError, match=r"2 of 2 pieces were set aside.*no such layer"):
        within(20, lambda: list(pool.answers(pieces(2))))
    assert (pool.n_lost, fake.n_made) == (0, 2)
    pool.close()


def test_a_closed_pool_refuses_pieces_at_once(made):
    pool = made(FakeRay(answered))
    assert len(within(20, lambda: list(pool.answers(pieces(3))))) == 3
    pool.close()
    with pytest.raises(SteerlensError, match="the workers have been stopped"):
        within(20, lambda: list(pool.answers(pieces(1))))
    with pytest.raises(SteerlensError, match="the workers have been stopped"):
        within(20, pool._submitted(pieces(1)[0]).result)


def test_who_waits_when_the_pool_is_closed_gets_an_error(made):
    begun, killed = threading.Event(), threading.Event()

    def slow(_piece: Piece) -> Any:
        begun.set()
        killed.wait(20)
        raise RayError("the actor was killed")

    fake = FakeRay(slow)
    fake.kill = lambda _actor: killed.set()
    pool = made(fake)
    future = pool._submitted(pieces(1)[0])
    assert begun.wait(20)
    pool.close()
    with pytest.raises(SteerlensError, match="the workers have been stopped"):
        future.result(timeout=20)
    assert fake.n_made == 2


def test_a_piece_that_kills_every_worker_is_given_up_and_the_others_are_finished(made):
    def answer(piece: Piece) -> Any:
        if piece.name == "piece-1":
            raise RayError("killed")
        return answered(piece)

    fake = FakeRay(answer)
    pool = made(fake)
    found = []
    words = r"1 of 4 pieces .* is piece-1: its worker died \(killed\), after 3 attempts"
    with pytest.raises(SteerlensError, match=words):
        for piece, _ in pool.answers(pieces(4)):
            found.append(piece.name)
    assert sorted(found) == ["piece-0", "piece-2", "piece-3"]
    assert (pool.n_lost, fake.n_made) == (3, 5)
    assert len(within(20, lambda: list(pool.answers(pieces(1))))) == 1
    pool.close()


def test_responses_to_judge_go_to_workers(tiny_model, made):
    pool = made(FakeRay(answered))
    piece = Judge(tiny_model).pieces([["The sea is wide.", "Yes."]], 64)[0]
    assert within(20, lambda: list(pool.perplexities([piece]))) == [(piece, [2.0, 2.0])]
    pool.close()


def test_workers_that_do_not_start_are_told_with_the_reason(made):
    fake = FakeRay(answered)
    fake.lets_in = False
    with pytest.raises(SteerlensError, match="a worker cannot be started: no room on the cluster"):
        made(fake)

    def late(*_given: Any, timeout: float) -> Any:
        raise GetTimeoutError

    fake.get = late
    with pytest.raises(
        SteerlensError, match=r"has not loaded .* within 600 s; is the cluster busy"
    ):
        made(fake)


@pytest.mark.parametrize("library", SAME_LIBRARIES)
def test_other_versions_are_refused(library):
    versions = installed_versions()
    check_versions("node-7", versions, versions)
    words = f"node-7 has {library} 0.0.1, the driver {versions[library]}; install the same on every"
    with pytest.raises(SteerlensError, match=re.escape(words)):
        check_versions("node-7", {**versions, library: "0.0.1"}, versions)


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(SteerlensError, match="at least one worker"):
        WorkerSettings(workers=0)
    with pytest.raises(SteerlensError, match="at least 0"):
        WorkerSettings(cpus=-1)
    with pytest.raises(SteerlensError, match="at least 0"):
        WorkerSettings(gpus=float("nan"))
    # Ray would say so when actors are made, long after the run folder is.
    with pytest.raises(SteerlensError, match=r"whole GPUs, not 1\.5; ask for 1 or 2, or for less"):
        WorkerSettings(gpus=1.5)
    assert [WorkerSettings(cpus=n, gpus=1).threads for n in (0, 0.5, 2.0)] == [1, 1, 2]
    assert WorkerSettings(gpus=0.25).gpus == 0.25


def test_ray_never_joins_a_cluster_it_was_not_told_of():
    told: list[Record] = []
    fake = SimpleNamespace(init=lambda **options: told.append(options))
    _start(fake, None)
    _start(fake, "10.0.0.1:6379")
    assert [one["address"] for one in told] == ["local", "10.0.0.1:6379"]


def test_a_cluster_that_does_not_let_us_in_is_told_from_none_at_all():
    def refuse(**_options: Any) -> None:
        raise ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379.")

    fake = SimpleNamespace(init=refuse)
    with pytest.raises(SteerlensError, match=r"cannot join .* at 10\.0\.0\.1:6379 .*a token"):
        _start(fake, "10.0.0.1:6379")
    with pytest.raises(SteerlensError, match="no Ray cluster at auto"):
        _start(fake, "auto")


@pytest.fixture
def no_workers(monkeypatch):
    def refuse(*_given: Any) -> Any:
        raise SteerlensError("8 workers of 1 GPUs need 8, the cluster has 2")

    monkeypatch.setattr("steerlens.workers.pool.worker_pool", refuse)


def opened(folder: str | Path, resume: bool = False) -> Run:
    return Run.open(folder, kind="search", settings={"seed": 0}, resume=resume)


def asked_for_workers(tiny_model, run: Run) -> None:
    refused = pytest.raises(SteerlensError, match="the cluster has 2")
    with refused, run, executor(tiny_model, WorkerSettings(), run):
        raise AssertionError("there are no workers")


def test_a_new_run_whose_workers_cannot_be_had_is_withdrawn(tiny_model, tmp_path, no_workers):
    asked_for_workers(tiny_model, opened(tmp_path / "new"))
    assert not (tmp_path / "new").exists()
    # A folder that was there stays, as empty as it was.
    (tmp_path / "empty").mkdir()
    asked_for_workers(tiny_model, opened(tmp_path / "empty"))
    assert os.listdir(tmp_path / "empty") == []


def test_a_run_with_finished_pieces_is_never_withdrawn(tiny_model, tmp_path, no_workers):
    with opened(tmp_path / "run") as run:
        run.finish("a", [{"x": 1}])
    asked_for_workers(tiny_model, opened(tmp_path / "run", resume=True))
    with opened(tmp_path / "run", resume=True) as run:
        assert run.finished("a") == [{"x": 1}]
