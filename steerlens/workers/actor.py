"""What runs in a worker: a loaded model that computes pieces."""

import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from steerlens.activations import ResidualPiece
from steerlens.answers import answer_rows
from steerlens.files import library_versions
from steerlens.identity import model_placement
from steerlens.models import load_model, model_info
from steerlens.workers.packing import unpack

__all__ = ["ModelWorker"]


class ModelWorker:
    """A model and the directions seen so far; made a Ray actor by `steerlens.workers.pool`.

    Args:
        reference: What `load_model` takes; a folder must be reachable from the worker's machine.
        options: Further arguments of `load_model`.
        threads: Threads to compute with; 0 leaves torch's default.
    """

    def __init__(self, reference: str, options: Mapping[str, Any], threads: int) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.model = load_model(reference, **options)
        self._directions: dict[str, torch.Tensor] = {}

    def describe(self) -> dict[str, Any]:
        """What the driver compares with its own."""
        info = model_info(self.model)
        placement = model_placement(self.model)
        return {
            "weights_hash": info.weights_hash,
            "precision": info.precision,
            "versions": {"python": platform.python_version(), **library_versions()},
            "device": info.device,
            # As they stand in the run's manifest, where keys are text.
            "device_map": _textual(placement.device_map),
            "max_memory": _textual(placement.max_memory),
            "threads": torch.get_num_threads(),
            "machine": platform.node(),
            "pid": os.getpid(),
        }

    def answer(
        self,
        prompts: Sequence[str],
        packed: Any,
        references: Mapping[str, Any],
        max_new_tokens: int,
        batch_size: int,
    ) -> list[dict[str, Any]]:
        """The records of a piece.

        Args:
            prompts: One a row.
            packed: See `steerlens.workers.packing`.
            references: Where the object store has the directions.
            max_new_tokens: Longest response, in tokens.
            batch_size: Rows decoded together.
        """
        new = [name for name in references if name not in self._directions]
        if new:
            import ray

            found = ray.get([references[name] for name in new])
            self._directions.update(
                {name: torch.from_numpy(one.copy()) for name, one in zip(new, found, strict=True)}
            )
        steerings = unpack(packed, self._directions)
        return answer_rows(self.model, prompts, steerings, max_new_tokens, batch_size)

    def cache(self, piece: ResidualPiece) -> tuple[Any, Any, tuple[int, ...], dict[str, Any]]:
        """The residuals of a piece: both sides ``[pair layer d_model]``, groups and provenance."""
        cache = piece.compute(self.model)
        return (
            cache.instructed.numpy(),
            cache.uninstructed.numpy(),
            cache.groups,
            dict(cache.metadata),
        )


def _textual(setting: Any) -> Any:
    if not isinstance(setting, Mapping):
        return setting
    return {str(key): value for key, value in setting.items()}
