"""Calibration of strength by gain: as strong as responses need to follow an instruction.

Prompts of a split that the result is not reported on (``select`` by default) are answered at
several strengths. A response **succeeds** when it passes the task's loose check and is not
degenerate (`steerlens.tasks.fluency`). The strength chosen is

* with a target: the smallest at which the share of successes reaches it;
* without one: the smallest of those with the most successes.

Strength 0, no steering, is always among them and wins ties. The rate of the winner is too high,
because it was chosen on the prompts that are counted; `RateCalibration.corrected` corrects it
(`steerlens.stats.rates.best_of_many`).

`calibrate` asks what a strength costs and needs no check; this asks what it gains.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from transformer_lens.model_bridge import TransformerBridge

from steerlens.behaviour.calibration.saved import SavedCalibration
from steerlens.engine.generation import generate
from steerlens.errors import SteeringError
from steerlens.errors.arguments import arguments
from steerlens.files import library_versions
from steerlens.models.loading import model_info
from steerlens.stats.rates import Interval, best_of_many, wilson
from steerlens.steering.interventions import Steering
from steerlens.tasks import Task
from steerlens.tasks.drawing import contrast_pairs
from steerlens.tasks.fluency import fluency, is_degenerate
from steerlens.tasks.task_files import load_task
from steerlens.views.result import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["RateCalibration", "calibrate_rate"]

Array = np.ndarray
_N_PROMPTS = 24
_STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)


@dataclass(frozen=True, eq=False, repr=False)
class RateCalibration(SavedCalibration, Result):
    """The strength at which responses follow an instruction.

    Attributes:
        strength: Multiplies the strengths of the steering that was given; 0 if no strength gains
            anything.
        rate: Share of responses that succeed at this strength, with Wilson's interval.
        corrected: The rate of the strength with the most successes, corrected for having been
            chosen.
        target_rate: What was asked for; ``None`` for the most successes.
        reached: Whether the target was met, or anything gained.
        reason: Why not; empty when it was reached.
        steering: The steering at this strength.
        table: One row per strength: ``strength, n, passed, rate, rate_low, rate_high,
            degenerate``, where ``rate`` counts successes and ``passed`` also those that are
            degenerate.
        metadata: Task, prompts, model, settings, versions.
    """

    strength: float
    rate: Interval
    corrected: Interval
    target_rate: float | None
    reached: bool
    reason: str
    steering: Steering
    table: pd.DataFrame
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def plot(self) -> "go.Figure":
        """Successes over strength, the chosen one marked."""
        from steerlens.views import strength_sweep

        return strength_sweep(self.table, chosen=self.strength)

    def __repr__(self) -> str:
        rate = f"successes {self.rate.value:.0%} [{self.rate.low:.0%}, {self.rate.high:.0%}]"
        if not self.reached:
            return f"RateCalibration(not reached: {self.reason}; {rate})"
        return f"RateCalibration(strength {self.strength:.3g}, {rate})"

    def _numbers(self) -> dict[str, Any]:
        return {
            "strength": self.strength,
            "rate": self.rate.value,
            "rate_low": self.rate.low,
            "rate_high": self.rate.high,
            "corrected_rate": self.corrected.value,
            "target_rate": self.target_rate,
            "reached": self.reached,
        }


@arguments
def calibrate_rate(
    model: TransformerBridge,
    steering: Steering,
    task: str | Task,
    target_rate: float | None = None,
    strengths: Sequence[float] = _STRENGTHS,
    n_prompts: int | None = None,
    split: str = "select",
    max_new_tokens: int = 128,
    seed: int = 0,
    chat_format: str = "auto",
) -> RateCalibration:
    """The strength at which responses to uninstructed prompts follow an instruction.

    Args:
        model: A hooked model.
        steering: What to apply; its strengths are multiplied by one number.
        task: Whose check decides: a task, its id in the catalogue, or its file.
        target_rate: Share of successes to reach; the most by default.
        strengths: What to try, besides 0.
        n_prompts: Prompts without the instruction; by default 24, or all of a split with fewer.
        split: Where they are from; report on another one.
        max_new_tokens: Longest response, in tokens.
        seed: Draws prompts and resamples.
        chat_format: See `steerlens.models.loading`.

    Raises:
        SteeringError: A number out of range, or a steering that does not fit the model.
        UnknownNameError: No such task or split.
        PairsError: More prompts than the split holds.
    """
    tried = sorted({0.0, *map(float, strengths)})
    if not np.isfinite(tried).all() or len(tried) < 2 or tried[0] < 0:
        raise SteeringError(
            f"strengths must be finite and positive, at least one; got {list(strengths)}"
        )
    if target_rate is not None and not 0 < target_rate <= 1:
        raise SteeringError(f"target_rate must be above 0 and at most 1; got {target_rate}")
    task = load_task(task)
    if not task.has_check:
        raise SteeringError(f"task {task.id!r} has no check, so passes cannot be counted")
    steering.check_model(model)
    n = max(2, min(_N_PROMPTS, task.n_pairs(split))) if n_prompts is None else n_prompts
    pairs = contrast_pairs(task, n=n, seed=seed, split=split)
    texts = generate(
        model,
        [pair.uninstructed for _ in tried for pair in pairs],
        [steering.scaled(s) if s else None for s in tried for _ in pairs],
        max_new_tokens=max_new_tokens,
        chat_format=chat_format,
    ).texts
    shape = (len(tried), len(pairs))
    kwargs = [pair.kwargs for _ in tried for pair in pairs]
    checked = [task.check(t, loose=True, **k) for t, k in zip(texts, kwargs, strict=True)]
    passed = np.array(checked, dtype=bool).reshape(shape)
    degenerate = np.array([is_degenerate(fluency(t)) for t in texts], dtype=bool).reshape(shape)
    success = passed & ~degenerate
    chosen, reason = _chosen(success.mean(axis=1), tried, target_rate)
    rates = [wilson(int(row.sum()), len(pairs)) for row in success]
    info = model_info(model)
    return RateCalibration(
        strength=tried[chosen],
        rate=rates[chosen],
        corrected=best_of_many(success, seed=seed).corrected,
        target_rate=target_rate,
        reached=not reason,
        reason=reason,
        steering=steering.scaled(tried[chosen]),
        table=pd.DataFrame(
            {
                "strength": tried,
                "n": len(pairs),
                "passed": passed.mean(axis=1),
                "rate": [rate.value for rate in rates],
                "rate_low": [rate.low for rate in rates],
                "rate_high": [rate.high for rate in rates],
                "degenerate": degenerate.mean(axis=1),
            }
        ),
        metadata={
            "instruction": task.id,
            "split": split,
            "n_prompts": len(pairs),
            "data_hash": pairs.data_hash,
            "model": info.reference,
            "weights_hash": info.weights_hash,
            "dtype": info.dtype,
            "max_new_tokens": max_new_tokens,
            "chat_format": chat_format,
            "seed": seed,
            "versions": library_versions(),
        },
    )


def _chosen(
    rates: Float[Array, "strength"], strengths: Sequence[float], target: float | None
) -> tuple[int, str]:
    """The number of the strength, and why it is not what was asked for."""
    best = int(rates.argmax())
    if target is not None:
        enough = np.flatnonzero(rates >= target)
        if len(enough):
            return int(enough[0]), ""
        return best, (
            f"no strength up to {strengths[-1]:g} reaches {target:.0%}; {strengths[best]:g} comes "
            f"nearest with {rates[best]:.0%}"
        )
    if best == 0:
        return 0, f"no strength up to {strengths[-1]:g} gains anything over none"
    return best, ""
