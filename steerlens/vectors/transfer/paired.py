"""Residuals of two models on the same texts: what a map between them is fitted on.

Tokenizers cut a text differently, so tokens of two models do not pair; texts do. Each text gives
one residual a model and layer, read at a place that both models have:

=================  ==============================================================================
``"last_prompt"``  the last token of the prompt as each model renders it
``"prompt_mean"``  mean over the prompt's tokens but the first, whose residual is an outlier in
                   many models and says nothing of the text
=================  ==============================================================================

The texts must not carry the instruction whose vector is to be mapped: a map that has seen it knows
the target model's own difference of means, and its transfer would be a copy of that.
`map_texts` draws prompts of the catalogue's other instructions.
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
from steerlens.models.loading import model_info, tokenize_prompts
from steerlens.tasks import catalogue
from steerlens.tasks.pairs import contrast_pairs

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
        groups: Number of what each text was made from; held out together. Texts that share a base
            query share a number.
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
        shapes = [f"{one.shape[1]} layers of {one.shape[2]}" for one in (self.source, self.target)]
        return f"PairedResiduals({len(self.groups)} texts, {shapes[0]} → {shapes[1]})"


@arguments
def map_texts(
    n: int = 256, without: str | None = None, seed: int = 0
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Prompts of the catalogue's instructions, and the number of the base query of each.

    Half carry an instruction and half do not, as the prompts that vectors are fitted on.

    Args:
        n: Texts.
        without: The instruction (or several with this beginning of their id) to leave out: the one
            whose vector is to be mapped. Its whole group goes: "detectable_format:title" leaves
            out no other format, "length_constraints:number_sentences:at_most" leaves out all
            sentence counts.
        seed: Decides which.

    Raises:
        SteerlensError: Fewer than 8 texts, or more than the catalogue gives.
    """
    kept = None if without is None else ":".join(without.split(":")[:2])
    names = [name for name in catalogue if kept is None or not name.startswith(kept)]
    rng = Random(f"texts/{seed}")
    found: dict[str, str] = {}
    for name in names:
        for pair in contrast_pairs(name, n=max(2, 2 * n // len(names)), seed=seed):
            found[pair.instructed] = pair.base_query
            found[pair.uninstructed] = pair.base_query
    sides = [
        [text for text, query in found.items() if (text == query) is plain]
        for plain in (True, False)
    ]
    rng.shuffle(sides[0])
    rng.shuffle(sides[1])
    bare = sides[0][: n // 2]
    texts = [*bare, *sides[1][: n - len(bare)]]
    if n < MIN_TEXTS or len(texts) < n:
        raise SteerlensError(
            f"a map is fitted on {MIN_TEXTS} to {len(texts)} texts of the catalogue; {n} were "
            "asked for"
        )
    numbers: dict[str, int] = {}
    groups = [numbers.setdefault(found[text], len(numbers)) for text in texts]
    return tuple(texts), tuple(groups)


def paired_residuals(
    source: TransformerBridge,
    target: TransformerBridge,
    texts: Sequence[str],
    groups: Sequence[int] | None = None,
    position: str = "last_prompt",
    batch_size: int = 16,
    progress: bool | None = None,
) -> PairedResiduals:
    """Run the same texts through two models, each in its own chat format.

    Args:
        source: The model a vector was made for.
        target: The model it goes to.
        texts: User messages.
        groups: A number a text; equal ones are held out together. Every text its own by default.
        position: ``"last_prompt"`` or ``"prompt_mean"``.
        batch_size: Prompts a forward pass.
        progress: Show a progress bar on standard error; by default only in a terminal.

    Raises:
        UnknownNameError: Another position.
        ActivationError: Fewer than 5 groups, or numbers that are none.
        ModelError: A text that one of the models cannot read.
    """
    if position not in _POSITIONS:
        raise unknown_name("position", position, _POSITIONS)
    groups = tuple(range(len(texts))) if groups is None else tuple(groups)
    residuals = []
    for model in (source, target):
        rows = tokenize_prompts(model, texts)
        first = 1 if position == "prompt_mean" else None
        spans = [(len(r) - 1 if first is None else min(first, len(r) - 1), len(r)) for r in rows]
        layers = range(model.cfg.n_layers)
        residuals.append(residuals_at(model, rows, spans, layers, batch_size, progress))
    return PairedResiduals(
        residuals[0],
        residuals[1],
        groups,
        {
            **_named("source", source),
            **_named("target", target),
            "position": position,
            "n_texts": len(texts),
        },
    )


def _named(side: str, model: TransformerBridge) -> dict[str, str]:
    info = model_info(model, exact=True)
    return {
        side: info.reference,
        f"{side}_weights_hash": info.weights_hash,
        f"{side}_configuration_hash": info.configuration_hash,
    }
