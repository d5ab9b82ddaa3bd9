"""One pass: rows enter at a layer, are steered there and above, and run on together.

Everything the engine does is a use of `run_rows`: reading prompts, scoring continuations, capturing
residuals, patching and per-token effects. (Decoding, one token per row and step, and the
unembedding call `run_blocks` beneath it directly.)

A `PassRow` is some new tokens of a row and what stands before them (a `Reading`). They enter either
as token ids before block 0, or as residuals after some block. Rows of one prompt under different
steerings are the same computation below the first steered layer, so that part is read once,
unsteered (the **trunk**), and each row joins the pass at its own layer. Where rows join on the way,
their new tokens begin at one position, so that one row of positions and masks serves any number of
them.

Given ``keep_gradients=True``, residuals and what is computed from them have gradients with respect
to any tensor that a `steer` of one's own depends on (an `Intervention` holds copies), never with
respect to the weights:

    with fast_modules(model):
        passed = run_rows(model, rows, steer=mine, keep_gradients=True)
        logits = unembed(model, passed.resid[:, -1])
    torch.autograd.grad(logits[0, token], [vector])
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.batches import right_padded
from steerlens.engine.memory import PassCache, Reading, SlotCache, attention_masks
from steerlens.engine.modules import (
    blocks_of,
    device_of,
    dtype_of,
    no_words,
    on_blocks,
    only_blocks,
)
from steerlens.steering.interventions import Steering
from steerlens.steering.roles import TokenRoles
from steerlens.steering.rows import RowSteering

__all__ = ["Observe", "Pass", "PassRow", "Steers", "gradients", "run_blocks", "run_rows"]

Observe = Callable[[int, Float[Tensor, "row pos d_model"], Float[Tensor, "row pos d_model"]], None]
"""Called with a layer and its residuals before and after the steering there."""


@runtime_checkable
class Steers(Protocol):
    """What changes the residual stream of a pass, such as `RowSteering`."""

    @property
    def layers(self) -> Collection[int]:
        """The blocks after which it acts."""

    def apply(
        self, layer: int, resid: Float[Tensor, "batch pos d_model"], roles: TokenRoles
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residuals after a block as the next one shall see them."""


@dataclass(frozen=True, eq=False)
class PassRow:
    """New tokens of one row, what stands before them, and where they enter.

    They enter as `tokens`, as `resid` after block `layer`, or, with neither, there with the
    residuals of `trunk`.

    Attributes:
        tokens: Token ids.
        resid: Residuals of the new tokens after block `layer`.
        layer: The block after which the row enters; −1 for tokens.
        before: What stands before the new tokens; ``None`` for nothing.
        trunk: The unsteered reading of the same row, from its beginning.
        stop: Where in the row the new tokens end, when they enter from the trunk; by default where
            the trunk does.
        steering: What is done to the row.
        n_prompt: Where in the row its response begins; by default after the new tokens.
        touched: Which new tokens may be steered; by default all.
    """

    tokens: Sequence[int] | None = None
    resid: Float[Tensor, "pos d_model"] | None = None
    layer: int = -1
    before: Reading | None = None
    trunk: Reading | None = None
    stop: int | None = None
    steering: Steering | None = None
    n_prompt: int | None = None
    touched: Bool[Tensor, "pos"] | None = None

    @property
    def start(self) -> int:
        """Position of the first new token."""
        return self.before.length if self.before else 0

    @property
    def n_tokens(self) -> int:
        """How many tokens are new."""
        if self.trunk is not None:
            return (self.trunk.length if self.stop is None else self.stop) - self.start
        return len(self.tokens if self.tokens is not None else self.resid)  # type: ignore[arg-type]

    def entering(self) -> Float[Tensor, "pos d_model"]:
        """The residuals with which the row enters."""
        if self.resid is not None:
            return self.resid
        assert self.trunk is not None  # it would enter with tokens
        return self.trunk.residual(self.layer)[self.start : self.start + self.n_tokens]


@dataclass(frozen=True, eq=False)
class Pass:
    """What a pass leaves behind.

    Attributes:
        rows: Its rows.
        resid: Residuals of the new tokens after the last block that was run, padded on the right.
        kept: The same after each layer that was asked for, of the rows that were there.
        memory: By layer, keys and values of the new tokens; empty unless they were asked for.
    """

    rows: Sequence[PassRow]
    resid: Float[Tensor, "row pos d_model"]
    kept: dict[int, Tensor]
    memory: dict[int, tuple[Tensor, Tensor]]

    def reading(self, place: int) -> Reading:
        """One row's reading after the pass."""
        row = self.rows[place]
        n = row.n_tokens
        return Reading(
            n_tokens=n,
            parent=row.before,
            memory={
                layer: (keys[place, :, :n], values[place, :, :n])
                for layer, (keys, values) in self.memory.items()
                if layer > row.layer
            },
            resid={
                layer: resid[place, :n] for layer, resid in self.kept.items() if layer >= row.layer
            },
            last=self.resid[place, n - 1],
            trunk=row.trunk,
        )


def run_rows(
    model: TransformerBridge,
    rows: Sequence[PassRow],
    stop: int | None = None,
    keep: Collection[int] = (),
    observe: Observe | None = None,
    observed: Collection[int] = (),
    remember: bool = False,
    steer: Steers | None = None,
    keep_gradients: bool = False,
) -> Pass:
    """Run rows through the blocks up to `stop`.

    Args:
        model: A model inside `fast_modules`.
        rows: In the order in which they join. Either all enter with tokens, or none; those that
            enter at different layers begin at the same position.
        stop: How many of the model's blocks there are to run; by default all.
        keep: Layers whose residuals the result shall hold.
        observe: Called for each of `observed`, lowest layer first.
        observed: Layers to observe.
        remember: Whether the result shall hold keys and values.
        steer: What is done to the residuals; by default each row's `steering`.
        keep_gradients: See the module. The readings that rows continue have none.
    """
    device, first = device_of(model), rows[0].layer
    stop = model.cfg.n_layers if stop is None else stop
    starts, lengths = [row.start for row in rows], [row.n_tokens for row in rows]
    n_new = max(lengths)
    entering_at: dict[int, list[PassRow]] = {}
    for row in rows if first >= 0 else ():
        entering_at.setdefault(row.layer, []).append(row)
    layout = _Layout(starts, lengths, device)
    # Whole rows need no mask beside the causal one, which would grow with the square of the tokens.
    needs_mask = len({*starts, 0}) > 1 or len(entering_at) > 1
    cache = PassCache([row.before for row in rows], remember)
    held: dict[int, Tensor] = {}

    with gradients(model) if keep_gradients else nullcontext():
        if steer is None:
            steer = RowSteering([row.steering for row in rows], device=device, per_row=True)
        steered = set(steer.layers)
        roles = layout.roles(rows) if steered else None

        def after(layer: int, resid: Tensor | None) -> Tensor:
            """New rows join, and every row that is there is steered."""
            joining = [
                pad(row.entering(), (0, 0, 0, n_new - row.n_tokens))[None]
                for row in entering_at.get(layer, ())
            ]
            if resid is None or joining:
                resid = torch.cat([*([] if resid is None else [resid]), *joining])
            before = resid
            if layer in steered and roles is not None:
                resid = steer.apply(layer, resid, roles.of_rows(slice(len(resid))))
            if observe is not None and layer in observed:
                observe(layer, before, resid)
            if layer in keep or layer == stop - 1:
                held[layer] = resid
            return resid

        entering = after(first, None) if first >= 0 else None
        if first < stop - 1:
            run_blocks(
                model,
                first + 1,
                stop,
                tokens=right_padded([row.tokens or () for row in rows], device)
                if entering is None
                else None,
                resid=entering,
                n_rows=len(rows),
                positions=layout.positions,
                masks=layout.masks(model) if needs_mask else None,
                cache=cache,
                layers={*entering_at, *steered, *observed, *keep, stop - 1},
                function=after,
            )
    kept = {layer: resid for layer, resid in held.items() if layer in keep}
    return Pass(rows, held[stop - 1], kept, cache.new)


class _Layout:
    """Positions of new tokens and of what stands before; one row of them where all rows agree."""

    def __init__(self, starts: Sequence[int], lengths: Sequence[int], device: torch.device) -> None:
        self.device, self.lengths = device, lengths
        begin = torch.tensor(starts[:1] if len(set(starts)) == 1 else starts, device=device)
        self.begin = begin[:, None]
        self.positions = self.begin + torch.arange(max(lengths), device=device)
        self.known = torch.arange(max(starts), device=device).expand(len(begin), -1)

    def masks(self, model: TransformerBridge) -> Any:
        """Attention masks for the model's layers."""
        is_real = [self.known < self.begin, torch.ones_like(self.positions, dtype=torch.bool)]
        keys, real = torch.cat([self.known, self.positions], dim=1), torch.cat(is_real, dim=1)
        config = model.original_model.config
        return attention_masks(config, self.positions, keys, real, dtype_of(model))

    def roles(self, rows: Sequence[PassRow]) -> TokenRoles:
        """Which new tokens are prompt and which response, of those that may be steered."""
        stops = [row.start + n for row, n in zip(rows, self.lengths, strict=True)]
        ends = [
            s if row.n_prompt is None else row.n_prompt for row, s in zip(rows, stops, strict=True)
        ]
        stop = torch.tensor(stops, device=self.device)[:, None]
        n_prompt = torch.tensor(ends, device=self.device)[:, None]
        real = (self.positions < stop) & _touched(rows, self.positions.shape[1], self.device)
        place = self.positions - n_prompt
        return TokenRoles(prompt=real & (place < 0), response=real & (place >= 0), place=place)


def _touched(rows: Sequence[PassRow], width: int, device: torch.device) -> Bool[Tensor, "row pos"]:
    touched = torch.ones(len(rows), width, dtype=torch.bool, device=device)
    for i, row in enumerate(rows):
        if row.touched is not None:
            touched[i, : row.n_tokens] = row.touched.to(device)
    return touched


@contextmanager
def gradients(model: TransformerBridge) -> Iterator[None]:
    """Gradients are recorded, whatever the caller set, but not those of weights."""
    wanting = [p for p in model.original_model.parameters() if p.requires_grad]
    try:
        for parameter in wanting:
            parameter.requires_grad_(False)
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for parameter in wanting:
            parameter.requires_grad_(True)


def run_blocks(
    model: TransformerBridge,
    first: int,
    stop: int,
    *,
    positions: Int[Tensor, "#row pos"],
    masks: Any,
    cache: PassCache | SlotCache | None,
    layers: Collection[int],
    function: Callable[[int, Tensor], Tensor | None],
    tokens: Int[Tensor, "row pos"] | None = None,
    resid: Float[Tensor, "_ pos d_model"] | None = None,
    n_rows: int | None = None,
    logits: bool = False,
) -> Float[Tensor, "row pos vocab"] | None:
    """Call the Hugging Face model with the blocks ``first ≤ l < stop`` only.

    Args:
        model: A model inside `fast_modules`.
        first: The first block to run.
        stop: Where to stop.
        positions: Of the tokens.
        masks: As `attention_masks` gives them; ``None`` leaves them to the model, which is right
            for rows from their beginning on that are padded on the right.
        cache: What stands before, and takes the new keys and values.
        layers: Blocks after which `function` is called.
        function: See `steerlens.engine.modules.on_blocks`.
        tokens: What is read, when `first` is 0.
        resid: Otherwise, what enters block `first`.
        n_rows: How many rows there are at the end, when some join on the way.
        logits: Go on through the final norm and unembedding.
    """
    root: Any = model.original_model
    body = None if logits else getattr(root, root.base_model_prefix, None)
    if resid is not None:
        tokens = no_words(resid, n_rows)
    options = {
        "input_ids": tokens,
        "position_ids": positions,
        "attention_mask": masks,
        "past_key_values": cache,
        "use_cache": cache is not None,
    }
    hooked = [layer for layer in layers if first <= layer < stop]
    with on_blocks(blocks_of(model), hooked, function), only_blocks(model, first, stop, resid):
        if body is not None:
            body(**options)
            return None
        if not logits:
            root(logits_to_keep=1, **options)
            return None
        out: Tensor = root(**options).logits
        return out
