"""Ray, started here or found at an address, and every way in which it cannot be had."""

import importlib.util
import logging
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from steerlens.errors import SteerlensError, first_line

if TYPE_CHECKING:
    from steerlens.workers.settings import WorkerSettings

__all__ = ["check_available", "connected"]

_CONNECT_SECONDS = 5.0


def check_available(settings: "WorkerSettings") -> None:
    """Say at the door, before a run folder is made, what needs no cluster to be known.

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
    # Nothing is reported to anyone, and no dashboard is started.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray leaves accelerators of actors without GPUs visible from its next release on.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    already = ray.is_initialized()
    if not already:
        _start(ray, settings)
    try:
        _check_resources(ray, settings)
        yield ray
    finally:
        if not already:
            ray.shutdown()


def _start(ray: Any, settings: "WorkerSettings") -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if settings.address is None:
        try:
            # Without an address Ray would join a cluster it finds: one that runs here, or that
            # RAY_ADDRESS names.
            ray.init(address="local", include_dashboard=False, **quiet)
        except Exception as error:  # Ray has many kinds for "could not start", some of them private
            raise SteerlensError(f"Ray cannot be started here: {first_line(error)}") from error
        return
    try:
        ray.init(address=settings.address, **quiet)
    except RuntimeError as error:
        if "ersion mismatch" in str(error):
            raise SteerlensError(
                f"the cluster at {settings.address} runs another version of Ray or Python than "
                f"this process ({first_line(error)}); use the same on both sides"
            ) from error
        raise _refused(settings.address, error) from error
    except (ConnectionError, ValueError, OSError, ImportError) as error:
        raise _refused(settings.address, error) from error


def _check_listening(address: str) -> None:
    """Ray itself tries for half a minute before it says that nobody is there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address in ("auto", "local") or not host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise _unreachable(address, error) from error


def _unreachable(address: str, error: Exception) -> SteerlensError:
    return SteerlensError(
        f"no Ray cluster at {address} ({first_line(error)}); start one with 'ray start --head', "
        "or leave the address out to use this machine"
    )


def _refused(address: str, error: Exception) -> SteerlensError:
    """Somebody listens there, but Ray does not get in."""
    if address in ("auto", "local"):
        return _unreachable(address, error)
    return SteerlensError(
        f"cannot join the Ray cluster at {address} ({first_line(error)}); this machine must be a "
        "node of it ('ray start --address ...'; 'auto' then finds it), and a cluster that asks for "
        "a token wants RAY_AUTH_MODE=token set"
    )


def _check_resources(ray: Any, settings: "WorkerSettings") -> None:
    have = ray.cluster_resources()
    for kind, each in (("CPU", settings.cpus), ("GPU", settings.gpus)):
        asked, there = settings.workers * each, have.get(kind, 0.0)
        if asked > there:
            raise SteerlensError(
                f"{settings.workers} workers of {each:g} {kind}s need {asked:g}, the cluster has "
                f"{there:g}; ask for fewer with --workers or --worker-{kind.lower()}s"
            )
    # A worker lives on one machine: 8 GPUs on 4 machines hold no worker of 4.
    machines = [one.get("Resources", {}) for one in ray.nodes() if one.get("Alive", True)]
    room = sum(_fitting(one, settings) for one in machines)
    if room < settings.workers:
        raise SteerlensError(
            f"{settings.workers} workers of {settings.cpus:g} CPUs and {settings.gpus:g} GPUs do "
            f"not fit on the {len(machines)} machines of the cluster, where {room} fit; a worker "
            "lives on one machine: ask for fewer or smaller ones"
        )


def _fitting(resources: Mapping[str, float], settings: "WorkerSettings") -> int:
    """How many workers a machine with these resources holds."""
    rooms = [
        int(resources.get(kind, 0.0) / each + 1e-9)
        for kind, each in (("CPU", settings.cpus), ("GPU", settings.gpus))
        if each > 0
    ]
    return min(rooms, default=settings.workers)
