"""Ray, started on this machine or found at an address, and every way in which it cannot be had."""

import importlib.util
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from steerlens.errors import SteerlensError, first_line

if TYPE_CHECKING:
    from steerlens.workers.settings import WorkerSettings

__all__ = ["check_available", "connected"]

CONNECT_SECONDS = 5.0


def check_available(settings: "WorkerSettings") -> None:
    """Refuse, before a run folder is made, what can be refused without a cluster.

    Raises:
        SteerlensError: Ray is not installed; nobody listens at the address; fewer CPUs here.
    """
    if importlib.util.find_spec("ray") is None:
        raise SteerlensError(
            "the engine 'ray' needs Ray, which is not installed; pip install 'steerlens[ray]', or "
            "use --engine local"
        )
    known = sys.modules.get("ray")
    if known is not None and known.is_initialized():
        return
    if settings.address is not None:
        _check_listening(settings.address)
        return
    asked, there = settings.workers * settings.cpus, os.cpu_count() or 1
    if asked > there:
        raise SteerlensError(
            f"{settings.workers} workers of {settings.cpus:g} CPUs need {asked:g}, this machine "
            f"has {there}; ask for fewer with --workers or --worker-cpus"
        )


@contextmanager
def connected(settings: "WorkerSettings") -> Iterator[Any]:
    """The module `ray`, connected; disconnected again at the end, and stopped if started here.

    Raises:
        SteerlensError: Ray is not installed; no cluster at the address; another version of Ray or
            Python there; fewer CPUs or GPUs than asked for.
    """
    check_available(settings)
    # Nothing is reported to anyone.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray leaves accelerators of actors without GPUs visible from its next release on.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    already = ray.is_initialized()
    if not already:
        _start(ray, settings.address)
    try:
        _check_resources(ray, settings)
        yield ray
    finally:
        if not already:
            ray.shutdown()


def _start(ray: Any, address: str | None) -> None:
    # Without an address Ray would join a cluster it finds, here or named by RAY_ADDRESS.
    where = (
        {"address": "local", "include_dashboard": False}
        if address is None
        else {"address": address}
    )
    try:
        ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # some of Ray's kinds are private
        reason = first_line(error)
        if address is None:
            raise SteerlensError(f"Ray cannot be started here: {reason}") from error
        if "ersion mismatch" in str(error):
            raise SteerlensError(
                f"the cluster at {address} runs another version of Ray or Python than this process "
                f"({reason}); use the same on both sides"
            ) from error
        if address in ("auto", "local"):
            raise _unreachable(address, error) from error
        raise SteerlensError(
            f"cannot join the Ray cluster at {address} ({reason}); this machine must be a node of "
            "it ('ray start --address ...'; 'auto' then finds it), and a cluster that asks for a "
            "token wants RAY_AUTH_MODE=token set"
        ) from error


def _check_listening(address: str) -> None:
    """Ray itself tries for half a minute before it says that nobody is there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address in ("auto", "local") or not host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise _unreachable(address, error) from error


def _unreachable(address: str, error: Exception) -> SteerlensError:
    return SteerlensError(
        f"no Ray cluster at {address} ({first_line(error)}); start one with 'ray start --head', "
        "or leave the address out to use this machine"
    )


def _check_resources(ray: Any, settings: "WorkerSettings") -> None:
    """A worker lives on one machine: 8 GPUs on 4 machines hold no worker of 4."""
    asked = {"CPU": settings.cpus, "GPU": settings.gpus}
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    n_fitting = sum(
        min(
            (int(machine.get(kind, 0) / n + 1e-9) for kind, n in asked.items() if n),
            default=settings.workers,
        )
        for machine in machines
    )
    if n_fitting < settings.workers:
        has = ", ".join(f"{sum(m.get(kind, 0) for m in machines):g} {kind}s" for kind in asked)
        raise SteerlensError(
            f"{settings.workers} workers of {settings.cpus:g} CPUs and {settings.gpus:g} GPUs do "
            f"not fit on the cluster, which has {has} on {len(machines)} machines, room for "
            f"{n_fitting} workers (each lives on one machine); ask for fewer with --workers, or "
            "for smaller ones with --worker-cpus and --worker-gpus"
        )
