"""How a worker loads the driver's models: the same references, its devices the worker's own."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerlens.models.identity import ModelInfo
from steerlens.models.placement import Placement

if TYPE_CHECKING:
    from steerlens.workers.settings import WorkerSettings

__all__ = ["judge_arguments", "load_arguments"]


def load_arguments(
    info: ModelInfo, placement: Placement, settings: "WorkerSettings"
) -> tuple[str, dict[str, Any]]:
    """Reference and further arguments of `load_model` in a worker.

    Dtype and quantisation are the driver's: another precision would answer otherwise. Where the
    weights go is what `settings` says, else what the driver was told; without either, the CPU for a
    worker that has no GPU. GPUs are numbered from 0 within each worker.

    Args:
        info: Of the driver's model.
        placement: What the driver was told on loading it.
        settings: What a worker may use.
    """
    options: dict[str, Any] = {"dtype": info.dtype}
    own = settings.device_map is not None
    device_map = settings.device_map if own else placement.device_map
    max_memory = settings.max_memory
    if max_memory is None and not own:
        max_memory = placement.max_memory
    if device_map is not None:
        options["device_map"] = device_map
    elif settings.gpus == 0:
        options["device"] = "cpu"
    if max_memory is not None:
        options["max_memory"] = dict(max_memory)
    if placement.quantization_config is not None:
        options["quantization_config"] = placement.quantization_config
    return _reachable(info.reference), options


def judge_arguments(info: ModelInfo, settings: "WorkerSettings") -> tuple[str, dict[str, Any]]:
    """Reference and further arguments of `load_judge` in a worker.

    Args:
        info: Of the driver's judge.
        settings: What a worker may use.
    """
    options: dict[str, Any] = {"dtype": info.dtype}
    if settings.gpus == 0:
        options["device"] = "cpu"
    return _reachable(info.reference), options


def _reachable(reference: str) -> str:
    """A path in full: a relative one means another place in a worker."""
    path = Path(reference).expanduser()
    return str(path.resolve()) if path.exists() else reference
