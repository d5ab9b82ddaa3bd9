"""Residuals of two models on the same texts, to fit a map between them.

Tokenizers cut a text differently, so tokens of two models do not pair; texts do. Each text gives
one residual per model and layer, read at a position that both models have:

=================  ==============================================================================
``"last_prompt"``  the last token of the prompt as each model renders it
``"prompt_mean"``  mean over the prompt's tokens but the first, whose residual is an outlier in
                   many models and says nothing of the text
=================  ==============================================================================

The texts must not carry the instruction whose vector is to be mapped: such a map would know the
target's own difference of means. `map_texts` draws prompts of the catalogue's other instructions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.capture import residuals_at
from steerlens.errors import ActivationError, SteerlensError, unknown_name
from steerlens.errors.arguments import arguments
from steerlens.models.conversations import shown
from steerlens.models.loading import model_info, tokenize_prompts
from steerlens.tasks import catalogue
from steerlens.tasks.drawing import contrast_pairs

__all__ = ["PairedResiduals", "map_texts", "paired_residuals"]

_POSITIONS = ("last_prompt", "prompt_mean")
# Fewer texts than this leave nothing to hold out.
MIN_TEXTS = 8


@dataclass(frozen=True, eq=False, repr=False)
class PairedResiduals:
    """Residuals of the same texts in two models.

    Attributes:
        source: In the model a vector was made for.
        target: In the model it goes to; row *i* is the same text.
        groups: One number per text; texts of one base query share it and are held out together.
        metadata: Both models, position.
    """

    source: Float[Tensor, "text source_layer d_source"]
    target: Float[Tensor, "text target_layer d_target"]
    groups: tuple[int, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.groups)
        if not self.source.shape[0] == self.target.shape[0] == n or len(set(self.groups)) < 5:
            raise ActivationError(
                "a map needs the same texts in both models, from at least 5 queries; got "
                f"{self.source.shape[0]} and {self.target.shape[0]} texts from "
                f"{len(set(self.groups))} queries"
            )
        for name, values in (("source", self.source), ("target", self.target)):
            if not bool(torch.isfinite(values).all()):
                raise ActivationError(f"the {name} model's residuals hold NaN or infinity")

    def __repr__(self) -> str:
        shapes = [f"{s.shape[1]} layers of {s.shape[2]}" for s in (self.source, self.target)]
        return f"PairedResiduals({len(self.groups)} texts, {shapes[0]} → {shapes[1]})"


@arguments
def map_texts(
    n: int = 256, without: str | None = None, seed: int = 0
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Prompts of the catalogue's instructions, half of them instructed, and their base queries.

    Args:
        n: Number of texts.
        without: The instruction whose vector is to be mapped, to leave out with its group:
            "length_constraints:number_sentences:at_most" leaves out all sentence counts.
        seed: Decides which texts are drawn.

    Returns:
        The texts, and for each the number of its base query.

    Raises:
        SteerlensError: Fewer than 8 texts, or more than the catalogue gives.
    """
    group = None if without is None else ":".join(without.split(":")[:2])
    names = [name for name in catalogue if group is None or not name.startswith(group)]
    query_of: dict[str, str] = {}
    for name in names:
        for pair in contrast_pairs(name, n=max(2, 2 * n // len(names)), seed=seed):
            sides = shown(pair.instructed), shown(pair.uninstructed)
            query_of |= dict.fromkeys(sides, pair.base_query)
    uninstructed = [text for text, query in query_of.items() if text == query]
    instructed = [text for text, query in query_of.items() if text != query]
    rng = Random(f"texts/{seed}")
    rng.shuffle(uninstructed)
    rng.shuffle(instructed)
    texts = uninstructed[: n // 2]
    texts += instructed[: n - len(texts)]
    if n < MIN_TEXTS or len(texts) < n:
        raise SteerlensError(
            f"a map is fitted on {MIN_TEXTS} to {len(texts)} texts of the catalogue; {n} were "
            "asked for"
        )
    numbers: dict[str, int] = {}
    groups = [numbers.setdefault(query_of[text], len(numbers)) for text in texts]
    return tuple(texts), tuple(groups)


def paired_residuals(
    source: TransformerBridge,
    target: TransformerBridge,
    texts: Sequence[str],
    groups: Sequence[int] | None = None,
    position: str = "last_prompt",
    show_progress: bool | None = None,
) -> PairedResiduals:
    """Run the same texts through two models, each in its own chat format.

    Args:
        source: The model a vector was made for.
        target: The model it goes to.
        texts: User messages.
        groups: One number per text; equal ones are held out together. By default each its own.
        position: ``"last_prompt"`` or ``"prompt_mean"``.
        show_progress: Show a progress bar on standard error; by default only in a terminal.

    Raises:
        UnknownNameError: Another position.
        ActivationError: Fewer than 5 groups, or numbers that are not finite.
        ModelError: A text that one of the models cannot read.
    """
    if position not in _POSITIONS:
        raise unknown_name("position", position, _POSITIONS)
    groups = tuple(range(len(texts))) if groups is None else tuple(groups)
    residuals = []
    metadata: dict[str, Any] = {"position": position, "n_texts": len(texts)}
    for side, model in (("source", source), ("target", target)):
        rows = tokenize_prompts(model, texts)
        first = 1 if position == "prompt_mean" else None
        spans = [(len(r) - 1 if first is None else min(first, len(r) - 1), len(r)) for r in rows]
        layers = range(model.cfg.n_layers)
        residuals.append(residuals_at(model, rows, spans, layers, show_progress=show_progress))
        info = model_info(model, exact=True)
        metadata |= {
            side: info.reference,
            f"{side}_weights_hash": info.weights_hash,
            f"{side}_configuration_hash": info.configuration_hash,
        }
    return PairedResiduals(residuals[0], residuals[1], groups, metadata)
