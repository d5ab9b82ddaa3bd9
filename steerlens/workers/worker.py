"""What runs in a worker: the driver's model and judge, loaded, compared, and asked for pieces."""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformer_lens.model_bridge import TransformerBridge

from steerlens.activations.pieces import ResidualPiece
from steerlens.behaviour.answers import Piece, answer_rows
from steerlens.behaviour.judge import Judge, JudgePiece, load_judge
from steerlens.errors import SteerlensError, first_line
from steerlens.files import library_versions
from steerlens.models.identity import Identity, model_identity, model_info, model_placement
from steerlens.models.loading import load_model

if TYPE_CHECKING:
    from steerlens.workers.settings import WorkerSettings

__all__ = ["SAME_LIBRARIES", "ModelWorker", "WorkerModels", "check_versions", "installed_versions"]

# Another release of one of these may compute other numbers, or not read what the driver sends. Ray
# itself compares Python and Ray.
SAME_LIBRARIES = ("steerlens", "torch", "transformers", "transformer-lens", "numpy")


@dataclass(frozen=True)
class WorkerModels:
    """The driver's models and libraries, for a worker to load, and to compare its own with.

    Attributes:
        model_options: Arguments of `load_model`.
        judge: None where nothing is judged.
        judge_options: Arguments of `load_judge`.
        threads: Threads to compute with.
    """

    model: Identity
    model_options: Mapping[str, Any]
    judge: Identity | None
    judge_options: Mapping[str, Any]
    versions: Mapping[str, str]
    threads: int

    @classmethod
    def of(
        cls, model: TransformerBridge, judge: Judge | None, settings: "WorkerSettings"
    ) -> "WorkerModels":
        """What workers load for this driver: its precision, placed as `settings` or it was told.

        Without either, a worker without GPUs computes on the CPU; GPUs are numbered from 0 within
        each worker.
        """
        placement = model_placement(model)
        has_own_map = settings.device_map is not None
        cpu = {"device": "cpu"} if settings.gpus == 0 else {}
        device_map = settings.device_map if has_own_map else placement.device_map
        max_memory = settings.max_memory
        if max_memory is None and not has_own_map:
            max_memory = placement.max_memory
        options: dict[str, Any] = {"dtype": model_info(model).dtype}
        options |= cpu if device_map is None else {"device_map": device_map}
        if max_memory is not None:
            options["max_memory"] = dict(max_memory)
        if placement.quantization_config is not None:
            options["quantization_config"] = placement.quantization_config
        return cls(
            model=_reachable(model_identity(model)),
            model_options=options,
            judge=None if judge is None else _reachable(model_identity(judge.model)),
            judge_options={} if judge is None else {"dtype": judge.info.dtype, **cpu},
            versions=installed_versions(),
            threads=settings.threads,
        )


class ModelWorker:
    """A Ray actor with a model and, where the run has one, a judge.

    Making one loads nothing; `prepare` does.
    """

    def __init__(self, models: WorkerModels) -> None:
        self._models = models
        self._model: TransformerBridge | None = None
        self._judge: Judge | None = None

    def prepare(self) -> dict[str, Any]:
        """Load the models.

        Returns:
            The worker's machine, process, libraries and devices.

        Raises:
            SteerlensError: Other libraries or another model than the driver's, or one that cannot
                be loaded here.
        """
        models, machine = self._models, platform.node()
        check_versions(machine, installed_versions(), models.versions)
        torch.set_num_threads(models.threads)
        model = _loaded(load_model, models.model, models.model_options)
        _check_identity(machine, model, models.model)
        if models.judge is not None:
            self._judge = _loaded(load_judge, models.judge, models.judge_options)
            _check_identity(machine, self._judge.model, models.judge)
        self._model = model
        placement = model_placement(model)
        return {
            **model_identity(model).compared,
            "device": model_info(model).device,
            "device_map": _with_text_keys(placement.device_map),
            "max_memory": _with_text_keys(placement.max_memory),
            "versions": installed_versions(),
            "threads": torch.get_num_threads(),
            "machine": machine,
            "pid": os.getpid(),
        }

    def compute(self, piece: Piece | ResidualPiece | JudgePiece) -> Any:
        """Records of a `Piece`, perplexities of a `JudgePiece`; residuals ``[pair layer d_model]``
        of both sides, groups and provenance of a `ResidualPiece`.
        """
        assert self._model is not None, "prepare comes first"
        if isinstance(piece, Piece):
            return answer_rows(self._model, piece)
        if isinstance(piece, JudgePiece):
            assert self._judge is not None, "the run has no judge"
            return piece.compute(self._judge)
        cache = piece.compute(self._model)
        # Arrays travel without a copy, tensors do not.
        sides = cache.instructed.numpy(), cache.uninstructed.numpy()
        return *sides, cache.groups, dict(cache.metadata)


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on, in this process."""
    return {"python": platform.python_version(), **library_versions()}


def check_versions(machine: str, here: Mapping[str, str], driver: Mapping[str, str]) -> None:
    """Refuse a worker whose libraries are not the driver's.

    >>> check_versions("node-7", {"torch": "2.5.1"}, {"torch": "2.6.0"})
    Traceback (most recent call last):
        ...
    steerlens.errors.SteerlensError: the worker on node-7 has torch 2.5.1, the driver 2.6.0; \
install the same on every machine
    """
    for name in SAME_LIBRARIES:
        if here.get(name) != driver.get(name):
            raise SteerlensError(
                f"the worker on {machine} has {name} {here.get(name)}, the driver "
                f"{driver.get(name)}; install the same on every machine"
            )


def _reachable(identity: Identity) -> Identity:
    """With a path in full: a relative one means another place in a worker."""
    path = Path(identity.reference).expanduser()
    return replace(identity, reference=str(path.resolve())) if path.exists() else identity


def _loaded(load: Any, identity: Identity, options: Mapping[str, Any]) -> Any:
    try:
        return load(identity.reference, **options)
    except Exception as error:
        raise SteerlensError(
            f"a worker cannot load {identity.reference}: {first_line(error)}; every machine of the "
            "cluster must reach the same models (a folder on shared storage, or an installed "
            "package)"
        ) from error


def _check_identity(machine: str, model: TransformerBridge, driver: Identity) -> None:
    here = model_identity(model).compared
    for what, expected in driver.compared.items():
        if here[what] != expected:
            raise SteerlensError(
                f"the worker on {machine} holds another {driver.reference} ({what} {here[what]}, "
                f"the driver's {expected}); give the same model to every machine"
            )


def _with_text_keys(setting: Any) -> Any:
    """As a run's manifest holds it, where keys are text."""
    if not isinstance(setting, Mapping):
        return setting
    return {str(key): value for key, value in setting.items()}
