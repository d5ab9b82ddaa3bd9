"""Trained directions for the search: gated, at several layers, remembered in the run.

Estimator ``trained_comply`` is `steerlens.training`'s objective ``comply``, and likewise for the
others. Directions of all layers are trained side by side, and a resumed search reads them from its
run, to the bit.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from steerlens.activations.cache import cache_residuals
from steerlens.behaviour.answers import Answerer, Question
from steerlens.models.conversations import Prompt
from steerlens.tasks import Task
from steerlens.tasks.pairs import ContrastSet
from steerlens.training import Slot, TrainingSettings
from steerlens.training.directions import one_vector, train_on
from steerlens.training.examples import DECODING, answer_tokens, training_examples
from steerlens.training.objectives import OBJECTIVES
from steerlens.vectors import SteeringVector, difference_of_means

__all__ = ["TRAINED", "gated_placebo", "trained_layers", "trained_vector"]

PREFIX = "trained_"
TRAINED = tuple(PREFIX + objective for objective in OBJECTIVES)
# Trained directions work lower than means do: what they write has blocks left to act through.
_DEPTHS = (0.4, 0.67)
_TENSORS = ("directions", "gaps", "targets", "baselines", "reads", "biases")


def trained_layers(n_layers: int, by_words: bool = False) -> tuple[int, ...]:
    """Where directions are trained; for given words only the upper layer, the cheaper one."""
    depths = _DEPTHS[-1:] if by_words else _DEPTHS
    return tuple(sorted({min(round(depth * n_layers), n_layers - 1) for depth in depths}))


def trained_vector(
    answerer: Answerer,
    task: Task,
    pairs: ContrastSet,
    estimator: str,
    settings: TrainingSettings,
    loop_weight: float = 0.0,
    by_words: bool = False,
) -> SteeringVector:
    """A gated direction at each of `trained_layers`.

    Args:
        answerer: Gives the model's answers, and remembers.
        task: The task.
        pairs: Contrast pairs of the ``fit`` split.
        estimator: One of `TRAINED`.
        settings: How it is trained.
        loop_weight: Weight of the term against loops.
        by_words: Whether the pairs are about given words.

    Raises:
        SteeringError: As `steerlens.train_direction`.
    """
    model = answerer.model
    layers = trained_layers(model.cfg.n_layers, by_words)
    objective = estimator.removeprefix(PREFIX)
    slots = [Slot((layer,), objective, gate=True, loop_weight=loop_weight) for layer in layers]

    def answers(prompts: Sequence[Prompt]) -> list[tuple[str, bool]]:
        questions = [Question(prompt) for prompt in prompts]
        longest = answer_tokens(settings.max_tokens)
        given = answerer.ask(questions, longest, "answers to train on", DECODING)
        return [(answer.text, answer.finish_reason == "stop") for answer in given]

    examples = training_examples(model, task, pairs, settings.max_tokens, answers)

    about = {
        "n_layers": model.cfg.n_layers,
        "estimator": estimator,
        "data_hash": pairs.data_hash,
        "training": asdict(settings),
    }

    def train() -> list[dict[str, Any]]:
        cache = cache_residuals(model, pairs, layers=layers, show_progress=False)
        start = difference_of_means(cache)
        trained = train_on(model, examples, slots, start, about, settings, show_progress=False)
        vector = one_vector(trained.vectors)
        tensors = {name: getattr(vector, name).tolist() for name in _TENSORS}
        return [{"metadata": dict(vector.metadata), **tensors}]

    content = {**about, "task": task.hash, "layers": layers, "loop_weight": loop_weight}
    [record] = answerer.remembered(content, train)
    tensors: dict[str, Any] = {name: torch.tensor(record[name]) for name in _TENSORS}
    return SteeringVector(layers=layers, metadata=record["metadata"], gate="relu", **tensors)


def gated_placebo(vector: SteeringVector, seed: int) -> SteeringVector:
    """Random directions that push the same tokens as far: gates and norms are the vector's."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(vector.directions.shape, generator=generator, dtype=torch.float32)
    metadata = {**vector.metadata, "instruction": f"placebo of {vector.name}", "placebo_seed": seed}
    return replace(vector, directions=noise / noise.norm(dim=-1, keepdim=True), metadata=metadata)
