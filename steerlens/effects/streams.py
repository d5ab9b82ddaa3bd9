r"""Forward passes over one text: as the model is, and steered.

Both passes read the same tokens. Below the first steered layer they are the same computation, so on
the fast path the steered pass starts there, from the baseline's residuals. Residuals are kept for
the asked layers only, and logits are made for some positions at a time, from the residuals of the
last layer, so memory grows with tokens × asked layers and never with tokens × vocabulary. On the
plain path (`steerlens.engine.choosing`) the bridge's logits for all positions are held.

Two passes through the same modules with the same shapes give the same bits: a steering that changes
nothing gives differences of exactly zero.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.choosing import running
from steerlens.engine.forward import PassRow, run_rows
from steerlens.engine.fused_blocks import fused_blocks
from steerlens.engine.memory import Reading
from steerlens.engine.modules import device_of, fast_modules, unembed
from steerlens.engine.plain import bridge_pass
from steerlens.engine.reading import read
from steerlens.errors import ModelError
from steerlens.models.loading import model_info
from steerlens.steering.adaptive import adapted
from steerlens.steering.interventions import Steering
from steerlens.steering.rows import RowSteering

__all__ = ["Observe", "Stream", "adapted_stream", "both_streams", "check_text", "other_ending"]

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
        reading: What `other_ending` goes on from; ``None`` on the plain path.
    """

    resid: Mapping[int, Resid]
    logits: Callable[[slice], Float[Tensor, "row vocab"]]
    reading: Reading | None = None


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
        observe: Called for each of them, lowest first.
        kept: Layers whose residuals both streams shall hold.
        remember: Keep what `other_ending` needs to go on from the baseline's stream.

    Yields:
        The baseline's stream and the steered one.

    Raises:
        ModelError: A text the model cannot read.
    """
    check_text(model, tokens)
    asked, kept = frozenset(layers), frozenset(kept)
    plain: dict[int, Resid] = {}

    def tell(layer: int, before: Tensor, after: Tensor) -> None:
        if observe is not None:
            observe(layer, plain[layer], before[0], after[0])

    with running(model, len(tokens)) as path:
        if not path.is_fast:
            yield _plain_streams(model, tokens, n_prompt, steering, asked, kept, plain, tell)
            return
        # Open for the caller too, who reads logits and other endings from the streams.
        with fast_modules(model):
            with torch.inference_mode(), fused_blocks(model):
                start, last = min(steering.layers), model.cfg.n_layers - 1
                trunk = run_rows(
                    model,
                    [PassRow(tokens=tokens)],
                    keep=asked | kept | {start, last},
                    remember=remember,
                ).reading(0)
                plain.update(trunk.resid)
                for layer in sorted(layer for layer in asked if layer < start):
                    tell(layer, plain[layer][None], plain[layer][None])
                row = PassRow(trunk=trunk, layer=start, steering=steering, n_prompt=n_prompt)
                steered = run_rows(model, [row], keep=kept | {last}, observe=tell, observed=asked)
            resid = {layer: plain[layer] for layer in kept}
            moved = resid | {layer: r[0] for layer, r in steered.kept.items() if layer in kept}
            yield (
                Stream(resid, _reader(model, plain[last]), trunk if remember else None),
                Stream(moved, _reader(model, steered.resid[0])),
            )


def _reader(model: TransformerBridge, final: Resid) -> Callable[[slice], Tensor]:
    """Logits of a range of positions, from their last residuals."""
    return lambda rows: unembed(model, final[rows])


def adapted_stream(
    baseline: Stream, steered: Stream, threshold: float, shares: Float[Tensor, "pos"]
) -> Stream:
    """The steered stream with logits as adaptive decoding takes them; notes `shares` as it goes."""

    def logits(rows: slice) -> Float[Tensor, "row vocab"]:
        alpha = torch.tensor([threshold])
        mixed, shares[rows] = adapted(steered.logits(rows), baseline.logits(rows), alpha)
        return mixed

    return replace(steered, logits=logits)


@torch.inference_mode()
def _plain_streams(
    model: TransformerBridge,
    tokens: Sequence[int],
    n_prompt: int,
    steering: Steering,
    asked: frozenset[int],
    kept: frozenset[int],
    plain: dict[int, Resid],
    tell: Callable[[int, Tensor, Tensor], None],
) -> tuple[Stream, Stream]:
    """Both streams through the bridge's own forward pass."""
    moved: dict[int, Resid] = {}

    def keep(layer: int, before: Tensor, after: Tensor) -> None:
        moved[layer] = after[0]
        if layer in asked:
            tell(layer, before, after)

    def keep_plain(layer: int, _: Tensor, resid: Tensor) -> None:
        plain[layer] = resid[0]

    layers, n_tokens = asked | kept, len(tokens)
    baseline = bridge_pass(model, [tokens], observe=keep_plain, observed=layers, n_logits=n_tokens)
    steered = bridge_pass(
        model,
        [tokens],
        RowSteering([steering], device_of(model)),
        [n_prompt],
        observe=keep,
        observed=layers,
        n_logits=n_tokens,
    )
    return (
        Stream({layer: plain[layer] for layer in kept}, baseline[0].__getitem__),
        Stream({layer: moved[layer] for layer in kept}, steered[0].__getitem__),
    )


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
    if stream.reading is None:
        kept: dict[int, Tensor] = {}
        logits = bridge_pass(
            model,
            [tokens],
            observe=lambda layer, _, resid: kept.update({layer: resid[0, n_shared:]}),
            observed=layers,
            n_logits=len(tokens) - n_shared,
        )
        return Stream(kept, logits[0].__getitem__)
    last = model.cfg.n_layers - 1
    before = stream.reading.until(n_shared) if n_shared else None
    [ending] = read(model, [tokens[n_shared:]], [before], keep={*layers, last})
    resid = {layer: ending.resid[layer] for layer in layers}
    return Stream(resid, _reader(model, ending.resid[last]))
