"""`--engine` and what goes with it: where the pieces of a command are computed."""

import argparse
from typing import Any

from steerlens.cli_common import device_map_of, max_memory_of

__all__ = ["add_engine", "workers_of"]


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Options of long runs: the estimate, the engine, and its workers."""
    parser.add_argument(
        "--no-estimate", action="store_true", help="do not measure first what it will take"
    )
    parser.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="where pieces are computed; the files are the same",
    )
    ray = parser.add_argument_group("with --engine ray")
    ray.add_argument("--workers", type=int, default=2, help="processes, each with the model")
    ray.add_argument("--worker-cpus", type=float, default=1, help="logical CPUs of each")
    ray.add_argument(
        "--worker-gpus", type=float, default=0, help="GPUs of each: a part of one, or whole ones"
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
    """The workers asked for; None for the local engine."""
    if arguments.engine == "local":
        return None
    from steerlens.workers import WorkerSettings

    return WorkerSettings(
        workers=arguments.workers,
        cpus=arguments.worker_cpus,
        gpus=arguments.worker_gpus,
        address=arguments.address,
        device_map=device_map_of("--worker-device-map", arguments.worker_device_map),
        max_memory=max_memory_of("--worker-max-memory", arguments.worker_max_memory),
    )
