"""Decoding: rows flow through a fixed number of slots.

A **row** is one prompt with its own steering. Rows wait, longest prompt first and rows of one
prompt together. They are read into free slots, decode one token per step with all other active
rows, and leave when they end; waiting rows take their places, so the batch stays full to the end.
Active rows are always slots 0 … n−1: where no row waits, the last one fills the hole.

A sweep over layers × strengths × prompts is one stream of rows (`steerlens.steering.rows`). A row
whose logits are not finite ends with the reason ``"non-finite"``; the others go on. When memory
runs out, the number of slots is halved and the rows in flight start again.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.attention import decoding_attention, reading_attention
from steerlens.engine.batches import PASS_TOKENS, packs
from steerlens.engine.forward import PassRow, run_rows
from steerlens.engine.kernels import FEW_ROWS, Kernels, kernels
from steerlens.engine.memory import Reading, SlotCache
from steerlens.engine.modules import device_of, dtype_of, fast_modules, unembed
from steerlens.engine.reading import Trunks, first_touched
from steerlens.engine.rows import Choose, Row, advance, out_of_memory
from steerlens.engine.steps import Companions, adapt_rows, close_gaps, decode_step
from steerlens.errors import SteerlensError
from steerlens.steering.roles import TokenRoles
from steerlens.steering.rows import RowSteering

__all__ = ["decode_rows"]

# Waiting rows are admitted when one slot in so many is free: reading one row at a time would stall
# the others, waiting longer would leave slots empty.
_REFILL_SHARE = 8
# Tokens of a row up to which its memory may be kept in float32, at twice the size.
_SHORT = 2048


def _open(
    model: TransformerBridge, trunks: Trunks, rows: Sequence[Row]
) -> tuple[list[Reading], Float[Tensor, "row vocab"]]:
    """Read the prompts of some rows, each under its own steering, up to the first logits."""
    trunks.prepare(row.tokens for row in rows)
    readings = [trunks.readings[row.tokens] for row in rows]
    n_layers = model.cfg.n_layers
    layers = [first_touched(row.steering, n_layers) for row in rows]
    steered = [i for i, layer in enumerate(layers) if layer < n_layers]
    for pack in packs(steered, lambda i: len(rows[i].tokens), PASS_TOKENS, tight=True):
        pack.sort(key=layers.__getitem__)
        steerings = [rows[i].steering for i in pack]
        passed = run_rows(
            model,
            [
                PassRow(
                    trunk=readings[i],
                    layer=layers[i],
                    steering=steering and steering.touching("prompt"),
                )
                for i, steering in zip(pack, steerings, strict=True)
            ],
            remember=True,
        )
        for place, i in enumerate(pack):
            readings[i] = passed.reading(place)
    logits = unembed(model, _last(readings))
    if adaptive := [i for i, row in enumerate(rows) if row.threshold]:
        unsteered = unembed(model, _last([trunks.readings[rows[i].tokens] for i in adaptive]))
        logits = adapt_rows(logits, unsteered, rows, adaptive)
    return readings, logits


def _last(readings: Sequence[Reading]) -> Float[Tensor, "row d_model"]:
    return torch.stack([reading.last for reading in readings if reading.last is not None])


@torch.inference_mode()
def decode_rows(
    model: TransformerBridge,
    rows: Sequence[Row],
    n_slots: int,
    ends: frozenset[int],
    choose: Choose,
    finished: Callable[[Row], None],
) -> Kernels | None:
    """Decode every row to its end; results are written into the rows.

    Args:
        model: A model on the fast path.
        rows: Prompts with their steering.
        n_slots: Most rows decoded together.
        ends: Token ids that end a response.
        choose: Picks next tokens from logits.
        finished: Called with each row as it ends.

    Returns:
        How products were computed; ``None`` without rows.

    Raises:
        SteerlensError: Memory runs out even for one row at a time.
    """
    # Longest prompts first, so that memory peaks at once; rows of one prompt side by side.
    waiting = sorted(rows, key=lambda row: (-len(row.tokens), row.tokens, row.index))
    how: Kernels | None = None
    while waiting:
        n_together, n_steps = min(n_slots, len(waiting)), max(row.max_new_tokens for row in waiting)
        try:
            with (
                fast_modules(model),
                reading_attention(model),
                kernels(model, n_together, n_steps) as how,
            ):
                _Flow(model, waiting, n_together, ends, choose, finished, how).run()
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            if n_slots == 1:
                raise SteerlensError(
                    "not enough memory for one row; ask for fewer new tokens or shorter prompts"
                ) from error
            n_slots = max(1, n_slots // 2)
        waiting = [row for row in waiting if row.reason is None]
        for row in waiting:
            row.restart()
    return how


def _kept_in(model: TransformerBridge, n_slots: int, longest: int) -> torch.dtype | None:
    """What keys and values are kept in: float32 for few short rows on a CPU.

    A product of a few small matrices takes 3 µs in float32 and 24 in bfloat16.
    """
    few = n_slots <= FEW_ROWS and longest <= _SHORT and device_of(model).type == "cpu"
    return torch.float32 if few else None


@dataclass(eq=False)
class _Flow:
    """One run of waiting rows through the slots; arguments as for `decode_rows`."""

    model: TransformerBridge
    rows: Sequence[Row]
    n_slots: int
    ends: frozenset[int]
    choose: Choose
    finished: Callable[[Row], None]
    how: Kernels

    def __post_init__(self) -> None:
        rows, n_layers = self.rows, self.model.cfg.n_layers
        self.waiting = list(reversed(rows))
        self.active: list[Row] = []
        adaptive = [row for row in rows if row.threshold]
        self.trunks = Trunks(
            self.model,
            [(row.tokens, first_touched(row.steering, n_layers)) for row in rows]
            + [(row.tokens, n_layers) for row in adaptive],
        )
        longest = max(len(row.tokens) + row.max_new_tokens for row in rows)
        self.cache = SlotCache(self.n_slots, longest, _kept_in(self.model, self.n_slots, longest))
        self.companions = Companions(self.model, adaptive, self.n_slots, longest)
        self.steering = RowSteering([], per_row=True)

    def run(self) -> None:
        """Admit, step, and let go until no row is left."""
        while self.waiting or self.active:
            free = self.n_slots - len(self.active)
            if self.waiting and free >= min(len(self.waiting), -(-self.n_slots // _REFILL_SHARE)):
                self._admit(free)
            if self.active:
                self._step()

    def _admit(self, n_rows: int) -> None:
        rows = [self.waiting.pop() for _ in range(min(n_rows, len(self.waiting)))]
        readings, logits = _open(self.model, self.trunks, rows)
        self._take(rows, logits)
        for row, reading in zip(rows, readings, strict=True):
            if row.reason is None:
                for layer in range(self.model.cfg.n_layers):
                    self.cache.write(len(self.active), layer, *reading.keys_and_values(layer))
                self.active.append(row)
            if row.threshold:
                if row.reason is None:
                    self.companions.add(row, self.trunks.readings[row.tokens])
                self.trunks.release(row.tokens)
            self.trunks.release(row.tokens)
        self._recompile()

    def _recompile(self) -> None:
        on_response = [row.steering and row.steering.touching("response") for row in self.active]
        self.steering = RowSteering(on_response, device=device_of(self.model), per_row=True)

    def _step(self) -> None:
        """One token for every active row."""
        device = device_of(self.model)
        place = torch.tensor([[len(row.produced) - 1] for row in self.active], device=device)
        roles = TokenRoles(prompt=place < 0, response=place >= 0, place=place)

        def after(layer: int, resid: Tensor) -> Tensor:
            self.companions.watch(layer, resid)
            return self.steering.apply(layer, resid, roles)

        # Fused blocks know that this is a step; setting it in every module takes a millisecond.
        is_set = self.how.blocks == "fused" and device.type == "cpu"
        attention: AbstractContextManager[bool] = (
            nullcontext(True) if is_set else decoding_attention(self.model)
        )
        with attention as ours:
            dtype = torch.float32 if ours else dtype_of(self.model)
            layers = self.steering.layers | self.companions.layers
            logits = decode_step(
                self.model, self.cache, self.active, dtype, layers=layers, function=after
            )
            logits = self.companions.adapt(logits, self.active, dtype)
        self._take(self.active, logits)
        close_gaps(self.companions.rows, self.companions.cache)
        if close_gaps(self.active, self.cache):
            self._recompile()

    def _take(self, rows: Sequence[Row], logits: Float[Tensor, "row vocab"]) -> None:
        """Add the chosen token to each row, and end those that are done."""
        advance(logits, rows, self.choose, self.ends)
        for row in rows:
            if row.reason is not None:
                self.finished(row)
