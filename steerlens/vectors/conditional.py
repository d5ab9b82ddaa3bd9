r"""Conditional steering: only the prompts that call for it.

A `Condition` reads the residual :math:`x` of the last prompt token at one layer and holds when its
projection on a direction *c* exceeds a threshold,

.. math:: x \cdot c > \theta

`fit_condition` learns it from prompts to steer (positive) and prompts to leave alone (negative), in
three parts that share no prompt: on half of them the direction, by any estimator; on a quarter the
layer (highest AUROC) and the threshold (the lowest one whose false-positive rate is at most
`max_false_positive_rate`, the rule of Neyman and Pearson); on the last quarter the reported rates,
with Wilson's intervals.

`Condition.choose` returns one steering or ``None`` per prompt, for `steerlens.generate`;
`Condition.applied` decides inside the model's own forward pass, once it has read the prompt. On the
running text ``vector.at(…, only_below=True)`` acts only while a token's projection is below the
target; that needs no condition, and both can be combined.

Source: Lee et al. 2024, *Programming Refusal with Conditional Activation Steering*
(arXiv 2409.05907), with a cosine for the projection and a grid search for the threshold.

Caveat: a small false-positive rate rests on few negative prompts: 1 in 20 cannot be told from 1 in
10 with the 15 prompts that a quarter of 60 is. The interval shows it.

>>> rule = threshold_for([0.1, 0.2, 0.3, 0.9], [0.8, 1.1], max_false_positive_rate=0.25)
>>> round(rule, 3)                       # between 0.3 and 0.8: one of four negatives above it
0.55
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from sklearn.metrics import roc_auc_score
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from steerlens.activations.cache import ResidualCache, check_layers
from steerlens.engine.capture import residuals_at
from steerlens.errors import FileFormatError, SteeringError
from steerlens.errors.arguments import arguments
from steerlens.files import library_versions, read_tensors, write_tensors
from steerlens.models.exclusion import exclusively
from steerlens.models.loading import model_info, tokenize_prompts
from steerlens.stats.rates import Interval, wilson
from steerlens.steering.interventions import Steering
from steerlens.steering.roles import TokenRoles, observed_roles
from steerlens.steering.rows import RowSteering
from steerlens.vectors import Estimator, difference_of_means
from steerlens.views.result import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Condition", "fit_condition", "threshold_for"]

_FILE_KIND = "condition"
_NUMBERS: Mapping[str, type] = {"layer": int, "threshold": float, "auroc": float}
_RATES = ("true_positive_rate", "false_positive_rate")
# Fewer prompts of a kind leave a quarter of two.
_MIN_PROMPTS = 8


@dataclass(frozen=True, eq=False, repr=False)
class Condition(Result):
    """When to steer: a projection of the last prompt token above a threshold.

    Attributes:
        direction: Unit vector *c*.
        layer: The layer it is read at.
        threshold: The condition holds above it (residual-stream units).
        true_positive_rate: On positive prompts that nothing was chosen on; Wilson's interval.
        false_positive_rate: On negative prompts of that kind.
        auroc: Of the projection, on the same prompts.
        rule: How layer and threshold were chosen, in words.
        metadata: Model, weights hash, numbers of prompts, settings, versions.
    """

    direction: Float[Tensor, "d_model"]
    layer: int
    threshold: float
    true_positive_rate: Interval
    false_positive_rate: Interval
    auroc: float
    rule: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def scores(self, model: TransformerBridge, prompts: Sequence[str]) -> Float[Tensor, "prompt"]:
        """Projection of each prompt's last token; `SteeringError` if the model does not fit."""
        self.check_model(model)
        chat_format = str(self.metadata.get("chat_format", "auto"))
        resid = _last_residuals(model, prompts, [self.layer], chat_format)
        return resid[:, 0] @ self.direction.float().cpu()

    def choose(
        self, model: TransformerBridge, prompts: Sequence[str], steering: Steering
    ) -> list[Steering | None]:
        """For each prompt the steering, or ``None`` where the condition does not hold."""
        holds = (self.scores(model, prompts) > self.threshold).tolist()
        return [steering if holds_here else None for holds_here in holds]

    @contextmanager
    def applied(
        self,
        model: TransformerBridge,
        steering: Steering,
        prompt_lengths: Sequence[int] | None = None,
    ) -> Iterator["Condition"]:
        """As `Steering.applied`, on the rows for which the condition holds.

        It is decided in the pass that reads the prompt, before anything at its layer is changed.

        Raises:
            SteeringError: The condition or the steering does not fit the model, or the steering
                acts below the condition's layer or is adaptive.
        """
        self.check_model(model)
        steering.check_model(model)
        if steering.layers and steering.layers[0] < self.layer:
            raise SteeringError(
                f"the condition is known at layer {self.layer}, after layer {steering.layers[0]} "
                "would be steered; decide beforehand with Condition.choose"
            )
        if steering.adaptive:
            raise SteeringError(
                "an adaptive strength is for decoding; decide beforehand with Condition.choose"
            )
        held: list[Bool[Tensor, row]] = []
        direction = self.direction.float().to(model.cfg.device)
        rows = RowSteering([steering], device=model.cfg.device)
        with exclusively(model), observed_roles(model, prompt_lengths) as roles:

            def decide(resid: Tensor, hook: Any) -> None:
                prompt = roles().prompt
                if bool(prompt.any()):
                    positions = torch.arange(prompt.shape[1], device=prompt.device)
                    last = torch.where(prompt, positions, 0).max(-1).values
                    last_resid = resid[torch.arange(len(resid), device=resid.device), last]
                    projection = last_resid.float() @ direction.to(resid.device)
                    held[:] = [(projection > self.threshold) & prompt.any(-1)]

            def narrowed() -> TokenRoles:
                allowed = held[0][:, None].to(roles().prompt.device)
                return roles().where(allowed)

            hooks = [(f"blocks.{self.layer}.hook_out", decide), *rows.hooks(narrowed)]
            with model.hooks(fwd_hooks=hooks):
                yield self

    def check_model(self, model: TransformerBridge) -> None:
        """`SteeringError` when the condition was made for a model of another shape."""
        width, depth = model.cfg.d_model, model.cfg.n_layers
        made_for = self.metadata.get("n_layers", depth)
        if self.direction.shape != (width,) or made_for != depth or self.layer >= depth:
            raise SteeringError(
                f"this condition was made for {self.metadata.get('model', 'another model')} "
                f"(d_model {self.direction.shape[0]}, {max(made_for, self.layer + 1)} layers); "
                f"the model has d_model {width} and {depth} layers"
            )

    def save(self, path: str | Path) -> Path:
        """Write the condition as one safetensors file, atomically."""
        record = {name: getattr(self, name) for name in _NUMBERS}
        record |= {name: list(vars(getattr(self, name)).values()) for name in _RATES}
        record |= {"rule": self.rule, "metadata": dict(self.metadata)}
        return write_tensors(path, _FILE_KIND, {"direction": self.direction}, record)

    @classmethod
    def load(cls, path: str | Path) -> "Condition":
        """Read a condition that `save` wrote; `FileFormatError` when the file is anything else."""
        tensors, record = read_tensors(path, _FILE_KIND)
        try:
            direction = tensors["direction"].float()
            sound = direction.ndim == 1 and bool(torch.isfinite(direction).all())
            if not sound or not isinstance(record["metadata"], dict):
                raise ValueError("a direction of finite numbers and metadata are expected")
            kept: dict[str, Any] = {name: kind(record[name]) for name, kind in _NUMBERS.items()}
            kept |= {name: Interval(*map(float, record[name])) for name in _RATES}
            return cls(direction, rule=str(record["rule"]), metadata=record["metadata"], **kept)
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"{path} lacks a part of a condition: {error}") from error

    def plot(self) -> "go.Figure":
        """Projections of the unseen prompts of both kinds, and the threshold between them."""
        from steerlens.views import projection_histogram

        kinds = self.metadata.get("unseen_scores")
        if kinds is None:
            raise SteeringError("this condition was saved without its scores; fit it again")
        return projection_histogram(
            kinds["positive"],
            kinds["negative"],
            names=("to be steered", "to be left alone"),
            layer=self.layer,
            target=self.threshold,
        )

    @property
    def table(self) -> pd.DataFrame:
        """Rates on unseen prompts: ``unseen prompts, rate, low, high``."""
        rates = [self.true_positive_rate, self.false_positive_rate]
        kinds = {"unseen prompts": ["true positives", "false positives"]}
        ends = {name: [getattr(rate, name) for rate in rates] for name in ("value", "low", "high")}
        return pd.DataFrame({**kinds, **ends}).rename(columns={"value": "rate"})

    def _card(self) -> Mapping[str, Any]:
        return {"facts": {"AUROC": self.auroc, "rule": self.rule}}

    def __repr__(self) -> str:
        true, false = self.true_positive_rate, self.false_positive_rate
        return (
            f"Condition(layer {self.layer}, above {self.threshold:.3g}; on unseen prompts true "
            f"positives {true.value:.0%} [{true.low:.0%}, {true.high:.0%}], false positives "
            f"{false.value:.0%} [{false.low:.0%}, {false.high:.0%}])"
        )


@arguments
def fit_condition(
    model: TransformerBridge,
    positive: Sequence[str],
    negative: Sequence[str],
    layers: Sequence[int] | None = None,
    max_false_positive_rate: float = 0.05,
    estimator: Estimator = difference_of_means,
    seed: int = 0,
    chat_format: str = "auto",
) -> Condition:
    """Learn when to steer from prompts to steer and prompts to leave alone.

    Args:
        model: A hooked model.
        positive: Prompts to steer; at least 8.
        negative: Prompts to leave alone; at least 8.
        layers: Layers to choose from; all by default. For `Condition.applied` none may lie above
            the layers to be steered.
        max_false_positive_rate: Largest share of negative prompts above the threshold, on the
            prompts it is chosen on.
        estimator: Finds the direction; positive prompts take the instructed side.
        seed: Of the split into three parts.
        chat_format: See `steerlens.models.loading`.

    Raises:
        SteeringError: Too few prompts, a prompt of both kinds, a rate outside [0, 1), or a layer
            where both kinds are the same.
    """
    if min(len(positive), len(negative)) < _MIN_PROMPTS or set(positive) & set(negative):
        raise SteeringError(
            f"a condition needs at least {_MIN_PROMPTS} prompts of each kind, and none of both; "
            f"got {len(positive)} and {len(negative)} with {len(set(positive) & set(negative))} in "
            "common"
        )
    if not 0 <= max_false_positive_rate < 1:
        raise SteeringError(
            f"max_false_positive_rate must be in [0, 1); got {max_false_positive_rate}"
        )
    candidates = check_layers(model, layers)
    parts = []
    for prompts in (positive, negative):
        unique = list(dict.fromkeys(prompts))
        random.Random(seed).shuffle(unique)
        resid = _last_residuals(model, unique, candidates, chat_format)
        half, three_quarters = len(resid) // 2, len(resid) - len(resid) // 4
        parts.append([resid[:half], resid[half:three_quarters], resid[three_quarters:]])
    # A cache holds as many of each side; there is no pairing here to lose.
    n_fit = min(len(part[0]) for part in parts)
    instructed, uninstructed = (part[0][:n_fit] for part in parts)
    vector = estimator(ResidualCache.from_tensors(instructed, uninstructed, layers=candidates))
    (yes, yes_unseen), (no, no_unseen) = (
        [torch.einsum("pld,ld->lp", part, vector.directions).numpy() for part in kind[1:]]
        for kind in parts
    )
    best = int(np.argmax([_auroc(a, b) for a, b in zip(yes, no, strict=True)]))
    threshold = threshold_for(no[best], yes[best], max_false_positive_rate)
    info = model_info(model)
    return Condition(
        direction=vector.directions[best],
        layer=candidates[best],
        threshold=threshold,
        true_positive_rate=_rate(yes_unseen[best], threshold),
        false_positive_rate=_rate(no_unseen[best], threshold),
        auroc=_auroc(yes_unseen[best], no_unseen[best]),
        rule=(
            "layer of the highest AUROC; lowest threshold whose false-positive rate is at most "
            f"{max_false_positive_rate:g}"
        ),
        metadata={
            "model": info.reference,
            "weights_hash": info.weights_hash,
            "n_layers": info.n_layers,
            "chat_format": chat_format,
            "estimator": vector.metadata["estimator"],
            "layers_tried": list(candidates),
            "n_positive": [len(part) for part in parts[0]],
            "n_negative": [len(part) for part in parts[1]],
            "max_false_positive_rate": max_false_positive_rate,
            "unseen_scores": {
                "positive": yes_unseen[best].tolist(),
                "negative": no_unseen[best].tolist(),
            },
            "seed": seed,
            "versions": library_versions(),
        },
    )


def threshold_for(
    negative: Sequence[float] | Float[np.ndarray, "negative"],
    positive: Sequence[float] | Float[np.ndarray, "positive"],
    max_false_positive_rate: float,
) -> float:
    """The lowest threshold above which at most this share of the negative scores lie.

    It lies midway between the highest score that must be left out and the next higher score of
    either kind.
    """
    ordered = np.sort(np.asarray(negative, dtype=float))
    # Rounded first: 0.05 · 20 is one prompt, not 0.9999….
    allowed = int(np.floor(round(max_false_positive_rate * len(ordered), 9)))
    highest_left_out = ordered[len(ordered) - 1 - allowed]
    every = np.concatenate([ordered, np.asarray(positive, dtype=float)])
    above = every[every > highest_left_out]
    if not len(above):
        return float(highest_left_out)
    return float((highest_left_out + above.min()) / 2)


def _last_residuals(
    model: TransformerBridge, prompts: Sequence[str], layers: Sequence[int], chat_format: str
) -> Float[Tensor, "prompt layer d_model"]:
    rows = tokenize_prompts(model, list(prompts), chat_format=chat_format)
    spans = [(len(row) - 1, len(row)) for row in rows]
    return residuals_at(model, rows, spans, layers, show_progress=False)


def _auroc(
    positive: Float[np.ndarray, "positive"], negative: Float[np.ndarray, "negative"]
) -> float:
    labels = np.repeat([1, 0], [len(positive), len(negative)])
    return float(roc_auc_score(labels, np.concatenate([positive, negative])))


def _rate(scores: Float[np.ndarray, "prompt"], threshold: float) -> Interval:
    return wilson(int((scores > threshold).sum()), len(scores))
