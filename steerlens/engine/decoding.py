"""Decoding: rows flow through a fixed number of slots.

A **row** is one prompt with its own steering. Rows wait, longest prompt first and rows of one
prompt together; they are read into free slots (`steerlens.engine.reading`), decode one token a
step with all other active rows, and leave when they end; waiting rows take their places, so the
batch stays full to the end. Active rows are always slots 0 … n−1: a hole that no waiting row fills
is filled by the last one.

Each row carries its own interventions through `steerlens.steering.interventions.RowSteering`, so a
sweep over layers × strengths × prompts is one stream of rows. A row whose logits are not finite
ends with the reason ``"non-finite"``; the others go on. When memory runs out, the number of slots
is halved and the rows in flight start again.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.attention import decoding_attention, reading_attention
from steerlens.engine.batches import common_prefix
from steerlens.engine.memory import SlotCache, attention_masks
from steerlens.engine.modules import device_of, dtype_of, fast_modules, on_blocks, unembed
from steerlens.engine.packed_weights import packed_linears
from steerlens.engine.reading import Reading, branch, first_touched, read
from steerlens.engine.rows import Choose, Row, is_sound, out_of_memory
from steerlens.errors import SteerlensError
from steerlens.steering.roles import TokenRoles
from steerlens.steering.rows import RowSteering

__all__ = ["decode_rows", "first_logits"]

# A shared beginning shorter than this is not worth a pass of its own.
_MIN_PREAMBLE = 8
# Prompt tokens read in one pass: enough to keep the matrix units busy, little enough that Ctrl-C
# is answered within a second on two cores.
_READ_TOKENS = 2048
# Shorter passes are not split off: each has a fixed cost of its own.
_WORTH_A_PASS = 256
# Steps from which on packed weights pay: packing and unpacking 135M of them takes 0.3 s, a step
# over one row is 8 ms faster with them, over 96 rows 13 ms.
_WORTH_PACKING = 40
# Waiting rows are admitted when this share of the slots is free: reading one row at a time would
# stall the others, waiting longer would leave slots empty.
_REFILL_SHARE = 8


class _Library:
    """Readings of prompts, kept while a waiting row still needs them."""

    def __init__(self, model: TransformerBridge, rows: Sequence[Row]) -> None:
        self.model = model
        self.n_layers = model.cfg.n_layers
        self.layers: dict[tuple[int, ...], set[int]] = {}
        self.users: dict[tuple[int, ...], int] = {}
        for row in rows:
            touched = first_touched(row.steering, self.n_layers)
            self.layers.setdefault(row.tokens, set()).add(touched)
            self.users[row.tokens] = self.users.get(row.tokens, 0) + 1
        self.readings: dict[tuple[int, ...], Reading] = {}
        prompts = list(self.layers)
        shared = common_prefix(prompts) if len(prompts) > 1 else 0
        self.preamble = prompts[0][:shared] if shared >= _MIN_PREAMBLE else ()
        self._start: Reading | None = None

    def _stop(self, prompts: Sequence[tuple[int, ...]]) -> int:
        """Blocks that must be run unsteered for these prompts."""
        deepest = max(max(self.layers[prompt]) for prompt in prompts)
        return min(deepest + 1, self.n_layers)

    def _kept(self, prompts: Sequence[tuple[int, ...]]) -> list[int]:
        asked = {layer for prompt in prompts for layer in self.layers[prompt]}
        return sorted(asked - {self.n_layers})

    def prepare(self, prompts: Sequence[tuple[int, ...]]) -> None:
        """Read the prompts that are not known yet, the shared beginning once for all."""
        missing = [p for p in dict.fromkeys(prompts) if p not in self.readings]
        if not missing:
            return
        every = list(self.layers)
        if self.preamble and self._start is None:
            [self._start] = read(
                self.model, [self.preamble], [None], self._stop(every), self._kept(every)
            )
        begin = len(self.preamble)
        for some in _chunks(missing, begin):
            rest = [prompt[begin:] for prompt in some]
            parents = [self._start] * len(some)
            read_now = read(self.model, rest, parents, self._stop(some), self._kept(some))
            self.readings.update(zip(some, read_now, strict=True))

    def release(self, prompt: tuple[int, ...]) -> None:
        """One row less needs this prompt."""
        self.users[prompt] -= 1
        if self.users[prompt] == 0:
            self.readings.pop(prompt, None)


def _chunks(prompts: Sequence[tuple[int, ...]], begin: int = 0) -> Iterator[list[tuple[int, ...]]]:
    """Prompts, longest first, in runs for one pass; their first `begin` tokens are not read.

    A run holds at most `_READ_TOKENS` tokens with padding, and ends early where the next prompt
    would be padded to more than half as much again, once it is worth a pass.
    """
    chunk: list[tuple[int, ...]] = []
    for prompt in prompts:
        width = max((len(one) - begin for one in chunk), default=0)
        own = len(prompt) - begin
        full = max(width, own) * (len(chunk) + 1) > _READ_TOKENS
        if chunk and (full or (width > 1.5 * own and width * len(chunk) > _WORTH_A_PASS)):
            yield chunk
            chunk = []
        chunk.append(prompt)
    if chunk:
        yield chunk


@dataclass(frozen=True, eq=False)
class _Opened:
    """A row whose prompt is read: logits of its first response token, and its memory."""

    row: Row
    trunk: Reading
    above: dict[int, tuple[Tensor, Tensor]]
    logits: Tensor

    def write(self, cache: SlotCache, slot: int) -> None:
        """Put the prompt's keys and values into a slot."""
        start = 0
        for reading in self.trunk.chain():
            for layer, (keys, values) in reading.memory.items():
                if layer not in self.above:
                    cache.write(slot, layer, start, keys, values)
            start += reading.n_tokens
        for layer, (keys, values) in self.above.items():
            cache.write(slot, layer, 0, keys, values)


def _open(model: TransformerBridge, library: _Library, rows: Sequence[Row]) -> list[_Opened]:
    """Read the prompts of some rows, each under its own steering."""
    library.prepare([row.tokens for row in rows])
    trunks = [library.readings[row.tokens] for row in rows]
    n_layers = model.cfg.n_layers
    steered = [i for i, r in enumerate(rows) if first_touched(r.steering, n_layers) < n_layers]
    above: list[dict[int, tuple[Tensor, Tensor]]] = [{} for _ in rows]
    last = [trunk.last for trunk in trunks]
    start = 0
    for some in _chunks([rows[i].tokens for i in steered]):
        here = steered[start : start + len(some)]
        start += len(some)
        branches = branch(
            model,
            [trunks[i] for i in here],
            [s for s in (rows[i].steering for i in here) if s is not None],
        )
        for i, one in zip(here, branches, strict=True):
            above[i], last[i] = one.memory, one.last
    logits = unembed(model, torch.stack([one for one in last if one is not None]))
    return [
        _Opened(row, trunk, over, own)
        for row, trunk, over, own in zip(rows, trunks, above, logits, strict=True)
    ]


@torch.inference_mode()
def first_logits(
    model: TransformerBridge,
    rows: Sequence[Row],
    batch_size: int,
    visit: Callable[[list[int], Float[Tensor, "row vocab"]], None],
) -> None:
    """Logits of the first response token of every row, a batch at a time.

    Args:
        model: A model on the fast path.
        rows: Prompts with their steering.
        batch_size: Rows a batch.
        visit: Called with the rows' indices and their logits.
    """
    waiting = _in_order(rows)
    library = _Library(model, rows)
    with fast_modules(model), reading_attention(model):
        for start in range(0, len(waiting), batch_size):
            batch = waiting[start : start + batch_size]
            opened = _open(model, library, batch)
            visit([row.index for row in batch], torch.stack([one.logits for one in opened]))
            for row in batch:
                library.release(row.tokens)


def _in_order(rows: Sequence[Row]) -> list[Row]:
    """Longest prompts first, so memory peaks at once; rows of one prompt side by side."""
    return sorted(rows, key=lambda row: (-len(row.tokens), row.tokens, row.index))


@torch.inference_mode()
def decode_rows(
    model: TransformerBridge,
    rows: Sequence[Row],
    n_slots: int,
    ends: frozenset[int],
    choose: Choose,
    finished: Callable[[Row], None],
) -> None:
    """Decode every row to its end; results are written into the rows.

    Args:
        model: A model on the fast path.
        rows: Prompts with their steering.
        n_slots: Rows decoded together at most.
        ends: Token ids that end a response.
        choose: Picks next tokens from logits, given the rows' indices.
        finished: Called with each row as it ends.

    Raises:
        SteerlensError: Memory runs out even for one row at a time.
    """
    waiting = _in_order(rows)
    while waiting:
        try:
            with fast_modules(model), reading_attention(model), _packed(model, waiting):
                _Flow(model, waiting, n_slots, ends, choose, finished).run()
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
            row.produced.clear()
        # A sampler begins the rows' random numbers anew.
        restart = getattr(choose, "restart", None)
        if restart is not None:
            restart([row.index for row in waiting])


def _packed(model: TransformerBridge, rows: Sequence[Row]) -> AbstractContextManager[Any]:
    """Packed weights for as many steps as pay for packing them."""
    if max(row.max_new_tokens for row in rows) < _WORTH_PACKING:
        return nullcontext()
    return packed_linears(model.original_model)


class _Flow:
    """One run of waiting rows through the slots."""

    def __init__(
        self,
        model: TransformerBridge,
        rows: Sequence[Row],
        n_slots: int,
        ends: frozenset[int],
        choose: Choose,
        finished: Callable[[Row], None],
    ) -> None:
        self.model = model
        self.waiting = list(reversed(rows))
        self.n_slots = min(n_slots, len(rows))
        self.ends = ends
        self.choose = choose
        self.finished = finished
        self.known = _Library(model, rows)
        longest = max(len(row.tokens) + row.max_new_tokens for row in rows)
        self.cache = SlotCache(self.n_slots, longest)
        self.active: list[Row] = []
        self.steering = RowSteering([], per_row=True)
        self.layers = {
            one.layer
            for row in rows
            if row.steering is not None
            for one in row.steering.interventions
        }

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
        opened = _open(self.model, self.known, rows)
        self._take(rows, torch.stack([one.logits for one in opened]))
        for one in opened:
            self.known.release(one.row.tokens)
            if one.row.reason is None:
                one.write(self.cache, len(self.active))
                self.active.append(one.row)
        self._recompile()

    def _recompile(self) -> None:
        on_response = [row.steering and row.steering.touching("response") for row in self.active]
        self.steering = RowSteering(on_response, device=device_of(self.model), per_row=True)

    def _step(self) -> None:
        """One token for every active row."""
        device = device_of(self.model)
        root = self.model.original_model
        lengths = [len(row.tokens) + len(row.produced) - 1 for row in self.active]
        positions = self.cache.begin_step(lengths, device)
        keys = torch.arange(self.cache.width, device=device)[None]
        tokens = torch.tensor([[row.produced[-1]] for row in self.active], device=device)
        real = torch.ones_like(keys, dtype=torch.bool)
        with self._steered(), decoding_attention(self.model) as ours:
            dtype = torch.float32 if ours else dtype_of(self.model)
            out = root(
                input_ids=tokens,
                position_ids=positions,
                attention_mask=attention_masks(root.config, positions, keys, real, dtype),
                past_key_values=self.cache,
                use_cache=True,
            )
        self._take(self.active, out.logits[:, -1])
        self._close_gaps()

    @contextmanager
    def _steered(self) -> Iterator[None]:
        every = torch.ones(len(self.active), 1, dtype=torch.bool, device=device_of(self.model))
        roles = TokenRoles(prompt=~every, response=every)

        def after(layer: int, resid: Tensor) -> Tensor:
            return self.steering.apply(layer, resid, roles)

        with on_blocks(self.model, self.layers & self.steering.stages.keys(), after):
            yield

    def _take(self, rows: Sequence[Row], logits: Float[Tensor, "row vocab"]) -> None:
        """Add the chosen token to each row, and end those that are done."""
        following = self.choose(logits, [row.index for row in rows])
        finite = is_sound(logits, following)
        for row, token, sound in zip(rows, following.tolist(), finite, strict=True):
            row.take(token, sound, self.ends)
            if row.reason is not None:
                self.finished(row)

    def _close_gaps(self) -> None:
        """Fill the slots of ended rows with the last active ones."""
        if all(row.reason is None for row in self.active):
            return
        slot = 0
        while slot < len(self.active):
            if self.active[slot].reason is None:
                slot += 1
                continue
            last = self.active.pop()
            if slot < len(self.active):
                if last.reason is None:
                    self.cache.move(len(self.active), slot)
                self.active[slot] = last
        self._recompile()
