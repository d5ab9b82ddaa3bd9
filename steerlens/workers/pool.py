"""The driver's side: pieces go to actors, results come back, losses are made good.

Each actor has a thread here that takes pieces from one queue, sends one, waits, and hands the
records over. So a piece is never with two workers, and the queue is all the scheduling there is:
who is fast takes more. Several callers may ask at once (a search of several instructions does); a
piece that two of them want is computed once. A caller has at most two pieces a worker on their way,
so results that nobody has taken yet do not pile up.

Pieces are of three kinds: questions (`steerlens.behaviour.answers.Piece`), whose result is records,
contrast pairs (`steerlens.activations.pieces.ResidualPiece`), whose result is a `ResidualCache`,
and responses to judge (`steerlens.behaviour.judge.JudgePiece`), whose result is their
perplexities.

When an actor dies (killed, out of memory, its machine gone), its thread makes a new one and puts
the piece back at the end of the queue, where another worker may have better luck. So it does when
an actor raises an error that is not this package's: a device that has failed once fails at once
for every piece after. After `WorkerSettings.max_attempts` the piece is set aside. A piece that
raises one of this package's own errors is set aside at once: it would raise it anywhere. Each loss
is said in the log (`logging`, which prints warnings by default). When no actor can be replaced any
more, and after `Pool.close`, whoever asks gets an error at once.
"""

import logging
import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, InvalidStateError, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from transformer_lens.model_bridge import TransformerBridge

from steerlens.activations.cache import ResidualCache
from steerlens.activations.pieces import ResidualPiece
from steerlens.behaviour.answers import Piece, Records
from steerlens.behaviour.judge import Judge, JudgePiece
from steerlens.engine.outside import outside_change
from steerlens.errors import SteerlensError, first_line
from steerlens.models.identity import model_identity, model_info, model_placement
from steerlens.workers.cluster import connected
from steerlens.workers.loading import judge_arguments, load_arguments
from steerlens.workers.packing import Sent
from steerlens.workers.starting import ready

if TYPE_CHECKING:
    from steerlens.workers.settings import WorkerSettings

__all__ = ["Pool", "worker_pool"]

_log = logging.getLogger(__name__)
AnyPiece = Piece | ResidualPiece | JudgePiece
_AHEAD = 2


@dataclass(eq=False)
class _Task:
    piece: AnyPiece
    done: "Future[Any]" = field(default_factory=Future)
    attempts: int = 0


@contextmanager
def worker_pool(
    model: TransformerBridge, settings: "WorkerSettings", judge: Judge | None = None
) -> Iterator["Pool"]:
    """Workers that hold `model`, ready; gone when the block is left, however it is left.

    Args:
        model: The driver's model; workers load the same reference, quantised in the same way.
        settings: How many, with what, where.
        judge: The driver's judge; workers load the same.

    Raises:
        SteerlensError: See `steerlens.workers.cluster.connected` and
            `steerlens.workers.starting.ready`; a model that was not made by `load_model`.
    """
    for one in [model] + ([judge.model] if judge is not None else []):
        info = model_info(one, exact=True)
        if info.kind == "given":
            raise SteerlensError(
                f"workers cannot load {info.reference}, which was not made by load_model; load it "
                "by name or folder, or use --engine local"
            )
        if (change := outside_change(one)) is not None:
            raise SteerlensError(
                f"workers load {info.reference} without {change}; take it off, or use "
                "--engine local"
            )
        if info.edited:
            raise SteerlensError(
                f"workers load {info.reference} as it was, and its weights have been changed here "
                "since (by hand, or by compatibility mode); save the changed model in a folder and "
                "load that, or use --engine local"
            )
    with connected(settings) as ray:
        pool = Pool(ray, model, settings, judge)
        try:
            pool.start()
            yield pool
        finally:
            pool.close()


class Pool:
    """Actors with their threads; made by `worker_pool`.

    Attributes:
        members: What each worker said of itself when it was ready: machine, process, versions.
        lost: Actors that died, or failed, and had to be replaced.
        set_aside: Pieces given up, with what was last said of each.
        sent: What the object store has been given.
    """

    def __init__(
        self,
        ray: Any,
        model: TransformerBridge,
        settings: "WorkerSettings",
        judge: Judge | None = None,
    ) -> None:
        from steerlens.workers.actor import ModelWorker

        self._ray = ray
        info = model_info(model)
        self._model = model_identity(model)
        self._settings = settings
        self._judge = None if judge is None else model_identity(judge.model)
        reading = None if judge is None else judge_arguments(judge.info, settings)
        self._load = (*load_arguments(info, model_placement(model), settings), reading)
        # max_restarts stays 0: a new actor is made here, where its loading can be watched.
        self._class = ray.remote(num_cpus=settings.cpus, num_gpus=settings.gpus)(ModelWorker)
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._open: dict[str, _Task] = {}
        self._lock = threading.Lock()
        self._closed = False
        # Why nothing more can be computed, as soon as that is so.
        self._refusal: str | None = None
        self._actors: list[Any] = []
        self._threads: list[threading.Thread] = []
        self._serving = settings.workers
        self.members: dict[int, dict[str, Any]] = {}
        self.lost = 0
        self.set_aside: dict[str, str] = {}
        self.sent = Sent(ray.put)

    @property
    def described(self) -> dict[str, Any]:
        """Who computes, for the run's manifest."""
        machines = [
            {key: value for key, value in self.members[number].items() if key != "pid"}
            for number in sorted(self.members)
        ]
        return {"engine": "ray", "ray": str(self._ray.__version__), "workers": machines}

    def start(self) -> None:
        """Load the model in every worker, and check that it is the driver's."""
        self._actors = [self._made() for _ in range(self._settings.workers)]
        self.members.update(enumerate(self._ready(self._actors)))
        for number in range(self._settings.workers):
            thread = threading.Thread(target=self._serve, args=(number,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def answers(self, pieces: Sequence[Piece]) -> Iterator[tuple[Piece, Records]]:
        """Each piece with its records, as they are finished.

        Raises:
            SteerlensError: At the end, when pieces were set aside: "2 of 9 pieces were set aside
                …"; at once, when no worker is left or the pool is closed.
        """
        yield from self._computed(pieces)

    def residuals(
        self, pieces: Sequence[ResidualPiece]
    ) -> Iterator[tuple[ResidualPiece, ResidualCache]]:
        """Each piece with its residuals, as they are finished.

        Raises:
            SteerlensError: As `answers`.
        """
        for piece, (instructed, uninstructed, groups, metadata) in self._computed(pieces):
            yield (
                piece,
                ResidualCache.from_tensors(
                    torch.from_numpy(instructed.copy()),
                    torch.from_numpy(uninstructed.copy()),
                    layers=piece.layers,
                    groups=groups,
                    # A worker may have the model from another path.
                    metadata={**metadata, "model": self._model.reference},
                ),
            )

    def perplexities(
        self, pieces: Sequence[JudgePiece]
    ) -> Iterator[tuple[JudgePiece, list[float | None]]]:
        """Each piece with the perplexity of its responses, as they are finished.

        Raises:
            SteerlensError: As `answers`.
        """
        yield from self._computed(pieces)

    def _computed(self, pieces: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        """Pieces with what workers made of them; the next is sent when one has been taken."""
        if self._refusal is not None and pieces:
            raise SteerlensError(f"{self._refusal}; what is finished is kept, --resume goes on")
        coming = iter(pieces)
        most = _AHEAD * self._settings.workers
        sent: dict[Future[Any], Any] = {}
        failed: dict[str, str] = {}
        while True:
            for piece in islice(coming, most - len(sent)):
                sent[self._task(piece).done] = piece
            if not sent:
                break
            finished, _ = wait(sent, return_when=FIRST_COMPLETED)
            done = finished.pop()
            piece = sent.pop(done)
            error = done.exception()
            if error is None:
                yield piece, done.result()
            else:
                failed[piece.name] = str(error)
        if failed:
            name, why = next(iter(failed.items()))
            raise SteerlensError(
                f"{len(failed)} of {len(pieces)} pieces were set aside, the first is {name}: "
                f"{why}; the others are kept, --resume tries again what is missing"
            )

    def close(self) -> None:
        """Stop everything; who waits for a piece, or asks for one later, gets an error."""
        with self._lock:
            self._closed = True
            self._refusal = "the workers have been stopped"
            waiting = list(self._open.values())
            actors = list(self._actors)
        for _ in self._threads:
            self._tasks.put(None)
        for actor in actors:
            self._ray.kill(actor)
        for task in waiting:
            _fail(task, "the run was stopped")
        for thread in self._threads:
            thread.join(timeout=5)

    def _task(self, piece: AnyPiece) -> _Task:
        """The piece on its way to a worker; where none would take it, failed already."""
        task = _Task(piece)
        with self._lock:
            if self._refusal is not None:
                _fail(task, self._refusal)
                return task
            if piece.name in self._open:
                return self._open[piece.name]
            self._open[piece.name] = task
        self._tasks.put(task)
        return task

    def _serve(self, number: int) -> None:
        while (task := self._tasks.get()) is not None and not self._closed:
            try:
                whole = self._attempt(number, task)
            except Exception as error:  # a fault of the pool must not leave a caller waiting
                self._give_up(task, f"{type(error).__name__}: {error}")
                continue
            if whole or self._closed:
                continue
            try:
                self._replace(number)
            except Exception as error:
                self._leave(str(error))
                return

    def _attempt(self, number: int, task: _Task) -> bool:
        """Have the piece computed; whether the actor is still there."""
        task.attempts += 1
        exceptions = self._ray.exceptions
        try:
            result = self._ray.get(self._sent(self._actors[number], task.piece))
        except exceptions.RayTaskError as error:
            cause = error.cause
            said = f"{type(cause).__name__}: {cause}"
            if isinstance(cause, SteerlensError):
                task.attempts = self._settings.max_attempts
                self._again(task, said)
                return True
            self._lose(number, f"{type(cause).__name__}: {first_line(cause)}")
            self._again(task, said)
            return False
        except exceptions.RayError as error:
            if self._closed:
                return False
            self._lose(number, first_line(error))
            self._again(task, f"its worker died ({first_line(error)})")
            return False
        else:
            with self._lock:
                self._open.pop(task.piece.name, None)
            with suppress(InvalidStateError):
                task.done.set_result(result)
        return True

    def _lose(self, number: int, why: str) -> None:
        with self._lock:
            self.lost += 1
        _log.warning("worker %d was lost (%s); another takes its place", number, why)

    def _leave(self, why: str) -> None:
        """One worker fewer; without any, nobody is left waiting."""
        if not self._closed:
            _log.warning("worker could not be replaced and is missing from now on: %s", why)
        with self._lock:
            self._serving -= 1
            if self._serving > 0:
                return
            # A closed pool has said so already.
            self._refusal = refusal = self._refusal or f"no worker is left ({why})"
            waiting = list(self._open.values())
        for task in waiting:
            self._give_up(task, refusal)

    def _again(self, task: _Task, said: str) -> None:
        if task.attempts < self._settings.max_attempts:
            self._tasks.put(task)
        else:
            self._give_up(task, f"{said}, after {task.attempts} attempts")

    def _give_up(self, task: _Task, said: str) -> None:
        with self._lock:
            self._open.pop(task.piece.name, None)
            self.set_aside[task.piece.name] = said
        _log.warning("piece %s was set aside: %s", task.piece.name, said)
        _fail(task, said)

    def _replace(self, number: int) -> None:
        """A new actor in a dead one's place, tried until it loads or the pool is closed."""
        for attempt in range(self._settings.max_attempts):
            with self._lock:
                if self._closed:
                    raise SteerlensError("the workers have been stopped")
                # What is there may have been slow to load, not dead.
                self._ray.kill(self._actors[number])
                self._actors[number] = self._made()
            try:
                [self.members[number]] = self._ready([self._actors[number]])
            except (SteerlensError, self._ray.exceptions.RayError):
                if attempt == self._settings.max_attempts - 1:
                    raise
            else:
                return

    def _made(self) -> Any:
        return self._class.remote(self._settings.threads)

    def _ready(self, actors: Sequence[Any]) -> list[dict[str, Any]]:
        timeout = self._settings.start_timeout
        return ready(self._ray, actors, self._load, self._model, timeout, self._judge)

    def _sent(self, actor: Any, piece: AnyPiece) -> Any:
        if isinstance(piece, ResidualPiece):
            return actor.cache.remote(piece)
        if isinstance(piece, JudgePiece):
            return actor.judge.remote(piece)
        prompts, steerings, named = self.sent.packed(piece)
        return actor.answer.remote(
            prompts, steerings, named, piece.max_new_tokens, piece.batch_size
        )


def _fail(task: _Task, said: str) -> None:
    # It may have been finished, or failed, by another thread just now.
    with suppress(InvalidStateError):
        task.done.set_exception(SteerlensError(said))
