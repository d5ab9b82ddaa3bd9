"""The driver's side: pieces go to actors, results come back, losses are made good.

Each actor has a thread here that takes pieces from one queue, sends one, waits, and hands the
records over. So a piece is never with two workers, and the queue is all the scheduling there is:
who is fast takes more. Several callers may ask at once (a search of several instructions does); a
piece that two of them want is computed once. A caller has at most two pieces a worker on their way,
so results that nobody has taken yet do not pile up.

Pieces are of two kinds: questions (`steerlens.answers.Piece`), whose result is records, and
contrast pairs (`steerlens.activations.ResidualPiece`), whose result is a `ResidualCache`.

When an actor dies (killed, out of memory, its machine gone), its thread makes a new one and puts
the piece back at the end of the queue, where another worker may have better luck. After
`WorkerSettings.max_attempts` the piece is set aside. A piece that raises one of this package's own
errors is set aside at once: it would raise it anywhere.
"""

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge

from steerlens.activations import ResidualCache, ResidualPiece
from steerlens.answers import Piece, Records
from steerlens.errors import SteerlensError
from steerlens.files import library_versions
from steerlens.identity import ModelInfo, model_info, model_placement
from steerlens.placement import Placement
from steerlens.workers.cluster import connected
from steerlens.workers.loading import load_arguments
from steerlens.workers.packing import pack
from steerlens.workers.settings import WorkerSettings

__all__ = ["Pool", "worker_pool"]

_AHEAD = 2
_SAME_VERSIONS = ("steerlens", "torch", "transformers", "transformer-lens")


@dataclass(eq=False)
class _Task:
    piece: Piece | ResidualPiece
    done: "Future[Any]" = field(default_factory=Future)
    attempts: int = 0


@contextmanager
def worker_pool(model: TransformerBridge, settings: WorkerSettings) -> Iterator["Pool"]:
    """Workers that hold `model`, ready; gone when the block is left, however it is left.

    Args:
        model: The driver's model; workers load the same reference, quantised in the same way.
        settings: How many, with what, where.

    Raises:
        SteerlensError: See `steerlens.workers.cluster.connected`; a model that workers cannot load
            (made elsewhere, or in a folder they do not reach), or that is another one there; other
            versions of steerlens or torch.
    """
    info = model_info(model)
    if info.kind == "given":
        raise SteerlensError(
            f"workers cannot load {info.reference}, which was not made by load_model; load it by "
            "name or folder, or use --engine local"
        )
    with connected(settings) as ray:
        pool = Pool(ray, info, settings, model_placement(model))
        try:
            pool.start()
            yield pool
        finally:
            pool.close()


class Pool:
    """Actors with their threads; made by `worker_pool`.

    Attributes:
        members: What each worker said of itself when it was ready: machine, process, versions.
        lost: Actors that died and were replaced.
        set_aside: Pieces given up, with what was last said of each.
        n_sent: Distinct directions given to the object store.
    """

    def __init__(
        self, ray: Any, info: ModelInfo, settings: WorkerSettings, placement: Placement
    ) -> None:
        from steerlens.workers.actor import ModelWorker

        self._ray = ray
        self._info = info
        self._settings = settings
        self._load = load_arguments(info, placement, settings)
        # max_restarts stays 0: a new actor is made here, where its loading can be watched.
        self._class = ray.remote(num_cpus=settings.cpus, num_gpus=settings.gpus)(ModelWorker)
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._open: dict[str, _Task] = {}
        self._references: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._actors: list[Any] = []
        self._threads: list[threading.Thread] = []
        self._serving = settings.workers
        self.members: dict[int, dict[str, Any]] = {}
        self.lost = 0
        self.set_aside: dict[str, str] = {}

    @property
    def n_sent(self) -> int:
        """Distinct directions given to the object store."""
        return len(self._references)

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
        for number, actor in enumerate(self._actors):
            self.members[number] = self._checked(actor)
        for number in range(self._settings.workers):
            thread = threading.Thread(target=self._serve, args=(number,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def answers(self, pieces: Sequence[Piece]) -> Iterator[tuple[Piece, Records]]:
        """Each piece with its records, as they are finished.

        Raises:
            SteerlensError: At the end, when pieces were set aside: "2 pieces were set aside …".
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
                    metadata={**metadata, "model": self._info.reference},
                ),
            )

    def _computed(self, pieces: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        """Pieces with what workers made of them; the next is sent when one has been taken."""
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
        """Stop everything; who still waits for a piece gets an error."""
        self._closed = True
        for _ in self._threads:
            self._tasks.put(None)
        for actor in self._actors:
            self._ray.kill(actor)
        with self._lock:
            waiting = list(self._open.values())
        for task in waiting:
            _fail(task, "the run was stopped")
        for thread in self._threads:
            thread.join(timeout=5)

    def _task(self, piece: Piece | ResidualPiece) -> _Task:
        with self._lock:
            if piece.name in self._open:
                return self._open[piece.name]
            task = _Task(piece)
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
        except exceptions.RayError as error:
            if self._closed:
                return False
            with self._lock:
                self.lost += 1
            self._again(task, f"its worker died ({str(error).strip().splitlines()[0]})")
            return False
        else:
            with self._lock:
                self._open.pop(task.piece.name, None)
            if not task.done.done():
                task.done.set_result(result)
        return True

    def _leave(self, why: str) -> None:
        """One worker fewer; without any, nobody is left waiting."""
        with self._lock:
            self._serving -= 1
            waiting = list(self._open.values()) if self._serving == 0 else []
        for task in waiting:
            self._give_up(task, f"no worker is left ({why})")

    def _again(self, task: _Task, said: str) -> None:
        if task.attempts < self._settings.max_attempts:
            self._tasks.put(task)
        else:
            self._give_up(task, f"{said}, after {task.attempts} attempts")

    def _give_up(self, task: _Task, said: str) -> None:
        with self._lock:
            self._open.pop(task.piece.name, None)
            self.set_aside[task.piece.name] = said
        _fail(task, said)

    def _replace(self, number: int) -> None:
        """A new actor in a dead one's place, tried until it loads or the pool is closed."""
        for attempt in range(self._settings.max_attempts):
            try:
                self._actors[number] = self._made()
                self.members[number] = self._checked(self._actors[number])
            except (SteerlensError, self._ray.exceptions.RayError):
                if attempt == self._settings.max_attempts - 1:
                    raise
            else:
                return

    def _made(self) -> Any:
        reference, options = self._load
        return self._class.remote(reference, options, int(self._settings.cpus))

    def _checked(self, actor: Any) -> dict[str, Any]:
        """What the actor says of itself, once it has loaded the model and it is the same."""
        exceptions = self._ray.exceptions
        settings = self._settings
        try:
            said: dict[str, Any] = self._ray.get(
                actor.describe.remote(), timeout=settings.start_timeout
            )
        except exceptions.GetTimeoutError as error:
            raise SteerlensError(
                f"a worker has not loaded {self._info.reference} within "
                f"{settings.start_timeout:g} s; is the cluster busy with other work?"
            ) from error
        except exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            why = cause if isinstance(cause, SteerlensError) else _last_line(error)
            raise SteerlensError(
                f"a worker cannot load {self._info.reference}: {why}; every machine of the cluster "
                "must reach the same model (a folder on shared storage, or an installed package)"
            ) from error
        own = library_versions()
        theirs = said["versions"]
        for name in _SAME_VERSIONS:
            if theirs[name] != own[name]:
                raise SteerlensError(
                    f"the worker on {said['machine']} has {name} {theirs[name]}, this process "
                    f"{own[name]}; install the same on every machine"
                )
        for what, mine in (
            ("weights_hash", self._info.weights_hash),
            ("precision", self._info.precision),
        ):
            if said[what] != mine:
                raise SteerlensError(
                    f"the worker on {said['machine']} holds another {self._info.reference} "
                    f"({what} {said[what]}, here {mine}); give the same model to every machine"
                )
        return said

    def _sent(self, actor: Any, piece: Piece | ResidualPiece) -> Any:
        if isinstance(piece, ResidualPiece):
            return actor.cache.remote(piece)
        named: dict[str, Any] = {}

        def store(name: str, direction: Any) -> None:
            with self._lock:
                if name not in self._references:
                    self._references[name] = self._ray.put(direction.numpy())
                named[name] = self._references[name]

        packed = pack([question.steering for question in piece.questions], store)
        prompts = [question.prompt for question in piece.questions]
        sending: Mapping[str, Any] = named
        return actor.answer.remote(prompts, packed, sending, piece.max_new_tokens, piece.batch_size)


def _fail(task: _Task, said: str) -> None:
    if not task.done.done():
        task.done.set_exception(SteerlensError(said))


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
