"""Evidence about the layers of a task, gathered piece by piece on few pairs.

Three kinds: separability (`rank_layers`, on the residuals the vector was fitted on), first-token
recovery (`first_token_recovery`, on pairs it was not) and specificity (`specificity`, beside a few
other tasks). What has been computed stays, so that work which is cancelled goes on where it ended.
It is a quick look: for conclusions there are `sl.report` and more pairs.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from steerlens.activations.grids import residual_grid
from steerlens.attribution.causal import first_token_recovery
from steerlens.attribution.ranking import LayerRanking
from steerlens.attribution.recovery import RecoveryCurve
from steerlens.attribution.separability import rank_layers
from steerlens.attribution.specificity import Specificity, specificity
from steerlens.errors import SteerlensError
from steerlens.explorer.sources import Fitted, pairs_of
from steerlens.tasks import Task
from steerlens.tasks.grids import task_grid

__all__ = ["KINDS", "LayerEvidence"]

KINDS = {"auroc": "separability", "specific_auroc": "specificity", "recovery": "recovery"}
"""Columns of evidence, with their names."""
_N_HELD_OUT, _N_QUERIES, _N_RESAMPLES, _N_PERMUTATIONS = 8, 8, 200, 99
# Tasks beside which specificity is measured: unlike each other, and without arguments.
_OTHERS = (
    "detectable_format:title",
    "detectable_format:json_format",
    "change_case:english_lowercase",
    "punctuation:no_comma",
    "startend:quotation",
)
# Recovery is measured for every fourth layer first, then for those between.
_STARTS = (0, 2, 1, 3)


class LayerEvidence:
    """What is known about the layers of one source.

    Attributes:
        fitted: The source.
        separability: ``None`` until it is known, as the others.
        specificity: See above.
        recovery: Of the layers measured so far.
        missing: Why a kind of evidence cannot be had, by kind.
    """

    def __init__(self, fitted: Fitted) -> None:
        self.fitted = fitted
        self.separability: LayerRanking | None = None
        self.specificity: Specificity | None = None
        self.recovery: RecoveryCurve | None = None
        self.missing: dict[str, str] = {}
        self._pieces = self._planned()

    @property
    def n_left(self) -> int:
        """How many pieces are left to compute."""
        return len(self._pieces)

    @property
    def awaited(self) -> str:
        """The kind that is computed next; empty where nothing is left."""
        return self._pieces[0][0] if self._pieces else ""

    @property
    def ranking(self) -> LayerRanking | None:
        """All that is known, side by side; its `plot` draws the curves."""
        if self.separability is None:
            return None
        ranking = self.separability
        if self.specificity is not None:
            table, name = self.specificity.table, "specific_auroc"
            ranking = ranking.with_evidence(name, table, low=f"{name}_low", high=f"{name}_high")
        if self.recovery is not None:
            ranking = ranking.with_evidence("recovery", self.recovery.table)
        return replace(ranking, kinds=tuple(kind for kind in KINDS if kind in ranking.table))

    def best_layers(self) -> dict[str, int]:
        """The best layer by each kind that is known and lies above chance somewhere."""
        results = (self.separability, self.specificity, self.recovery)
        return {
            kind: result.best_layer
            for kind, result in zip(KINDS, results, strict=True)
            if result is not None and result.caveat is None
        }

    def gather(self, model: TransformerBridge) -> Iterator[None]:
        """Compute what is missing; yields after each piece."""
        while self._pieces:
            kind, piece = self._pieces[0]
            if kind not in self.missing:
                try:
                    piece(model)
                except SteerlensError as error:
                    self.missing[kind] = str(error)
            self._pieces.pop(0)
            yield

    def _planned(self) -> list[tuple[str, Callable[..., None]]]:
        task = self.fitted.task
        if task is None:  # a vector file
            return []
        layers = self.fitted.vector.layers
        others = [name for name in _OTHERS if name != task.id]
        return [
            ("auroc", self._rank),
            *(
                (
                    "recovery",
                    lambda model, start=start: self._recover(model, task, layers[start::4]),
                )
                for start in _STARTS
                if layers[start::4]
            ),
            *(
                ("specific_auroc", lambda model, other=other: self._read(model, task, other))
                for other in others
            ),
            ("specific_auroc", lambda model: self._compare(model, task, others)),
        ]

    def _rank(self, model: TransformerBridge) -> None:
        assert self.fitted.residuals is not None  # it was fitted on pairs
        self.separability = rank_layers(self.fitted.residuals, n_resamples=_N_RESAMPLES)

    def _recover(self, model: TransformerBridge, task: Task, layers: tuple[int, ...]) -> None:
        pairs = pairs_of(task, _N_HELD_OUT, "select")
        curve = first_token_recovery(
            model, pairs, self.fitted.vector, layers=layers, show_progress=False
        )
        if self.recovery is not None:
            table = pd.concat([self.recovery.table, curve.table]).sort_values("layer")
            table = table.reset_index(drop=True)
            best = int(table["layer"].iloc[int(np.nanargmax(table["recovery"]))])
            curve = replace(curve, table=table, best_layer=best)
        self.recovery = curve

    def _read(self, model: TransformerBridge, task: Task, other: str) -> None:
        # Residuals of each task are kept on disk, where `specificity` finds them.
        residual_grid(model, task_grid(task, [other], _N_QUERIES), show_progress=False)

    def _compare(self, model: TransformerBridge, task: Task, others: list[str]) -> None:
        self.specificity = specificity(
            model,
            task,
            others,
            n_queries=_N_QUERIES,
            n_permutations=_N_PERMUTATIONS,
            show_progress=False,
        )
