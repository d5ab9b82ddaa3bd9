"""Reading prompts: each shared part of them once.

`read` runs token rows through the first blocks of a model and keeps, for each row, its keys and
values and the residuals that were asked for, as a `Reading`. A reading may continue another one
(its **parent**): the parent's tokens are not run again. Two kinds of sharing rest on this, and are
exact:

* rows that begin alike (a chat preamble, the two sides of a contrast pair) share the reading of
  the beginning;
* rows of the *same* prompt under interventions that first touch the prompt at layer *l* share
  everything up to the output of block *l*. `branch` takes it from there: rows join the batch at
  the layer where they part from the trunk, and all ride through the rest together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.batches import right_padded
from steerlens.engine.memory import KeyValues, PrefixCache, attention_masks
from steerlens.engine.modules import device_of, dtype_of, no_words, on_blocks, only_blocks
from steerlens.steering.interventions import Steering
from steerlens.steering.roles import TokenRoles
from steerlens.steering.rows import RowSteering

__all__ = ["Branch", "Reading", "branch", "first_touched", "read"]

Visit = Callable[[int, Float[Tensor, "row pos d_model"]], None]


@dataclass(frozen=True, eq=False)
class Reading:
    """What is known after reading some tokens.

    Attributes:
        n_tokens: How many tokens this reading added.
        parent: The reading it continues.
        memory: For each block run, keys and values ``[head pos d_head]`` of the added tokens.
        resid: For asked layers, the residuals ``[pos d_model]`` of the added tokens.
        last: The last token's residual after the last block run.
    """

    n_tokens: int
    parent: "Reading | None"
    memory: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    resid: dict[int, Tensor] = field(default_factory=dict)
    last: Tensor | None = None

    @property
    def length(self) -> int:
        """Tokens read in all, parents' included."""
        return self.n_tokens + (self.parent.length if self.parent else 0)

    def chain(self) -> "list[Reading]":
        """This reading after those it continues, the first one first."""
        return [*(self.parent.chain() if self.parent else []), self]

    def residual(self, layer: int) -> Float[Tensor, "pos d_model"]:
        """Residuals of all tokens read, at a layer that was kept all along."""
        return torch.cat([one.resid[layer] for one in self.chain()])


def read(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    parents: Sequence[Reading | None],
    stop: int,
    keep: Sequence[int] = (),
    visit: Visit | None = None,
    visit_layers: Sequence[int] = (),
) -> list[Reading]:
    """Run token rows, each after its parent, through blocks ``0 ≤ l < stop``.

    Args:
        model: A model inside `fast_modules`.
        rows: Token ids to add to each parent; at least one a row.
        parents: What stands before each row; a parent must have run `stop` blocks as well.
        stop: How many blocks to run.
        keep: Layers whose residuals the readings shall hold.
        visit: Called with each of `visit_layers` and its residuals (rows padded on the right).
        visit_layers: Layers to visit.
    """
    device = device_of(model)
    starts = [parent.length if parent else 0 for parent in parents]
    shared = len({id(parent) for parent in parents}) == 1
    prefix, known = _prefix(parents[:1] if shared else parents, stop, device)
    ids = right_padded(rows, device)
    n_rows, width = ids.shape
    begin = torch.tensor(starts[:1] if shared else starts, device=device)
    positions = begin[:, None] + torch.arange(width, device=device)
    before = torch.arange(known.shape[1], device=device).expand(len(known), -1)
    keys = torch.cat([before, positions], dim=1)
    real = torch.cat([known, torch.ones_like(positions, dtype=torch.bool)], dim=1)
    cache = PrefixCache(prefix)
    held: dict[int, Tensor] = {}
    last_layer = stop - 1

    def after(layer: int, resid: Tensor) -> None:
        if layer in visited and visit is not None:
            visit(layer, resid)
        if layer in keep or layer == last_layer:
            held[layer] = resid

    visited = set(visit_layers)
    with (
        on_blocks(model, {*keep, *visited, last_layer}, after),
        only_blocks(model, 0, stop),
    ):
        _run(
            model,
            cache,
            input_ids=ids,
            position_ids=positions,
            attention_mask=attention_masks(
                model.original_model.config, positions, keys, real, dtype_of(model)
            ),
        )
    return [
        Reading(
            n_tokens=len(rows[i]),
            parent=parents[i],
            memory={
                layer: (k[i, :, : len(rows[i])], v[i, :, : len(rows[i])])
                for layer, (k, v) in cache.new.items()
            },
            resid={layer: held[layer][i, : len(rows[i])] for layer in keep},
            last=held[last_layer][i, len(rows[i]) - 1],
        )
        for i in range(n_rows)
    ]


def _run(model: TransformerBridge, cache: PrefixCache, **inputs: object) -> None:
    """One pass of the model's body; the unembedding is not needed."""
    root: Any = model.original_model
    body = getattr(root, root.base_model_prefix, None)
    if body is None:
        root(past_key_values=cache, use_cache=True, logits_to_keep=1, **inputs)
    else:
        body(past_key_values=cache, use_cache=True, **inputs)


def _prefix(
    parents: Sequence[Reading | None], stop: int, device: str | torch.device
) -> tuple[KeyValues, Tensor]:
    """Parents' memories side by side, padded on the right, and which entries are real."""
    lengths = [parent.length if parent else 0 for parent in parents]
    width = max(lengths)
    real = torch.arange(width, device=device) < torch.tensor(lengths, device=device)[:, None]
    if width == 0:
        return {}, real
    layers = range(stop)
    chains = [parent.chain() if parent else [] for parent in parents]
    return {layer: _side_by_side(chains, layer, width) for layer in layers}, real


def _side_by_side(
    chains: Sequence[Sequence[Reading]], layer: int, width: int
) -> tuple[Tensor, Tensor]:
    like = next(chain[0] for chain in chains if chain).memory[layer]
    joined = [one.new_zeros(len(chains), one.shape[0], width, one.shape[2]) for one in like]
    for i, chain in enumerate(chains):
        start = 0
        for reading in chain:
            for target, part in zip(joined, reading.memory[layer], strict=True):
                target[i, :, start : start + reading.n_tokens] = part
            start += reading.n_tokens
    return joined[0], joined[1]


def first_touched(steering: Steering | None, n_layers: int) -> int:
    """The first layer where a steering changes the prompt; `n_layers` when it never does."""
    if steering is None:
        return n_layers
    return min(steering.touching("prompt").layers, default=n_layers)


@dataclass(frozen=True, eq=False)
class Branch:
    """One row after its steered part of the prompt.

    Attributes:
        memory: Keys and values of the whole prompt for the layers above the first touched one.
        last: The last token's residual after all blocks.
    """

    memory: dict[int, tuple[Tensor, Tensor]]
    last: Tensor


def branch(
    model: TransformerBridge,
    trunks: Sequence[Reading],
    steerings: Sequence[Steering],
) -> list[Branch]:
    """Run the steered part of prompts whose unsteered trunk is known.

    Args:
        model: A model inside `fast_modules`.
        trunks: Reading of each row's prompt, with the residual at the row's first touched layer.
        steerings: One a row; each touches the prompt.
    """
    n_layers = model.cfg.n_layers
    first = [first_touched(steering, n_layers) for steering in steerings]
    order = sorted(range(len(trunks)), key=lambda i: first[i])
    device = device_of(model)
    lengths = torch.tensor([trunks[i].length for i in order], device=device)
    width = int(lengths.max())
    real = torch.arange(width, device=device) < lengths[:, None]
    on_prompt = [steerings[i].touching("prompt") for i in order]
    compiled = RowSteering(on_prompt, device=device, per_row=True)
    joining: dict[int, list[Tensor]] = {}
    for i in order:
        joining.setdefault(first[i], []).append(trunks[i].residual(first[i]))
    stream: dict[str, Tensor] = {}

    def after(layer: int, resid: Tensor | None) -> Tensor:
        """New rows join, and every row present is steered."""
        parts = [] if resid is None else [resid]
        parts += [_pad(one, width)[None] for one in joining.get(layer, [])]
        joined = torch.cat(parts)
        present = real[: len(joined)]
        roles = TokenRoles(prompt=present, response=torch.zeros_like(present))
        stream["resid"] = compiled.apply(layer, joined, roles)
        return stream["resid"]

    start = first[order[0]]
    positions = torch.arange(width, device=device)[None]
    cache = PrefixCache()
    resid = after(start, None)
    touched = {layer for layer in (*joining, *compiled.stages) if layer > start}
    if start < n_layers - 1:
        with (
            on_blocks(model, {*touched, n_layers - 1}, after),
            only_blocks(model, start + 1, n_layers, resid),
        ):
            _run(
                model,
                cache,
                input_ids=no_words(resid, len(trunks)),
                position_ids=positions,
                attention_mask=attention_masks(
                    model.original_model.config,
                    positions,
                    positions,
                    torch.ones_like(positions, dtype=torch.bool),
                    resid.dtype,
                ),
            )
    result: list[Branch | None] = [None] * len(trunks)
    for place, i in enumerate(order):
        n = trunks[i].length
        memory = {
            layer: (k[place, :, :n], v[place, :, :n])
            for layer, (k, v) in cache.new.items()
            if layer > first[i]
        }
        result[i] = Branch(memory=memory, last=stream["resid"][place, n - 1])
    return [one for one in result if one is not None]


def _pad(resid: Float[Tensor, "pos d_model"], width: int) -> Float[Tensor, "width d_model"]:
    return torch.nn.functional.pad(resid, (0, 0, 0, width - len(resid)))
