r"""The ceiling: how much of an instruction's effect *any* direction at a layer could recover.

A task that the difference of means does not move at a layer may lack a better direction, or the
layer may be the wrong one. So at each layer a direction is trained to imitate the instructed run
(`steerlens.training`, objective ``imitate``: causal recovery, maximised, on the ``fit`` split), and
its recovery :math:`R_h` on ``select`` (`steerlens.attribution.causal`) stands beside that of the
difference of means, of other tasks' vectors and of a random direction pushed as far. The share of
the ceiling that the difference of means reaches is

.. math:: \frac{R^\text{mean difference}}{R^\text{trained}}
   = \frac{\sum_i (\mathrm{KL}_i - \mathrm{KL}_i^\text{mean difference})}
          {\sum_i (\mathrm{KL}_i - \mathrm{KL}_i^\text{trained})}

with an interval over base queries, given where the ceiling is above 0.

Caveats. Training finds *a* good direction from few examples, so the true ceiling is at or above
this one. Where several directions are trained at a layer (gates, seeds), the one with the least
loss on held-out examples of ``fit`` is taken. Recovery measures likelihood of the instructed
answer, not whether a greedy answer complies.
"""

import os
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from transformer_lens.model_bridge import TransformerBridge

from steerlens.activations.cache import cache_residuals
from steerlens.attribution.model_evidence import require_effect, tokenized_sides
from steerlens.attribution.teacher_forcing import instructed_responses, kl_to_instructed
from steerlens.errors.arguments import arguments
from steerlens.stats.queries import ratio_interval, recovery_interval
from steerlens.steering.interventions import Steering
from steerlens.tasks import Task
from steerlens.tasks.drawing import contrast_pairs
from steerlens.tasks.task_files import load_task
from steerlens.training import Slot, TrainedDirections, TrainingSettings, train_directions
from steerlens.vectors import (
    SteeringVector,
    difference_of_means,
    norm_matched,
    other_task_vectors,
    random_direction,
)
from steerlens.views.result import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["CEILING_TRAINING", "Ceiling", "ceiling"]

Array = np.ndarray
CURVES = ("ceiling", "mean_difference", "other_task", "placebo")
# Every layer is trained at once, so each gets less than `train_direction` gives to one.
CEILING_TRAINING = TrainingSettings(
    n_examples=32, max_tokens=32, n_steps=24, batch_size=4, look_every=8, learning_rate=0.15
)


@dataclass(frozen=True, eq=False, repr=False)
class Ceiling(Result):
    """What training reaches at each layer, and how much of it the difference of means does.

    Attributes:
        table: One row per layer: ``layer``; recovery as ``ceiling, mean_difference, other_task,
            placebo``, each with ``_low`` and ``_high``; ``share`` of the ceiling that the
            difference of means reaches, with ``share_low`` and ``share_high``; ``gate`` of the
            direction that was taken, its ``cosine`` with the difference of means, and ``push``,
            its ‖z‖.
        best_layer: Where the ceiling is highest.
        trained: Every direction that was trained.
        vectors: The one that was taken at each layer.
        metadata: Task, model, horizon, splits and sizes.
    """

    table: pd.DataFrame
    best_layer: int
    trained: TrainedDirections
    vectors: tuple[SteeringVector, ...]
    metadata: dict[str, Any]

    def __repr__(self) -> str:
        row = self.table.set_index("layer").loc[self.best_layer]
        return (
            f"Ceiling({self.metadata['task']}: {row.ceiling:.2f} [{row.ceiling_low:.2f}, "
            f"{row.ceiling_high:.2f}] at layer {self.best_layer}, where the difference of means "
            f"recovers {row.mean_difference:.2f})"
        )

    def plot(self) -> "go.Figure":
        """Recovery over layers: ceiling, difference of means, and both controls."""
        from steerlens.views.training import ceiling_curves

        return ceiling_curves(self.table)

    def _card(self) -> dict[str, Any]:
        return dict(self._around_layer(self.best_layer))


@arguments
def ceiling(
    model: TransformerBridge,
    task: Task | str | os.PathLike[str],
    layers: Sequence[int] | None = None,
    gates: Sequence[bool] = (True,),
    seeds: Sequence[int] = (0,),
    n_pairs: int = 16,
    horizon: int = 32,
    training: TrainingSettings | None = None,
    seed: int = 0,
    chat_format: str = "auto",
    show_progress: bool | None = None,
) -> Ceiling:
    """Train a direction at each layer, and compare what it recovers.

    Args:
        model: A hooked model that the engine's fast pass can run.
        task: The task, its id in the catalogue, or its file.
        layers: Where; by default every second layer but the last, after which nothing follows.
        gates: With a ReLU gate, without, or both.
        seeds: Directions are trained from each.
        n_pairs: Pairs of the ``select`` split that recovery is measured on.
        horizon: Tokens of the response that recovery is summed over.
        training: How directions are trained; by default `CEILING_TRAINING`.
        seed: Of pairs and examples, and of the random direction.
        chat_format: As for `steerlens.generate`.
        show_progress: Show progress bars on standard error; by default only in a terminal.

    Raises:
        SteeringError: As `steerlens.train_direction`, or the instruction changes nothing.
    """
    task = load_task(task)
    numbers = range(0, model.cfg.n_layers - 1, 2) if layers is None else layers
    chosen = tuple(sorted(set(numbers)))
    slots = [
        Slot((layer,), "imitate", gate, at) for layer, gate, at in product(chosen, gates, seeds)
    ]
    rendered: dict[str, Any] = {"chat_format": chat_format, "show_progress": show_progress}
    trained = train_directions(
        model, task, slots, settings=training or CEILING_TRAINING, seed=seed, **rendered
    )
    losses = trained.table["loss"].to_numpy()
    best = {
        layer: min(
            (i for i, slot in enumerate(slots) if slot.layers == (layer,)), key=lambda i: losses[i]
        )
        for layer in chosen
    }
    vectors = tuple(trained.vectors[best[layer]] for layer in chosen)

    fitted = contrast_pairs(task, seed=seed, split="fit")
    cache = cache_residuals(model, fitted, layers=chosen, **rendered)
    mean_difference = difference_of_means(cache)
    others = [
        norm_matched(other.restricted_to(chosen), mean_difference)
        for other in other_task_vectors(model, task, seed=seed, **rendered)
    ]
    groups: list[list[Steering]] = [
        [
            vector.at(layer, "general" if slots[best[layer]].gate else "add")
            for layer, vector in zip(chosen, vectors, strict=True)
        ],
        *(
            [vector.at(layer) for layer in chosen]
            for vector in (mean_difference, random_direction(cache, seed=seed), *others)
        ),
    ]
    n = min(n_pairs, task.n_pairs("select"))
    pairs = contrast_pairs(task, n=n, seed=seed, split="select")
    instructed, uninstructed = tokenized_sides(model, pairs, chat_format)
    responses = instructed_responses(model, instructed, uninstructed, horizon, show_progress)
    steerings = [None, *(steering for group in groups for steering in group)]
    kl = kl_to_instructed(model, instructed, uninstructed, responses, steerings, show_progress).sum(
        axis=-1
    )
    whole = kl[0]
    require_effect(whole, f"first {horizon} response tokens")
    remaining = kl[1:].reshape(len(groups), len(chosen), len(pairs))
    controls = np.stack([*remaining[:3], remaining[3:].mean(axis=0)])
    table = _table(chosen, controls, whole, pairs.query_groups)
    details = trained.table.iloc[[best[layer] for layer in chosen]].reset_index(drop=True)
    table[["gate", "cosine", "push"]] = details[["gate", "cosine", "push"]]
    return Ceiling(
        table=table,
        best_layer=int(table.layer[table.ceiling.argmax()]),
        trained=trained,
        vectors=vectors,
        metadata={
            **cache.metadata,
            "task": task.id,
            "horizon": horizon,
            "n_pairs": len(pairs),
            "split": "select",
            "others": [other.name for other in others],
            "seed": seed,
        },
    )


def _table(
    layers: Sequence[int],
    remaining: Float[Array, "curve layer pair"],
    whole: Float[Array, "pair"],
    queries: Sequence[Hashable],
) -> pd.DataFrame:
    """Recovery of each curve in the order trained, difference of means, random, other tasks."""
    table = pd.DataFrame({"layer": layers})
    order = ("ceiling", "mean_difference", "placebo", "other_task")
    for name in CURVES:
        left = remaining[order.index(name)]
        values = recovery_interval(left.T, whole, queries)
        for column, value in zip((name, f"{name}_low", f"{name}_high"), values, strict=True):
            table[column] = value
    above, below = whole - remaining[1], whole - remaining[0]
    shares = [ratio_interval(above[i][:, None], below[i], queries) for i in range(len(layers))]
    for place, column in enumerate(("share", "share_low", "share_high")):
        table[column] = [float(share[place][0]) for share in shares]
    table.loc[table["ceiling_low"] <= 0, ["share", "share_low", "share_high"]] = np.nan
    return table
