"""How many workers, and what each may use."""

from collections.abc import Mapping
from dataclasses import dataclass

from steerlens.errors import SteerlensError

__all__ = ["WorkerSettings"]


@dataclass(frozen=True)
class WorkerSettings:
    """Where pieces are computed; no result depends on it.

    Attributes:
        workers: Actors, each with a model of its own.
        cpus: Logical CPUs, and threads, of each.
        gpus: GPUs of each; parts of one are allowed.
        address: A running cluster, ``"auto"`` or ``"host:port"``; None starts Ray on this machine
            and stops it at the end.
        device_map: How a worker spreads its model over its GPUs; as for `load_model`, by default as
            the driver's model was spread.
        max_memory: How much of each of its devices a worker may use; as for `load_model`, by
            default as the driver's.
        max_attempts: How often a piece is tried before it is set aside.
        start_timeout: Seconds in which all workers must have loaded the model.
    """

    workers: int = 2
    cpus: int | float = 1
    gpus: int | float = 0
    address: str | None = None
    device_map: str | Mapping[str, str | int] | None = None
    max_memory: Mapping[int | str, int | str] | None = None
    max_attempts: int = 3
    start_timeout: float = 600.0

    def __post_init__(self) -> None:
        if self.workers < 1 or self.max_attempts < 1:
            raise SteerlensError(
                "at least one worker and one attempt are needed; got "
                f"{self.workers} and {self.max_attempts}"
            )
        if self.cpus < 0 or self.gpus < 0 or self.start_timeout <= 0:
            raise SteerlensError(
                "CPUs and GPUs of a worker must be at least 0 and the time to start positive; got "
                f"{self.cpus:g}, {self.gpus:g} and {self.start_timeout:g}"
            )
