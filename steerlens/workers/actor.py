"""What runs in a worker: models that compute pieces, loaded once the versions are compared."""

import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge

from steerlens.activations.pieces import ResidualPiece
from steerlens.behaviour.answers import answer_rows
from steerlens.behaviour.judge import Judge, JudgePiece, load_judge
from steerlens.models.identity import model_identity, model_info, model_placement
from steerlens.models.loading import load_model
from steerlens.workers.equality import own_versions
from steerlens.workers.packing import Places, unpack, unpack_prompts

__all__ = ["ModelWorker"]


class ModelWorker:
    """A model, a judge where the run has one, and the directions and prompts seen so far.

    Made a Ray actor by the pool. Making one loads nothing: the driver hears the versions first
    (`introduce`), then has the models loaded (`load`).

    Args:
        threads: Threads to compute with.
    """

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._model: TransformerBridge | None = None
        self._judge: Judge | None = None
        self._seen: dict[str, Any] = {}

    @property
    def model(self) -> TransformerBridge:
        """The model; `load` comes first."""
        if self._model is None:
            raise RuntimeError("the worker has not loaded its model")
        return self._model

    def introduce(self) -> dict[str, Any]:
        """Where this worker is and with what, before it loads anything."""
        return {
            "versions": own_versions(),
            "threads": torch.get_num_threads(),
            "machine": platform.node(),
            "pid": os.getpid(),
        }

    def load(
        self,
        reference: str,
        options: Mapping[str, Any],
        judge: tuple[str, Mapping[str, Any]] | None = None,
    ) -> dict[str, Any]:
        """Load the model, and the judge; what the driver compares with its own.

        Args:
            reference: What `load_model` takes; a folder must be reachable from this machine.
            options: Further arguments of `load_model`.
            judge: The same for `load_judge`; ``None`` where nothing is to be judged.
        """
        self._model = load_model(reference, **options)
        info = model_info(self._model)
        placement = model_placement(self._model)
        loaded = {
            **model_identity(self._model).compared,
            "device": info.device,
            # As they stand in the run's manifest, where keys are text.
            "device_map": _textual(placement.device_map),
            "max_memory": _textual(placement.max_memory),
        }
        if judge is not None:
            name, more = judge
            self._judge = load_judge(name, **more)
            loaded["judge"] = model_identity(self._judge.model).compared
        return loaded

    def answer(
        self,
        asked: Places,
        packed: Any,
        references: Mapping[str, Any],
        max_new_tokens: int,
        batch_size: int,
    ) -> list[dict[str, Any]]:
        """The records of a piece.

        Args:
            asked: Token ids, one a row, as places in bundles; see `steerlens.workers.packing`.
            packed: Steerings, one a row, without their directions.
            references: Where the object store has the bundles and the directions.
            max_new_tokens: Longest response, in tokens.
            batch_size: Rows decoded together.
        """
        new = [name for name in references if name not in self._seen]
        if new:
            import ray

            found = ray.get([references[name] for name in new])
            self._seen.update(zip(new, map(_kept, found), strict=True))
        return answer_rows(
            self.model,
            unpack_prompts(asked, self._seen),
            unpack(packed, self._seen),
            max_new_tokens,
            batch_size,
        )

    def cache(self, piece: ResidualPiece) -> tuple[Any, Any, tuple[int, ...], dict[str, Any]]:
        """The residuals of a piece: both sides ``[pair layer d_model]``, groups and provenance."""
        cache = piece.compute(self.model)
        return (
            cache.instructed.numpy(),
            cache.uninstructed.numpy(),
            cache.groups,
            dict(cache.metadata),
        )

    def judge(self, piece: JudgePiece) -> list[float | None]:
        """The perplexities of a piece."""
        if self._judge is None:
            raise RuntimeError("the worker has not loaded a judge")
        return piece.compute(self._judge)


def _kept(found: Any) -> Any:
    """A bundle of prompts as it is; a direction as a tensor that may be written to."""
    return found if isinstance(found, Sequence) else torch.from_numpy(found.copy())


def _textual(setting: Any) -> Any:
    if not isinstance(setting, Mapping):
        return setting
    return {str(key): value for key, value in setting.items()}
