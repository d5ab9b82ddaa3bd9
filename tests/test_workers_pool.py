"""The pool without Ray: what it says and does when workers are not there, or not the same."""

import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from steerlens.behaviour.answers import Piece, Question
from steerlens.behaviour.judge import Judge
from steerlens.errors import SteerlensError
from steerlens.models.identity import model_identity
from steerlens.runs import Run
from steerlens.runs.executors import executor
from steerlens.steering.interventions import Steering
from steerlens.steering.operations import Intervention
from steerlens.workers import WorkerSettings
from steerlens.workers.cluster import _start
from steerlens.workers.equality import SAME_LIBRARIES, own_versions
from steerlens.workers.packing import Sent, unpack, unpack_prompts
from steerlens.workers.pool import Pool

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

    def __init__(self, answer: Callable[..., Any], versions: dict[str, str] | None = None) -> None:
        self.answer = answer
        self.versions = versions or own_versions()
        self.put_objects: list[Any] = []
        self.n_made = self.n_loaded = 0
        self.killed: list[Any] = []
        self.lets_in = True

    def put(self, value: Any) -> Any:
        self.put_objects.append(value)
        return value

    def get(self, reference: Any, timeout: float | None = None) -> Any:
        return [one() for one in reference] if isinstance(reference, list) else reference()

    def kill(self, actor: Any) -> None:
        self.killed.append(actor)

    def remote(self, **_options: Any) -> Callable[[type], Any]:
        return lambda _class: SimpleNamespace(remote=self._made)

    def _made(self, _threads: int) -> Any:
        self.n_made += 1

        def later(call: Callable[..., Any]) -> Any:
            return SimpleNamespace(remote=lambda *given: lambda: call(*given))

        return SimpleNamespace(
            introduce=later(self._introduce),
            load=later(self._load),
            answer=later(self.answer),
            judge=later(lambda piece: [2.0] * len(piece.texts)),
        )

    def _introduce(self) -> Record:
        if not self.lets_in:
            raise RayError("no room on the cluster")
        return {"versions": self.versions, "threads": 1, "machine": "node-7", "pid": 1}

    def _load(self, _reference: str, _options: Any, judge: Any) -> Record:
        self.n_loaded += 1
        return dict(self.loads) | ({} if judge is None else {"judge": self.judges})

    loads: Record
    judges: Record


@pytest.fixture
def made(tiny_model):
    """A function that starts a pool of two workers on a fake Ray."""

    def make(fake: FakeRay, judge: Judge | None = None, judges: str | None = None) -> Pool:
        fake.loads = model_identity(tiny_model).compared
        fake.judges = fake.loads | ({} if judges is None else {"weights_hash": judges})
        pool = Pool(fake, tiny_model, WorkerSettings(workers=2), judge)
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


def answered(prompts: Any, *_rest: Any) -> list[Record]:
    return [{"text": "", "n_tokens": 1, "finish_reason": "stop"}] * len(prompts)


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
        within(20, pool._task(pieces(1)[0]).done.result)
    pool.close()


def test_a_worker_that_fails_for_reasons_of_its_own_is_replaced_and_that_is_said(made, caplog):
    """A device that has failed once fails for every piece after, faster than others compute."""
    broken = iter([True, True])

    def answer(prompts: Any, *rest: Any) -> Any:
        if next(broken, False):
            raise RayTaskError(RuntimeError("CUDA error: device-side assert\nmore"))
        return answered(prompts, *rest)

    fake = FakeRay(answer)
    pool = made(fake)
    assert len(within(20, lambda: list(pool.answers(pieces(4))))) == 4
    assert (pool.lost, fake.n_made, pool.set_aside) == (2, 4, {})
    assert caplog.text.count("was lost (RuntimeError: CUDA error: device-side assert)") == 2
    pool.close()


def test_an_error_of_this_package_costs_no_worker(made):
    def refuse(*_given: Any) -> Any:
        raise RayTaskError(SteerlensError("no such layer"))

    fake = FakeRay(refuse)
    pool = made(fake)
    with pytest.raises(SteerlensError, match=r"2 of 2 pieces were set aside.*no such layer"):
        within(20, lambda: list(pool.answers(pieces(2))))
    assert (pool.lost, fake.n_made) == (0, 2)
    pool.close()


def test_a_closed_pool_refuses_pieces_at_once(made):
    pool = made(FakeRay(answered))
    assert len(within(20, lambda: list(pool.answers(pieces(3))))) == 3
    pool.close()
    with pytest.raises(SteerlensError, match="the workers have been stopped"):
        within(20, lambda: list(pool.answers(pieces(1))))
    with pytest.raises(SteerlensError, match="the workers have been stopped"):
        within(20, pool._task(pieces(1)[0]).done.result)


def test_who_waits_when_the_pool_is_closed_gets_an_error(made):
    begun, end = threading.Event(), threading.Event()

    def slow(*given: Any) -> Any:
        begun.set()
        end.wait(20)
        return answered(*given)

    pool = made(FakeRay(slow))
    task = pool._task(pieces(1)[0])
    assert begun.wait(20)
    closing = threading.Thread(target=pool.close)
    closing.start()
    with pytest.raises(SteerlensError, match="the run was stopped"):
        task.done.result(timeout=60)
    end.set()
    closing.join(20)
    assert not closing.is_alive()


@pytest.mark.parametrize("library", SAME_LIBRARIES)
def test_other_versions_are_refused_before_any_model_is_loaded(library, made):
    fake = FakeRay(answered, {**own_versions(), library: "0.0.1"})
    own = own_versions()[library]
    words = f"node-7 has {library} 0.0.1, this process {own}; install the same on every machine"
    with pytest.raises(SteerlensError, match=re.escape(words)):
        made(fake)
    assert (fake.n_made, fake.n_loaded) == (2, 0)


def test_workers_with_another_judge_are_refused_before_work_starts(tiny_model, made):
    words = "the worker on node-7 holds another .* \\(weights_hash another, here"
    with pytest.raises(SteerlensError, match=words):
        made(FakeRay(answered), Judge(tiny_model), "another")
    pool = made(FakeRay(answered), Judge(tiny_model))
    piece = Judge(tiny_model).piece(["The sea is wide.", "Yes."], 64)
    assert within(20, lambda: list(pool.perplexities([piece]))) == [(piece, [2.0, 2.0])]
    pool.close()


def test_prompts_and_directions_are_put_into_the_store_once(made):
    fake = FakeRay(answered)
    pool = made(fake)
    for _ in range(2):
        within(20, lambda: list(pool.answers(pieces(3))))
    pool.close()
    texts = [text for bundle in fake.put_objects for text in bundle]
    assert sorted(texts) == ["Hi", "Name 0.", "Name 1.", "Name 2."]


def test_what_is_sent_names_everything_a_worker_needs():
    direction = torch.nn.functional.normalize(torch.arange(4.0), dim=0)
    one = Steering((Intervention(1, direction, 1.0, 2.0, "add", 1.0, "all"),))
    put: list[Any] = []
    sent = Sent(lambda value: put.append(value) or value)
    first = Piece("a", (Question("x", one), Question("y"), Question("x")), 4, 4)
    second = Piece("b", (Question("z", one), Question("y", one)), 4, 4)
    for piece in (first, second, first):
        places, packed, named = sent.packed(piece)
        seen = {k: v if isinstance(v, tuple) else torch.from_numpy(v) for k, v in named.items()}
        assert unpack_prompts(places, seen) == [question.prompt for question in piece.questions]
        given = [question.steering is not None for question in piece.questions]
        assert [steering is not None for steering in unpack(packed, seen)] == given
    assert len(put) == 3 and sent.n_directions == 1


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
    _start(fake, WorkerSettings())
    _start(fake, WorkerSettings(address="10.0.0.1:6379"))
    assert [one["address"] for one in told] == ["local", "10.0.0.1:6379"]


def test_a_cluster_that_does_not_let_us_in_is_told_from_none_at_all():
    def refuse(**_options: Any) -> None:
        raise ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379.")

    fake = SimpleNamespace(init=refuse)
    with pytest.raises(SteerlensError, match=r"cannot join .* at 10\.0\.0\.1:6379 .*a token"):
        _start(fake, WorkerSettings(address="10.0.0.1:6379"))
    with pytest.raises(SteerlensError, match="no Ray cluster at auto"):
        _start(fake, WorkerSettings(address="auto"))


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
