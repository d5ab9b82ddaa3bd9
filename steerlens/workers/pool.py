"""The driver's side: pieces go to workers, results come back, lost workers are replaced.

A pool has a thread for each worker. A thread sends the next piece to an idle worker and waits, so a
fast worker takes more. Several callers may ask at once, as a search of several tasks does; each has
at most two pieces per worker on their way, so that results do not pile up in the driver.

A worker that dies (killed, out of memory, its machine gone) is replaced, and its piece tried again.
So is one that raises an error that is not this package's: a device that has failed once fails for
every piece after. A piece that raises an error of this package would raise it anywhere and is set
aside at once. When no worker can be replaced any more, and after `Pool.close`, every caller gets an
error.

Ray's own restarts (``max_restarts``) are not used: they can wait without end for a machine that is
gone, and do not say why a worker was lost.
"""

import copy
import logging
import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
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
from steerlens.models.identity import model_info
from steerlens.steering.interventions import Steering
from steerlens.workers.cluster import connected
from steerlens.workers.worker import ModelWorker, WorkerModels

if TYPE_CHECKING:
    from steerlens.workers.settings import WorkerSettings

__all__ = ["Pool", "worker_pool"]

PIECES_AHEAD = 2

logger = logging.getLogger(__name__)


@contextmanager
def worker_pool(
    model: TransformerBridge, settings: "WorkerSettings", judge: Judge | None = None
) -> Iterator["Pool"]:
    """Workers that hold the driver's models, ready; gone when the block is left.

    Raises:
        SteerlensError: See `steerlens.workers.cluster.connected` and
            `steerlens.workers.worker.ModelWorker.prepare`; a model that `load_model` did not make,
            or that has been changed since.
    """
    for loaded in (model, judge.model) if judge is not None else (model,):
        _check_can_be_loaded(loaded)
    with connected(settings) as ray:
        pool = Pool(ray, WorkerModels.of(model, judge, settings), settings)
        try:
            pool.start()
            yield pool
        finally:
            pool.close()


class Pool:
    """Workers with their threads; made by `worker_pool`.

    Attributes:
        members: What each worker said of itself when it was ready: machine, process, versions.
        n_lost: Workers that died, or failed, and had to be replaced.
    """

    def __init__(self, ray: Any, models: WorkerModels, settings: "WorkerSettings") -> None:
        self._ray = ray
        self._models = models
        self._settings = settings
        self._class = ray.remote(num_cpus=settings.cpus, num_gpus=settings.gpus)(ModelWorker)
        self._actors: list[Any] = []
        # Numbers of workers; None once nothing more can be computed.
        self._idle: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(settings.workers)
        self._lock = threading.Lock()
        self._n_serving = settings.workers
        # Why nothing more can be computed, as soon as that is so.
        self._refusal: str | None = None
        self.members: list[dict[str, Any]] = []
        self.n_lost = 0

    @property
    def described(self) -> dict[str, Any]:
        """Who computes, for the run's manifest."""
        workers = [{k: v for k, v in member.items() if k != "pid"} for member in self.members]
        return {"engine": "ray", "ray": str(self._ray.__version__), "workers": workers}

    def start(self) -> None:
        """Load the model in every worker, and compare it with the driver's."""
        self._actors = [self._class.remote(self._models) for _ in range(self._settings.workers)]
        self.members = self._prepared(self._actors)
        for number in range(self._settings.workers):
            self._idle.put(number)

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
        """Each piece with its residuals, as they are finished; raises as `answers`."""
        for piece, (*sides, groups, metadata) in self._computed(pieces):
            # What comes from the object store is read-only.
            instructed, uninstructed = (torch.from_numpy(side.copy()) for side in sides)
            layers = piece.layers
            yield (
                piece,
                ResidualCache.from_tensors(instructed, uninstructed, layers, groups, metadata),
            )

    def perplexities(
        self, pieces: Sequence[JudgePiece]
    ) -> Iterator[tuple[JudgePiece, list[float | None]]]:
        """Each piece with the perplexity of its responses; raises as `answers`."""
        yield from self._computed(pieces)

    def close(self) -> None:
        """Stop everything; whoever waits for a piece, or asks for one later, gets an error."""
        self._refuse("the workers have been stopped")
        for actor in self._actors:
            self._ray.kill(actor)
        self._threads.shutdown(wait=False)

    def _computed(self, pieces: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        """Pieces with their results; the next piece is sent when a result has been taken."""
        if self._refusal is not None and pieces:
            raise SteerlensError(f"{self._refusal}; what is finished is kept, --resume goes on")
        waiting = iter(pieces)
        sent: dict[Future[Any], Any] = {}
        failed: dict[str, str] = {}
        while True:
            n_more = PIECES_AHEAD * self._settings.workers - len(sent)
            sent |= {self._submitted(piece): piece for piece in islice(waiting, n_more)}
            if not sent:
                break
            future = wait(sent, return_when=FIRST_COMPLETED).done.pop()
            piece = sent.pop(future)
            if (error := future.exception()) is None:
                yield piece, future.result()
            elif isinstance(error, SteerlensError):
                failed[piece.name] = str(error)
                logger.warning("piece %s was set aside: %s", piece.name, error)
            else:
                raise error
        if failed:
            name, reason = next(iter(failed.items()))
            raise SteerlensError(
                f"{len(failed)} of {len(pieces)} pieces were set aside, the first is {name}: "
                f"{reason}; the others are kept, --resume tries again what is missing"
            )

    def _submitted(self, piece: Any) -> "Future[Any]":
        with self._lock:
            if self._refusal is None:
                return self._threads.submit(self._compute, piece)
        refused: Future[Any] = Future()
        refused.set_exception(SteerlensError(self._refusal))
        return refused

    def _compute(self, piece: Any) -> Any:
        """The result of a piece, by whichever worker is idle."""
        exceptions, reason = self._ray.exceptions, ""
        message = _compact(piece) if isinstance(piece, Piece) else piece
        for _ in range(self._settings.max_attempts):
            number = self._idle.get()
            if number is None:
                self._idle.put(None)  # for the next one who waits
                raise SteerlensError(self._refusal)
            lost = ""
            try:
                return self._ray.get(self._actors[number].compute.remote(message))
            except exceptions.RayTaskError as error:
                if isinstance(error.cause, SteerlensError):
                    raise SteerlensError(str(error.cause)) from None
                reason = lost = f"{type(error.cause).__name__}: {first_line(error.cause)}"
            except exceptions.RayError as error:
                lost = first_line(error)
                reason = f"its worker died ({lost})"
            finally:
                if not lost or self._replaced(number, lost):
                    self._idle.put(number)
        raise SteerlensError(f"{reason}, after {self._settings.max_attempts} attempts")

    def _replaced(self, number: int, why: str) -> bool:
        """Whether another worker has taken a lost one's place."""
        if self._refusal is not None:
            return False
        with self._lock:
            self.n_lost += 1
        logger.warning("worker %d was lost (%s); another takes its place", number, why)
        for _ in range(self._settings.max_attempts):
            with self._lock:
                if self._refusal is not None:
                    return False
                # The one that is there may have been slow to load, not dead.
                self._ray.kill(self._actors[number])
                self._actors[number] = self._class.remote(self._models)
            try:
                [self.members[number]] = self._prepared([self._actors[number]])
            except SteerlensError as error:
                why = str(error)
            else:
                return True
        logger.warning("worker %d could not be replaced: %s", number, why)
        with self._lock:
            self._n_serving -= 1
            if self._n_serving:
                return False
        self._refuse(f"no worker is left ({why})")
        return False

    def _refuse(self, why: str) -> None:
        with self._lock:
            self._refusal = self._refusal or why
        self._idle.put(None)

    def _prepared(self, actors: Sequence[Any]) -> list[dict[str, Any]]:
        """What workers say of themselves once they have loaded the driver's models."""
        exceptions, seconds = self._ray.exceptions, self._settings.start_timeout
        try:
            members: list[dict[str, Any]] = self._ray.get(
                [actor.prepare.remote() for actor in actors], timeout=seconds
            )
        except exceptions.GetTimeoutError as error:
            raise SteerlensError(
                f"a worker has not loaded {self._models.model.reference} within {seconds:g} s; is "
                "the cluster busy with other work?"
            ) from error
        except exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, SteerlensError):
                raise SteerlensError(str(cause)) from error
            reason = str(cause or error).strip().splitlines()[-1].rstrip(".")
            raise SteerlensError(
                f"a worker cannot be started: {reason}; install the same libraries on every "
                "machine of the cluster"
            ) from error
        return members


def _check_can_be_loaded(model: TransformerBridge) -> None:
    """Refuse a model that workers would load otherwise than it is here."""
    info = model_info(model, exact=True)
    if info.kind == "given":
        raise SteerlensError(
            f"workers cannot load {info.reference}, which was not made by load_model; load it by "
            "name or folder, or use --engine local"
        )
    if (change := outside_change(model)) is not None:
        raise SteerlensError(
            f"workers load {info.reference} without {change}; take it off, or use --engine local"
        )
    if info.edited:
        raise SteerlensError(
            f"workers load {info.reference} as it was, and its weights have been changed here "
            "since (by hand, or by compatibility mode); save the changed model in a folder and "
            "load that, or use --engine local"
        )


def _compact(piece: Piece) -> Piece:
    """The piece with directions that own their memory: pickling a view sends all that it views."""
    copies: dict[int, Steering | None] = {id(None): None}
    questions = []
    for question in piece.questions:
        steering = question.steering
        if steering is not None and id(steering) not in copies:
            interventions = tuple(copy.copy(one) for one in steering.interventions)
            for intervention in interventions:
                vars(intervention).update(
                    (name, value.detach().cpu().clone())
                    for name, value in list(vars(intervention).items())
                    if isinstance(value, torch.Tensor)
                )
            copies[id(steering)] = Steering(interventions)
        questions.append(replace(question, steering=copies[id(steering)]))
    return replace(piece, questions=tuple(questions))
