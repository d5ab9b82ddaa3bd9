"""From actors that have just been made to workers that hold the driver's models, or why not.

In two steps, each for all actors at once: what they have installed is compared, then the model, and
the judge where there is one, are loaded and compared. A worker of other versions never begins to
load.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from steerlens.errors import SteerlensError
from steerlens.models.identity import Identity
from steerlens.workers.equality import check_same, own_versions

__all__ = ["ready"]


def ready(
    ray: Any,
    actors: Sequence[Any],
    load: tuple[Any, ...],
    model: Identity,
    timeout: int | float,
    judge: Identity | None = None,
) -> list[dict[str, Any]]:
    """What each actor says of itself, once it has loaded the model and it is the driver's.

    Args:
        ray: The module, connected.
        actors: Handles of `steerlens.workers.actor.ModelWorker`.
        load: What `ModelWorker.load` is given; see `steerlens.workers.loading`.
        model: The driver's.
        timeout: Seconds until all must be ready.
        judge: The driver's.

    Raises:
        SteerlensError: "the worker on … has torch …, this process …", "a worker cannot be started",
            "a worker cannot load …", "a worker has not loaded … within …", "the worker on … holds
            another …".
    """
    deadline = time.monotonic() + timeout
    try:
        introduced = _all(ray, [actor.introduce.remote() for actor in actors], deadline)
    except ray.exceptions.GetTimeoutError as error:
        raise _late(model, timeout) from error
    except ray.exceptions.RayError as error:
        raise SteerlensError(
            f"a worker cannot be started: {_why(error)}; install the same libraries on every "
            "machine of the cluster"
        ) from error
    for said in introduced:
        check_same(said["machine"], said["versions"], own_versions())
    try:
        loaded = _all(ray, [actor.load.remote(*load) for actor in actors], deadline)
    except ray.exceptions.GetTimeoutError as error:
        raise _late(model, timeout) from error
    except ray.exceptions.RayError as error:
        wanted = model.reference + (f" and the judge {judge.reference}" if judge else "")
        raise SteerlensError(
            f"a worker cannot load {wanted}: {_why(error)}; every machine of the cluster "
            "must reach the same models (a folder on shared storage, or an installed package)"
        ) from error
    members = [{**one, **other} for one, other in zip(introduced, loaded, strict=True)]
    for said in members:
        _check_model(said["machine"], said, model)
        if judge is not None:
            _check_model(said["machine"], said["judge"], judge)
    return members


def _all(ray: Any, references: Sequence[Any], deadline: float) -> list[dict[str, Any]]:
    left = max(0.0, deadline - time.monotonic())
    found: list[dict[str, Any]] = ray.get(list(references), timeout=left)
    return found


def _check_model(machine: str, said: Mapping[str, Any], here: Identity) -> None:
    for what, mine in here.compared.items():
        if said[what] != mine:
            raise SteerlensError(
                f"the worker on {machine} holds another {here.reference} ({what} {said[what]}, "
                f"here {mine}); give the same model to every machine"
            )


def _late(model: Identity, timeout: int | float) -> SteerlensError:
    return SteerlensError(
        f"a worker has not loaded {model.reference} within {timeout:g} s; is the cluster busy with "
        "other work?"
    )


def _why(error: Exception) -> str:
    """The worker's own sentence, or the last line of what Ray says."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, SteerlensError):
        return str(cause).rstrip(".")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".")
