"""Stretches: tokens of steered rows, run from where their beginnings are known.

A **stretch** is a run of tokens of one row under its steering. What stands before it is known: the
row's own keys and values where it was steered before, the unsteered trunk's
(`steerlens.engine.reading`) elsewhere. `advance` runs stretches that begin at the same position in
one pass. Below the first layer at which its row is steered a stretch is the trunk, so it joins the
pass there, with the trunk's residuals, and rides through the rest with the others. Because masks
and positions of the new tokens agree, one row of them serves all, however many have joined.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.memory import attention_masks
from steerlens.engine.modules import device_of, no_words, on_blocks, only_blocks
from steerlens.engine.reading import Reading
from steerlens.steering.interventions import Steering
from steerlens.steering.roles import TokenRoles
from steerlens.steering.rows import RowSteering

__all__ = ["PASS_TOKENS", "Memory", "Stretch", "advance", "passes"]

Memory = dict[int, tuple[Tensor, Tensor]]
"""For each layer, keys and values ``[head pos d_head]`` of a row's tokens so far."""

PASS_TOKENS = 2048
"""Tokens of one pass, padding included: enough to keep the matrix units busy, little enough that
Ctrl-C is answered within seconds on two cores."""


@dataclass(frozen=True, eq=False)
class Stretch:
    """Tokens ``start ≤ t < stop`` of a row, to be run under its steering.

    Attributes:
        trunk: The unsteered reading of at least these tokens.
        steering: What is done to the row.
        n_prompt: Where its response begins.
        start: First token to run.
        stop: End of the tokens to run.
        before: The steered row's memory of the tokens before `start`; a layer that is not in it
            has the trunk's.
    """

    trunk: Reading
    steering: Steering
    n_prompt: int
    start: int
    stop: int
    before: Memory

    @property
    def layer(self) -> int:
        """Where it parts from the trunk."""
        return self.steering.layers[0]

    def beginning(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values ``[head start d_head]`` of the tokens before."""
        if layer in self.before:
            return self.before[layer]
        keys, values = zip(*(one.memory[layer] for one in self.trunk.chain()), strict=True)
        return torch.cat(keys, 1)[:, : self.start], torch.cat(values, 1)[:, : self.start]


class _JoiningMemory:
    """Keys and values of one pass in which rows join on the way; Hugging Face's cache for it.

    Args:
        stretches: The rows, in the order in which they join.
        remember: Keep what is known after the pass.
    """

    def __init__(self, stretches: Sequence[Stretch], remember: bool) -> None:
        self.stretches = stretches
        self.remember = remember
        self.known: Memory = {}

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Called by each attention layer with the new tokens' keys and values."""
        if self.stretches[0].start > 0:
            present = [one.beginning(layer_idx) for one in self.stretches[: len(keys)]]
            old_keys, old_values = (torch.stack(side) for side in zip(*present, strict=True))
            keys, values = torch.cat([old_keys, keys], 2), torch.cat([old_values, values], 2)
        if self.remember:
            self.known[layer_idx] = (keys, values)
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens before the new ones; asked for by models that make their own positions."""
        return self.stretches[0].start

    def of_row(self, place: int) -> Memory:
        """One row's memory up to the end of its stretch, for the layers it was run through."""
        one = self.stretches[place]
        return {
            layer: (keys[place, :, : one.stop], values[place, :, : one.stop])
            for layer, (keys, values) in self.known.items()
            if layer > one.layer
        }


def advance(
    model: TransformerBridge, stretches: Sequence[Stretch], remember: bool = False
) -> tuple[Float[Tensor, "row pos d_model"], list[Memory]]:
    """Run stretches that begin at one position; the residuals after all blocks, and memories.

    Args:
        model: A model inside `fast_modules`.
        stretches: In the order in which they join.
        remember: Whether memories are wanted.
    """
    device, n_layers = device_of(model), model.cfg.n_layers
    start, first = stretches[0].start, stretches[0].layer
    stops = torch.tensor([one.stop for one in stretches], device=device)[:, None]
    n_prompt = torch.tensor([one.n_prompt for one in stretches], device=device)[:, None]
    keys = torch.arange(int(stops.max()), device=device)[None]
    positions = keys[:, start:]
    on_prompt = positions < torch.minimum(n_prompt, stops)
    on_response = (positions >= n_prompt) & (positions < stops)
    compiled = RowSteering([one.steering for one in stretches], device=device, per_row=True)
    joining: dict[int, list[Stretch]] = {}
    for one in stretches:
        joining.setdefault(one.layer, []).append(one)
    stream: dict[str, Tensor] = {}

    def after(layer: int, resid: Tensor | None) -> Tensor:
        """New rows join, and every row present is steered."""
        parts = [] if resid is None else [resid]
        parts += [
            _residuals(one, layer, positions.shape[1])[None] for one in joining.get(layer, [])
        ]
        joined = torch.cat(parts)
        present = len(joined)
        roles = TokenRoles(prompt=on_prompt[:present], response=on_response[:present])
        stream["resid"] = compiled.apply(layer, joined, roles)
        return stream["resid"]

    cache = _JoiningMemory(stretches, remember)
    resid = after(first, None)
    if first < n_layers - 1:
        touched = {layer for layer in (*joining, *compiled.stages) if layer > first}
        real = torch.ones_like(keys, dtype=torch.bool)
        masks = attention_masks(model.original_model.config, positions, keys, real, resid.dtype)
        with (
            on_blocks(model, {*touched, n_layers - 1}, after),
            only_blocks(model, first + 1, n_layers, resid),
        ):
            _run_body(
                model,
                input_ids=no_words(resid, len(stretches)),
                position_ids=positions,
                attention_mask=masks,
                past_key_values=cache,
                use_cache=True,
            )
    memories = [cache.of_row(place) for place in range(len(stretches))] if remember else []
    return stream["resid"], memories


def _run_body(model: TransformerBridge, **inputs: object) -> None:
    """One pass without the unembedding, where the model can do without."""
    root: Any = model.original_model
    body = getattr(root, root.base_model_prefix, None)
    if body is None:
        root(logits_to_keep=1, **inputs)
    else:
        body(**inputs)


def _residuals(stretch: Stretch, layer: int, width: int) -> Float[Tensor, "width d_model"]:
    """The trunk's residuals of a stretch, padded on the right."""
    resid = stretch.trunk.residual(layer)[stretch.start : stretch.stop]
    return torch.nn.functional.pad(resid, (0, 0, 0, width - len(resid)))


def passes(stretches: Sequence[Stretch], batch_size: int) -> Iterator[list[Stretch]]:
    """Stretches that begin at one position, in passes of about equal size, as they join."""
    by_start: dict[int, list[Stretch]] = {}
    for one in stretches:
        by_start.setdefault(one.start, []).append(one)
    for group in by_start.values():
        group.sort(key=lambda one: one.layer)
        width = max(one.stop - one.start for one in group)
        npasses = -(-len(group) * width // PASS_TOKENS)
        size = min(-(-len(group) // npasses), batch_size)
        for start in range(0, len(group), size):
            yield group[start : start + size]
