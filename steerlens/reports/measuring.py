"""The evidence about one task that a report shows: where it can be read, and where written."""

from dataclasses import dataclass
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from steerlens.activations.cache import ResidualCache, cache_residuals
from steerlens.attribution import (
    Evidence,
    LayerRanking,
    RecoveryCurve,
    applicable_evidence,
    first_token_recovery,
    gather_evidence,
    rank_layers,
)
from steerlens.attribution.choice_evidence import ChoiceEvidence, measure_choices
from steerlens.attribution.log_odds import ANSWER
from steerlens.reports.samples import SteeredTask
from steerlens.reports.settings import ReportSettings
from steerlens.tasks import Task
from steerlens.tasks.drawing import contrast_pairs
from steerlens.tasks.pairs import ContrastSet
from steerlens.vectors import SteeringVector, difference_of_means, random_direction

__all__ = ["MeasuredTask", "check_sizes", "measure_task"]

_N_RECOVERY = 16
_NOT_STEERABLE = "its slope on the report items is not above 0 and above the placebo's"
_RECOVERY_RULE = "highest first-token causal recovery on held-out pairs"


@dataclass(frozen=True, eq=False)
class MeasuredTask:
    """The evidence about one task; choices have a curve of log odds instead of recovery."""

    task: Task
    cache: ResidualCache
    ranking: LayerRanking
    recovery: RecoveryCurve | None
    choices: ChoiceEvidence | None
    vector: SteeringVector
    placebo: SteeringVector
    evidence: Evidence | None

    def steered(self, settings: ReportSettings) -> SteeredTask:
        """Where its samples are steered without a plan."""
        vectors = self.vector, self.placebo
        if self.choices is not None:
            # Choices are steered as they are measured, by adding where the answer is predicted.
            layer, rule = self.choices.best_layer, self.choices.best_layer_rule
            caveat = None if self.choices.is_steerable else _NOT_STEERABLE
            return SteeredTask(self.task, layer, caveat, *vectors, "add", rule, ANSWER)
        assert self.recovery is not None  # one of the two is there
        layer, caveat = self.recovery.best_layer, self.recovery.caveat
        options = (settings.operation, _RECOVERY_RULE, settings.scope)
        return SteeredTask(self.task, layer, caveat, *vectors, *options)


def check_sizes(task: Task, settings: ReportSettings) -> None:
    """Refuse more pairs than a task has; drawn again when they are used.

    Raises:
        PairsError: More pairs than a split holds, or fewer than 2.
    """
    _fit_pairs(task, settings)
    _held_out_pairs(task, settings)


def measure_task(model: TransformerBridge, task: Task, settings: ReportSettings) -> MeasuredTask:
    """Vector, separability and causal evidence of one task."""
    pairs, held_out = _fit_pairs(task, settings), _held_out_pairs(task, settings)
    options: dict[str, Any] = {"batch_size": settings.batch_size, "show_progress": False}
    is_choices = task.group == "choices"
    position = "answer" if is_choices else "last_prompt"
    cache = cache_residuals(model, pairs, position=position, **options)
    vector, placebo = difference_of_means(cache), random_direction(cache, seed=settings.seed)
    # Not the last layer: what is set there moves the first token's logits almost directly, so its
    # recovery is high, but no later layer can carry the task on.
    layers = range(0, max(model.cfg.n_layers - 1, 1), settings.recovery_every)
    recovery = choices = evidence = None
    if is_choices:
        choices = measure_choices(model, task, vector, placebo, layers, **options)
    else:
        recovery = first_token_recovery(
            model,
            held_out,
            vector,
            layers=layers,
            placebo=placebo,
            operation=settings.operation,
            strength=settings.strength,
            scope="all" if settings.scope == "all" else "prompt",
            **options,
        )
    if settings.evidence and not is_choices:
        evidence = gather_evidence(
            *(model, cache, held_out, applicable_evidence(settings.evidence, pairs)),
            seed=settings.seed,
            show_progress=False,
            fitted_on=pairs,
            task=task,
        )
    ranking = rank_layers(cache, seed=settings.seed)
    return MeasuredTask(task, cache, ranking, recovery, choices, vector, placebo, evidence)


def _fit_pairs(task: Task, settings: ReportSettings) -> ContrastSet:
    return contrast_pairs(task, n=settings.n_pairs, seed=settings.seed, split="fit")


def _held_out_pairs(task: Task, settings: ReportSettings) -> ContrastSet:
    n = settings.n_recovery or max(2, min(_N_RECOVERY, task.n_pairs("select")))
    return contrast_pairs(task, n=n, seed=settings.seed, split="select")
