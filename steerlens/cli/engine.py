"""`--engine` and what goes with it: where the pieces of a command are computed."""

import argparse
from typing import Any

from steerlens.cli.options import device_map_of, max_memory_of, refuse

__all__ = ["add_engine", "workers_of"]

_OF_RAY = (
    "--workers",
    "--worker-cpus",
    "--worker-gpus",
    "--worker-device-map",
    "--worker-max-memory",
    "--address",
)


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Options of long runs: the engine, and its workers."""
    parser.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="where pieces are computed; the files are the same",
    )
    ray = parser.add_argument_group("with --engine ray")
    ray.add_argument("--workers", type=int, help="processes, each with the model (default: 2)")
    ray.add_argument("--worker-cpus", type=float, help="logical CPUs of each (default: 1)")
    ray.add_argument(
        "--worker-gpus",
        type=float,
        help="GPUs of each: a part of one, or whole ones (default: none)",
    )
    ray.add_argument(
        "--worker-device-map",
        metavar="MAP",
        help="how a worker spreads its model over its GPUs (default: as --device-map)",
    )
    ray.add_argument(
        "--worker-max-memory",
        metavar="SIZES",
        help="room on each of a worker's devices (default: as --max-memory)",
    )
    ray.add_argument(
        "--address",
        help="a running cluster: host:port, ray://host:port or auto (default: Ray started here)",
    )


def workers_of(arguments: argparse.Namespace) -> Any:
    """The workers asked for; None for the local engine.

    Raises:
        SteerlensError: "--workers is for --engine ray, …".
    """
    if arguments.engine == "local":
        refuse(arguments, _OF_RAY, "is for --engine ray, and everything is computed here")
        return None
    from steerlens.workers import WorkerSettings

    return WorkerSettings(
        workers=2 if arguments.workers is None else arguments.workers,
        cpus=1 if arguments.worker_cpus is None else arguments.worker_cpus,
        gpus=0 if arguments.worker_gpus is None else arguments.worker_gpus,
        address=arguments.address,
        device_map=device_map_of("--worker-device-map", arguments.worker_device_map),
        max_memory=max_memory_of("--worker-max-memory", arguments.worker_max_memory),
    )
