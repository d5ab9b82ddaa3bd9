"""How many workers, and what each may use."""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformer_lens.model_bridge import TransformerBridge

from steerlens.errors import SteerlensError

if TYPE_CHECKING:
    from steerlens.behaviour.judge import Judge

__all__ = ["WorkerSettings"]


@dataclass(frozen=True)
class WorkerSettings:
    """Where pieces are computed; no result depends on it.

    Attributes:
        workers: Number of actors, each with a model of its own.
        cpus: Logical CPUs, and threads, of each; parts of one are allowed.
        gpus: GPUs of each: a part of one, or whole ones.
        address: A running cluster: ``"host:port"``, ``"ray://host:port"``, or ``"auto"`` for the
            one that this machine belongs to. None starts Ray on this machine alone, whatever else
            is running or named by ``RAY_ADDRESS``, and stops it at the end.
        device_map: How a worker spreads its model over its GPUs, as for `load_model`; by default as
            the driver's model was spread.
        max_memory: How much of each of its devices a worker may use; by default as the driver's.
        max_attempts: How often a piece is tried before it is set aside.
        start_timeout: Seconds within which all workers must have loaded the model.

    Raises:
        SteerlensError: No worker or no attempt; CPUs, GPUs or a time that cannot be.
    """

    workers: int = 2
    cpus: int | float = 1
    gpus: int | float = 0
    address: str | None = None
    device_map: str | Mapping[str, str | int] | None = None
    max_memory: Mapping[int | str, int | str] | None = None
    max_attempts: int = 3
    start_timeout: int | float = 600.0

    def __post_init__(self) -> None:
        if self.workers < 1 or self.max_attempts < 1:
            raise SteerlensError(
                "at least one worker and one attempt are needed; got "
                f"{self.workers} and {self.max_attempts}"
            )
        finite = math.isfinite(self.cpus) and math.isfinite(self.gpus)
        if not finite or self.cpus < 0 or self.gpus < 0 or not self.start_timeout > 0:
            raise SteerlensError(
                "CPUs and GPUs of a worker must be at least 0 and the time to start positive; got "
                f"{self.cpus:g}, {self.gpus:g} and {self.start_timeout:g}"
            )
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise SteerlensError(
                f"a worker has a part of one GPU or whole GPUs, not {self.gpus:g}; ask for "
                f"{int(self.gpus)} or {int(self.gpus) + 1}, or for less than 1"
            )

    @property
    def threads(self) -> int:
        """Threads that a worker computes with: one per whole CPU, at least one."""
        return max(1, int(self.cpus))

    def check(self) -> None:
        """Refuse, before anything is written, workers that cannot be had.

        Raises:
            SteerlensError: See `steerlens.workers.cluster.check_available`.
        """
        from steerlens.workers.cluster import check_available

        check_available(self)

    def pool(
        self, model: TransformerBridge, judge: "Judge | None" = None
    ) -> AbstractContextManager[Any]:
        """Workers that hold the model and the judge, ready, while the context lasts.

        Raises:
            SteerlensError: See `steerlens.workers.pool.worker_pool`.
        """
        from steerlens.workers.pool import worker_pool

        return worker_pool(model, self, judge)
