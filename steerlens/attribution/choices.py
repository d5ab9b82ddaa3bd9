r"""How much steering moves a choice between two answers, measured without generating text.

After the question the two answers share what they begin with (" (" of " (A)" and " (B)") and differ
in one token. With :math:`p` the model's probabilities at that token,

.. math:: \text{log odds} = \log p(\text{matching}) - \log p(\text{other})

is how far the model leans towards the answer that shows the behaviour. `choice_curve` measures it
on held-out items for every layer and strength, each item under every setting, so that differences
between settings are within items.

**Slopes.** For each layer and item the least-squares slope of the log odds over strength is the
item's *steerability* (Tan et al., arXiv 2407.12404); a mean slope can hide that many items move the
other way, so their share is reported beside it.

**Neither.** The share of probability on neither answer shows where steering broke the format
instead of changing the choice.

**Scope.** ``answer`` steers where the answer is predicted: at the question's last token and at what
both answers begin with, as in contrastive activation addition (Rimsky et al., arXiv 2312.06681,
§4) and in Tan et al. Then the question is read once for all settings, which takes a tenth of the
time of ``all``, every token, or ``prompt``, every token before the one that tells the answers
apart.

**Caveat.** A choice between two letters is not what the model would write.

::

    task = sl.Task.from_choices("survival-instinct.jsonl")
    cache = sl.cache_residuals(model, sl.contrast_pairs(task), position="answer")
    curve = sl.choice_curve(model, task, sl.difference_of_means(cache))
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from transformer_lens.model_bridge import TransformerBridge

from steerlens.attribution.log_odds import ANSWER, engine_scope, steered_log_odds
from steerlens.errors import PairsError, SteeringError, unknown_name
from steerlens.errors.arguments import arguments, layer_numbers, whole_number
from steerlens.stats.queries import mean_interval, numbered_queries
from steerlens.stats.rates import wilson
from steerlens.tasks import Task
from steerlens.tasks.choices import ChoiceItem
from steerlens.tasks.duplicates import near_duplicates
from steerlens.tasks.task_files import load_task
from steerlens.vectors.vector import SteeringVector
from steerlens.views.result import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = [
    "SCOPES",
    "STRENGTHS",
    "ChoiceCurve",
    "choice_curve",
    "items_curve",
]

Array = np.ndarray
SCOPES = (ANSWER, "all", "prompt")
STRENGTHS = (-2, -1, 0, 1, 2)


@dataclass(frozen=True, eq=False, repr=False)
class ChoiceCurve(Result):
    """Log odds of the matching answer over layers and strengths.

    Attributes:
        table: One row per layer and strength: ``layer, strength, log_odds, log_odds_low,
            log_odds_high`` in nats, ``change`` (from strength 0, per item) with ``change_low,
            change_high``, and ``neither``, the mean probability of neither answer; with a placebo
            also ``placebo_change, placebo_change_low, placebo_change_high, placebo_neither``.
        slopes: One row per layer: ``layer, slope, slope_low, slope_high`` (nats per unit of
            strength), ``wrong_way, wrong_way_low, wrong_way_high`` (share of items with a negative
            slope); with a placebo the same with ``placebo_``, and ``above_placebo`` with its
            interval, the mean over items of the difference of the two slopes.
        log_odds: Every measurement.
        n_items: Items measured.
        metadata: Task, its hash and split; vector, placebo, operation, scope; how many items are
            lettered, and in how many the matching answer comes first; the answer that matches most
            often, and in what share of the items.
    """

    table: pd.DataFrame
    slopes: pd.DataFrame
    log_odds: Float[Array, "layer strength item"]
    n_items: int
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def best_layer(self) -> int:
        """The layer with the largest mean slope; `slopes` says whether it is above 0."""
        return int(self.slopes["layer"].tolist()[self.slopes["slope"].to_numpy().argmax()])

    def __repr__(self) -> str:
        row = self.slopes.set_index("layer").loc[self.best_layer]
        return (
            f"ChoiceCurve(steepest at layer {self.best_layer}: {row.slope:+.2f} "
            f"[{row.slope_low:+.2f}, {row.slope_high:+.2f}] nats per unit of strength, "
            f"{row.wrong_way:.0%} of {self.n_items} items move the wrong way)"
        )

    def plot(self) -> "go.Figure":
        """Slope of the log odds over layers, beside its placebo."""
        from steerlens.views.choices import choice_slopes

        return choice_slopes(self.slopes)

    def _card(self) -> Mapping[str, Any]:
        return {"table": self.slopes, "around": int(self.slopes["slope"].to_numpy().argmax())}


@arguments
def choice_curve(
    model: TransformerBridge,
    task: Task | str,
    vector: SteeringVector,
    layers: Sequence[int] | None = None,
    strengths: Sequence[float | int] = STRENGTHS,
    operation: str = "add",
    scope: str = "answer",
    split: str = "report",
    placebo: SteeringVector | None = None,
    batch_size: int | None = None,
    chat_format: str = "auto",
    show_progress: bool | None = None,
) -> ChoiceCurve:
    """Measure how steering changes the log odds of the matching answer.

    Args:
        model: A hooked model.
        task: A task of choices (`Task.from_choices`), or its file.
        vector: The vector to test, fitted on another split.
        layers: Layers to steer at, one at a time; all of the vector's by default.
        strengths: Multiples of the vector; 0 is always measured.
        operation: See `steerlens.steering.interventions`.
        scope: ``"answer"``, ``"all"`` or ``"prompt"``; see the module.
        split: Whose items are measured.
        placebo: A vector to run beside it, for example `steerlens.vectors.random_direction`.
        batch_size: Rows per forward pass; what memory allows by default.
        chat_format: See `steerlens.models.loading`.
        show_progress: Show a progress bar on standard error; by default only in a terminal.

    Raises:
        PairsError: The split has fewer than 2 items, or the tokens of one answer begin the other's.
        SteeringError: The vector does not fit the model, or a setting gives no numbers.
        SteerlensError: The task is not one of choices.
    """
    task = load_task(task)
    items = task.items(split)
    if len(items) < 2:
        raise PairsError(
            f"the {split!r} split of {task.id!r} has {len(items)} of its choices, and at least 2 "
            "are needed; give 8 or more questions that differ"
        )
    curve = items_curve(
        model, items, vector, layers, strengths, operation, scope, placebo, batch_size,
        chat_format, show_progress,
    )  # fmt: skip
    about = {"task": task.id, "task_hash": task.hash, "split": split}
    return replace(curve, metadata={**about, **curve.metadata})


def items_curve(
    model: TransformerBridge,
    items: Sequence[ChoiceItem],
    vector: SteeringVector,
    layers: Sequence[int] | None,
    strengths: Sequence[float | int],
    operation: str = "add",
    scope: str = "answer",
    placebo: SteeringVector | None = None,
    batch_size: int | None = None,
    chat_format: str = "auto",
    show_progress: bool | None = None,
) -> ChoiceCurve:
    """`choice_curve` of these items."""
    chosen = layer_numbers(vector.layers if layers is None else layers, error=SteeringError)
    layers = tuple(dict.fromkeys(chosen))
    if batch_size is not None:
        whole_number("batch_size", batch_size, least=1)
    groups = near_duplicates([item.question for item in items])
    numbered_queries(groups)  # refuses items of one question
    strengths = tuple(sorted({0.0, *map(float, strengths)}))
    if not layers or len(strengths) < 2:
        raise SteeringError(
            f"at least one layer and one strength other than 0 are needed; got {len(layers)} "
            f"layers and strengths {strengths}"
        )
    if scope not in SCOPES:
        raise unknown_name("scope of choices", scope, SCOPES)
    vectors = [vector] if placebo is None else [vector, placebo]
    for each in vectors:
        each.check_model(model)
    settings = [
        (kind, layer, strength)
        for kind, layer, strength in product(range(len(vectors)), layers, strengths)
        if strength
    ]
    touched = engine_scope(scope)
    steerings = [None, *(vectors[k].at(layer, operation, s, touched) for k, layer, s in settings)]
    log_odds, neither = steered_log_odds(
        model, items, steerings, batch_size, chat_format, show_progress, scope == ANSWER
    )
    if not (np.isfinite(log_odds).all() and np.isfinite(neither).all()):
        raise SteeringError("a setting gives logits that are not numbers; try smaller strengths")
    shape = (len(vectors), len(layers), len(strengths), len(items))
    zero = strengths.index(0.0)

    def by_setting(
        values: Float[Array, "steering item"],
    ) -> Float[Array, "kind layer strength item"]:
        full = np.broadcast_to(values[0], shape).copy()
        full[:, :, [i for i in range(len(strengths)) if i != zero]] = values[1:].reshape(
            len(vectors), len(layers), -1, len(items)
        )
        return full

    curves, neithers = by_setting(log_odds), by_setting(neither)
    commonest, n_times = Counter(item.matching.strip() for item in items).most_common(1)[0]
    return ChoiceCurve(
        table=_table(layers, strengths, curves, neithers, groups),
        slopes=_slopes(layers, strengths, curves, groups),
        log_odds=curves[0],
        n_items=len(items),
        metadata={
            "vector": vector.name,
            "placebo": None if placebo is None else placebo.name,
            "operation": operation,
            "scope": scope,
            "matching_first": sum(item.matching_is_first for item in items),
            "lettered": sum(item.is_lettered for item in items),
            "commonest_answer": commonest,
            "commonest_share": n_times / len(items),
        },
    )


def _table(
    layers: Sequence[int],
    strengths: Sequence[float],
    curves: Float[Array, "kind layer strength item"],
    neither: Float[Array, "kind layer strength item"],
    groups: Sequence[int],
) -> pd.DataFrame:
    grid = pd.DataFrame(product(layers, strengths), columns=["layer", "strength"])
    zero = list(strengths).index(0.0)
    changes = curves - curves[:, :, zero : zero + 1]
    _put(grid, "log_odds", curves[0], groups)
    _put(grid, "change", changes[0], groups)
    grid["neither"] = neither[0].mean(-1).ravel()
    if len(curves) > 1:
        _put(grid, "placebo_change", changes[1], groups)
        grid["placebo_neither"] = neither[1].mean(-1).ravel()
    return grid


def _slopes(
    layers: Sequence[int],
    strengths: Sequence[float],
    curves: Float[Array, "kind layer strength item"],
    groups: Sequence[int],
) -> pd.DataFrame:
    centred = np.array(strengths) - np.mean(strengths)
    slopes = np.einsum("klsi,s->kli", curves, centred) / (centred**2).sum()
    table = pd.DataFrame({"layer": list(layers)})
    for kind, prefix in zip(slopes, ("", "placebo_"), strict=False):
        _put(table, f"{prefix}slope", kind, groups)
        wrong = [wilson(int((row < 0).sum()), len(row)) for row in kind]
        table[f"{prefix}wrong_way"] = [interval.value for interval in wrong]
        table[f"{prefix}wrong_way_low"] = [interval.low for interval in wrong]
        table[f"{prefix}wrong_way_high"] = [interval.high for interval in wrong]
    if len(slopes) > 1:
        _put(table, "above_placebo", slopes[0] - slopes[1], groups)
    return table


def _put(
    table: pd.DataFrame, name: str, values: Float[Array, "*setting item"], groups: Sequence[int]
) -> None:
    """Columns of the mean over items and the ends of its 95 % interval."""
    flat = values.reshape(-1, values.shape[-1]).T
    table[name], table[f"{name}_low"], table[f"{name}_high"] = mean_interval(flat, groups)
