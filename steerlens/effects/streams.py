r"""Forward passes over one text: as the model is, and steered.

Both passes read the same tokens. Below the first layer that the steering touches they are the same
computation, so on the fast path it is done once: the steered pass starts from the baseline's
residuals there and runs through the layers above. Residuals are kept for asked layers only, and
logits are made for some positions at a time, from the residuals of the last layer, so memory grows
with tokens × asked layers and never with tokens × vocabulary.

When something on the model is hooked, or the engine does not know the architecture, both passes go
through the bridge's own forward pass, and its logits for all positions are held.

Two passes through the same modules with the same shapes give the same bits: a steering that changes
nothing gives differences of exactly zero.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import DynamicCache

from steerlens.engine.choosing import running
from steerlens.engine.modules import (
    device_of,
    fast_modules,
    no_words,
    on_blocks,
    only_blocks,
    unembed,
)
from steerlens.engine.reading import Reading, read
from steerlens.errors import ModelError
from steerlens.models.loading import model_info
from steerlens.steering.interventions import Steering
from steerlens.steering.roles import TokenRoles
from steerlens.steering.rows import RowSteering

__all__ = ["Observe", "Stream", "both_streams", "check_text", "other_ending", "run_blocks"]

Resid = Float[Tensor, "pos d_model"]
Observe = Callable[[int, Resid, Resid, Resid], None]
"""Called for each asked layer with the baseline's residuals there, and the steered pass's before
and after its interventions."""


@dataclass(frozen=True, eq=False)
class Stream:
    """What a forward pass over one text leaves.

    Attributes:
        resid: Residuals of kept layers, after any intervention there, in the model's dtype.
        logits: Logits at a range of positions, made when asked for.
        memory: Keys and values of the text, when they were kept for `other_ending`.
    """

    resid: Mapping[int, Resid]
    logits: Callable[[slice], Float[Tensor, "row vocab"]]
    memory: Mapping[int, tuple[Tensor, Tensor]] | None = None


def check_text(model: TransformerBridge, tokens: Sequence[int]) -> None:
    """Refuse a text the model cannot read.

    Raises:
        ModelError: "the text has no tokens …" or "the text has 9000 tokens, and … reads at most …".
    """
    info = model_info(model)
    if not tokens:
        raise ModelError("the text has no tokens; give at least one token of prompt or response")
    if len(tokens) > info.context_length:
        raise ModelError(
            f"the text has {len(tokens)} tokens, and {info.reference} reads at most "
            f"{info.context_length}; shorten it"
        )
    n_vocab = model.cfg.d_vocab
    foreign = next((token for token in tokens if not 0 <= token < n_vocab), None)
    if foreign is not None:
        raise ModelError(
            f"token {foreign} is not in this model's vocabulary of {n_vocab}; the text was made "
            "with another tokenizer"
        )


@contextmanager
def both_streams(
    model: TransformerBridge,
    tokens: Sequence[int],
    n_prompt: int,
    steering: Steering,
    layers: Iterable[int] = (),
    observe: Observe | None = None,
    kept: Iterable[int] = (),
    remember: bool = False,
) -> Iterator[tuple[Stream, Stream]]:
    """The text as the unsteered and as the steered model read it; logits only inside the context.

    Args:
        model: A hooked model.
        tokens: Ids of the whole text.
        n_prompt: How many of them are prompt (the scope tells them apart).
        steering: What to apply; checked against the model before.
        layers: Layers to observe.
        observe: Called for each of them, lowest first, while the steered pass runs.
        kept: Layers whose residuals both streams shall hold.
        remember: Keep what `other_ending` needs to go on from the baseline's stream.

    Yields:
        The baseline's stream and the steered one.

    Raises:
        ModelError: A text the model cannot read.
    """
    check_text(model, tokens)
    ids = torch.tensor([list(tokens)], device=device_of(model))
    run = _Steered(model, ids, n_prompt, steering, frozenset(layers), observe, frozenset(kept))
    with running(model, len(tokens)) as path:
        if not path.is_fast:
            yield run.plainly()
            return
        with fast_modules(model):
            yield run.fast(remember)


@torch.inference_mode()
def other_ending(
    model: TransformerBridge,
    stream: Stream,
    n_shared: int,
    tokens: Sequence[int],
    layers: Sequence[int],
) -> Stream:
    """Another text as the unsteered model reads it, from where it leaves a text already read.

    To be called inside the context of `both_streams`. On the fast path the shared beginning is not
    run again.

    Args:
        model: The model.
        stream: The baseline's stream over the text already read, remembered.
        n_shared: How many tokens both texts begin with, at least.
        tokens: Ids of the other text, beginning included.
        layers: Layers whose residuals are kept.

    Returns:
        The stream over positions `n_shared` to the end.
    """
    check_text(model, tokens)
    last = model.cfg.n_layers - 1
    kept: dict[int, Tensor] = {}
    if stream.memory is None:
        ids = torch.tensor([list(tokens)], device=device_of(model))
        hooks = _hooks(layers, lambda at, resid: kept.update({at: resid[0, n_shared:]}))
        with model.hooks(fwd_hooks=hooks):
            return Stream(kept, _bridge_logits(model, ids)[n_shared:].__getitem__)
    memory = {
        layer: (keys[:, :n_shared], values[:, :n_shared])
        for layer, (keys, values) in stream.memory.items()
    }
    read(
        model,
        [tokens[n_shared:]],
        [Reading(n_shared, None, memory) if n_shared else None],
        last + 1,
        visit=lambda layer, resid: kept.update({layer: resid[0]}),
        visit_layers=[*layers, last],
    )
    return _readable(model, kept, layers)


class _Steered:
    """One text, its steering, and what is asked of both passes."""

    def __init__(
        self,
        model: TransformerBridge,
        ids: Tensor,
        n_prompt: int,
        steering: Steering,
        layers: frozenset[int],
        observe: Observe | None,
        kept: frozenset[int],
    ) -> None:
        self.model, self.ids, self.layers, self.kept = model, ids, layers, kept
        self.observe = observe
        self.touched = frozenset(steering.layers)
        self.compiled = RowSteering([steering], device=ids.device)
        is_prompt = torch.arange(ids.shape[1], device=ids.device)[None] < n_prompt
        self.roles = TokenRoles(prompt=is_prompt, response=~is_prompt)
        self.plain: dict[int, Tensor] = {}
        self.steered: dict[int, Tensor] = {}

    def after(self, layer: int, resid: Tensor) -> Tensor:
        """Steer a layer's output, and tell of it."""
        moved = self.compiled.apply(layer, resid, self.roles)
        if layer in self.layers and self.observe is not None:
            self.observe(layer, self.plain[layer], resid[0], moved[0])
        if layer in self.kept or layer == self.model.cfg.n_layers - 1:
            self.steered[layer] = moved[0]
        return moved

    def fast(self, remember: bool) -> tuple[Stream, Stream]:
        model, last = self.model, self.model.cfg.n_layers - 1
        start = min(self.touched)
        cache: Any = DynamicCache() if remember else None

        def keep(layer: int, resid: Tensor) -> None:
            self.plain[layer] = resid[0]

        run_blocks(
            model, 0, {*self.layers, *self.kept, start, last}, keep, cache=cache, input_ids=self.ids
        )
        for layer in sorted(layer for layer in {*self.layers, *self.kept} if layer < start):
            self.after(layer, self.plain[layer][None])
        moved = self.after(start, self.plain[start][None])
        if start < last:
            hooked = {
                layer for layer in {*self.layers, *self.kept, *self.touched, last} if layer > start
            }
            run_blocks(model, start + 1, hooked, self.after, resid=moved)
        memory = None
        if cache is not None:
            memory = {n: (one.keys[0], one.values[0]) for n, one in enumerate(cache.layers)}
        return (
            _readable(model, self.plain, self.kept, memory),
            _readable(model, self.steered, self.kept),
        )

    def plainly(self) -> tuple[Stream, Stream]:
        model = self.model
        asked = {*self.layers, *self.kept}
        with model.hooks(
            fwd_hooks=_hooks(asked, lambda at, resid: self.plain.update({at: resid[0]}))
        ):
            baseline = _bridge_logits(model, self.ids)
        with model.hooks(fwd_hooks=_hooks({*asked, *self.touched}, self.after)):
            steered = _bridge_logits(model, self.ids)
        return (
            Stream({layer: self.plain[layer] for layer in self.kept}, baseline.__getitem__),
            Stream({layer: self.steered[layer] for layer in self.kept}, steered.__getitem__),
        )


def run_blocks(
    model: TransformerBridge,
    first: int,
    layers: Iterable[int],
    function: Callable[[int, Tensor], Tensor | None],
    stop: int | None = None,
    cache: Any = None,
    input_ids: Tensor | None = None,
    resid: Tensor | None = None,
) -> None:
    """One pass through the blocks ``first ≤ l < stop``, without logits.

    Whole rows without padding need no attention mask, and causal attention without one costs no
    memory quadratic in tokens.

    Args:
        model: A model inside `fast_modules`.
        first: The first block to run; the input enters there.
        layers: Blocks after which `function` is called.
        function: See `steerlens.engine.modules.on_blocks`.
        stop: Where to stop; by default all blocks are run.
        cache: An empty Hugging Face cache that is to keep keys and values.
        input_ids: Token ids to read.
        resid: Instead of these, residuals that enter block `first`.
    """
    root: Any = model.original_model
    body = getattr(root, root.base_model_prefix, None)
    stop = model.cfg.n_layers if stop is None else stop
    if resid is not None:
        input_ids = no_words(resid)
    options = {"past_key_values": cache, "use_cache": cache is not None, "input_ids": input_ids}
    with on_blocks(model, layers, function), only_blocks(model, first, stop, resid):
        if body is None:
            root(logits_to_keep=1, **options)
        else:
            body(**options)


def _readable(
    model: TransformerBridge,
    resid: Mapping[int, Tensor],
    kept: Iterable[int],
    memory: Mapping[int, tuple[Tensor, Tensor]] | None = None,
) -> Stream:
    final = resid[model.cfg.n_layers - 1]
    held = {layer: resid[layer] for layer in kept}
    return Stream(held, lambda rows: unembed(model, final[rows]), memory)


def _hooks(layers: Iterable[int], function: Callable[[int, Tensor], Any]) -> list[tuple[str, Any]]:
    """TransformerLens hooks that call `function`; a tensor it returns replaces the residual."""

    def at(layer: int) -> Callable[[Tensor, Any], Tensor | None]:
        def hook(resid: Tensor, hook: Any) -> Tensor | None:
            changed = function(layer, resid)
            return changed if isinstance(changed, Tensor) else None

        return hook

    return [(f"blocks.{layer}.hook_out", at(layer)) for layer in sorted(set(layers))]


def _bridge_logits(model: TransformerBridge, ids: Tensor) -> Float[Tensor, "pos vocab"]:
    logits: Tensor = model(ids, attention_mask=torch.ones_like(ids), use_cache=False)[0]
    return logits
