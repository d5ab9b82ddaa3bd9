"""Scoring given continuations: what each row, under its own steering, predicts token by token.

A row is a prompt, a continuation and a steering. Its continuation is fed, not chosen (teacher
forcing), and the logits that predict each of its tokens are handed to a visitor: step 0 is
predicted from the last prompt token, step *t* from continuation token *t* − 1. Only some positions'
logits exist at a time: for a vocabulary of 49,152 those of 32 tokens under 1,000 steerings would
be 6 GB.

Rows differ in few of the numbers they need, and what they share is computed once:

* below the first layer at which a row is steered, it is the unsteered run of its tokens (the
  trunk, `steerlens.engine.reading`); rows join a pass at their own layer and ride through the
  rest together;
* the beginning that all prompts share (a chat preamble) is steered once for all rows whose
  steerings do the same to a prompt, such as one vector at scopes ``prompt`` and ``all``;
* the rest of a prompt likewise, so that only continuations are run row by row; a row that leaves
  the prompt alone (scope ``response``) takes all of it from the trunk.

A **stretch** is a run of tokens of one row between two such places. Stretches that begin at the
same position ride in one pass: their masks and positions agree, also where rows join on the way.

A model on the bridge's own path (`steerlens.engine.paths`) is scored by it, row by row in padded
batches, with the same results.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.batches import common_prefix, left_padded
from steerlens.engine.memory import attention_masks
from steerlens.engine.modules import device_of, fast_modules, on_blocks, only_blocks, unembed
from steerlens.engine.paths import choose_path
from steerlens.engine.reading import Reading, first_touched, read
from steerlens.errors import SteerlensError
from steerlens.steering import RowSteering, Steering, TokenRoles

__all__ = ["ForcedRow", "Visit", "score_rows"]

Visit = Callable[[list[int], list[int], Float[Tensor, "position vocab"]], None]
Memory = dict[int, tuple[Tensor, Tensor]]
Effect = tuple[tuple[int, bytes, float, float], ...]
Item = TypeVar("Item")

# Tokens of one pass, padding included: enough to keep the matrix units busy, little enough that
# Ctrl-C is answered within seconds on two cores.
_PASS_TOKENS = 2048
# Rows of several prompts are taken together until they are worth a pass.
_WORTH_A_PASS = 1024
# A shared beginning shorter than this is not worth a pass of its own.
_MIN_PREAMBLE = 8
# Different steered prompts at a time: each holds its own memory of the prompts at work.
_MOST_EFFECTS = 128
# Logits at a time: 128 positions of a vocabulary of 49,152 (25 MB in float32). Larger blocks are
# taken from the system anew at each use, which doubled the time of what visitors do with them.
_MOST_LOGITS = 128 * 49_152
# Rows of a padded batch on the bridge's own path, whose eager attention holds every score.
_PLAIN_ROWS = 32


@dataclass(frozen=True, eq=False)
class ForcedRow:
    """One continuation to score.

    Attributes:
        index: The caller's number of it.
        prompt: Prompt token ids; at least one.
        continuation: Token ids to predict; at least one. The last is predicted, not read.
        steering: Its own interventions; ``None`` leaves the model alone.
    """

    index: int
    prompt: tuple[int, ...]
    continuation: tuple[int, ...]
    steering: Steering | None

    @cached_property
    def tokens(self) -> tuple[int, ...]:
        """Everything that is read."""
        return self.prompt + self.continuation[:-1]

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers touched, ascending; none when it is not steered."""
        return () if self.steering is None else self.steering.layers

    @cached_property
    def effect(self) -> Effect:
        """What is done to the prompt, as a value: rows that agree share the steered prompt."""
        if self.steering is None:
            return ()
        return tuple(
            (one.layer, one.direction.float().cpu().numpy().tobytes(), *one.coefficients)
            for one in self.steering.touching("prompt").interventions
        )


@torch.inference_mode()
def score_rows(
    model: TransformerBridge,
    rows: Sequence[ForcedRow],
    visit: Visit,
    batch_size: int | None = None,
) -> None:
    """Logits that predict each token of each row's continuation, some positions at a time.

    Args:
        model: A hooked model.
        rows: Prompts and continuations with their steering.
        visit: Called with row indices, steps, and the logits of that row at that step. Every
            (row, step) comes once, in an order of the engine's own: rows of one prompt and equal
            steps mostly side by side.
        batch_size: Rows a forward pass at most; by default as many as a pass holds.

    Raises:
        SteeringError: A steering does not fit the model.
        SteerlensError: A row without a prompt or continuation, or longer than the context.
    """
    _check(model, rows)
    if not choose_path(model).is_fast:
        _score_plainly(model, rows, visit, batch_size)
        return
    with fast_modules(model):
        for block in _blocks(rows):
            _Block(model, block, visit, batch_size).run()


def _check(model: TransformerBridge, rows: Sequence[ForcedRow]) -> None:
    context = model.cfg.n_ctx
    for row in rows:
        if not row.prompt or not row.continuation:
            raise SteerlensError(
                f"row {row.index} has {len(row.prompt)} prompt and {len(row.continuation)} "
                "continuation tokens; at least one of each is needed"
            )
        if len(row.tokens) > context:
            raise SteerlensError(
                f"prompt and continuation of row {row.index} have {len(row.tokens) + 1} tokens; "
                f"the model's context is {context}"
            )
    for steering in {id(row.steering): row.steering for row in rows}.values():
        if steering is not None:
            steering.check_model(model)


def _blocks(rows: Sequence[ForcedRow]) -> Iterator[list[ForcedRow]]:
    """Rows whose prompts are steered in at most `_MOST_EFFECTS` ways, shallow layers first."""
    by_effect: dict[Effect, list[ForcedRow]] = {}
    for row in rows:
        by_effect.setdefault(row.effect, []).append(row)
    groups = sorted(by_effect.items(), key=lambda item: [layer for layer, *_ in item[0]])
    for start in range(0, len(groups), _MOST_EFFECTS):
        yield [row for _, group in groups[start : start + _MOST_EFFECTS] for row in group]


@dataclass(frozen=True, eq=False)
class _Stretch:
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

    def __init__(self, stretches: Sequence[_Stretch], remember: bool) -> None:
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


def _advance(
    model: TransformerBridge, stretches: Sequence[_Stretch], remember: bool = False
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
    joining: dict[int, list[_Stretch]] = {}
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
            only_blocks(model, first + 1, n_layers),
        ):
            _run_body(
                model,
                inputs_embeds=resid,
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


def _residuals(stretch: _Stretch, layer: int, width: int) -> Float[Tensor, "width d_model"]:
    """The trunk's residuals of a stretch, padded on the right."""
    resid = stretch.trunk.residual(layer)[stretch.start : stretch.stop]
    return torch.nn.functional.pad(resid, (0, 0, 0, width - len(resid)))


class _Block:
    """Rows that are scored together: what they share is known for as long as this lives."""

    def __init__(
        self,
        model: TransformerBridge,
        rows: Sequence[ForcedRow],
        visit: Visit,
        batch_size: int | None,
    ) -> None:
        self.model = model
        self.rows = rows
        self.visit = visit
        self.batch_size = batch_size or len(rows)
        n_layers = model.cfg.n_layers
        prompts = list(dict.fromkeys(row.prompt for row in rows))
        shared = common_prefix(prompts) if len(prompts) > 1 else 0
        self.preamble = prompts[0][:shared] if shared >= _MIN_PREAMBLE else ()
        # How deep the trunk must be, and at which layers rows part from it.
        touched = {first_touched(row.steering, n_layers) for row in rows}
        self.stop = min(max(touched) + 1, n_layers)
        ends = {row.layers[0] if row.layers else n_layers - 1 for row in rows}
        self.keep = sorted(ends | (touched - {n_layers}))
        self.begin: Reading | None = None
        self.openings: dict[Effect, Memory] = {}

    def run(self) -> None:
        """Score all rows."""
        if self.preamble:
            [self.begin] = read(self.model, [self.preamble], [None], self.stop, self.keep)
            self._open(self.begin)
        begin = len(self.preamble)
        by_tokens: dict[tuple[int, ...], list[ForcedRow]] = {}
        for row in self.rows:
            by_tokens.setdefault(row.tokens, []).append(row)
        # Longest first, so that memory peaks at once; equal prompts side by side.
        order = sorted(by_tokens, key=lambda tokens: (-len(tokens), tokens))
        for some in _packs(
            order, lambda tokens: len(tokens) - begin, _PASS_TOKENS, self.batch_size
        ):
            rest = [tokens[begin:] for tokens in some]
            trunks = read(self.model, rest, [self.begin] * len(some), self.stop, self.keep)
            trunk_of = dict(zip(some, trunks, strict=True))
            rows = [row for tokens in some for row in by_tokens[tokens]]
            self._score_unsteered([row for row in rows if not row.layers], trunk_of)
            for unit in _units([row for row in rows if row.layers]):
                self._score_steered(unit, trunk_of)

    def _open(self, begin: Reading) -> None:
        """Steer the preamble once for all rows that do the same to it."""
        users = Counter(row.effect for row in self.rows)
        example = {row.effect: row for row in self.rows}
        wanted = {
            effect: self._prompt_stretch(example[effect], begin, len(self.preamble))
            for effect, n_users in users.items()
            if effect and n_users > 1
        }
        self.openings = self._remembered(wanted)

    def _prompt_stretch(self, row: ForcedRow, trunk: Reading, stop: int) -> _Stretch:
        """The steered prompt up to `stop`, from the end of its opening on."""
        before = self.openings.get(row.effect)
        assert row.steering is not None  # its effect is not empty
        return _Stretch(
            trunk=trunk,
            steering=row.steering.touching("prompt"),
            n_prompt=stop,
            start=0 if before is None else len(self.preamble),
            stop=stop,
            before=before or {},
        )

    def _remembered(self, stretches: dict[Item, _Stretch]) -> dict[Item, Memory]:
        """Memories after stretches, by the same keys."""
        known = {}
        keys = {id(stretch): key for key, stretch in stretches.items()}
        for some in _passes(list(stretches.values()), self.batch_size):
            _, memories = _advance(self.model, some, remember=True)
            known.update({keys[id(one)]: m for one, m in zip(some, memories, strict=True)})
        return known

    def _score_unsteered(
        self, rows: Sequence[ForcedRow], trunk_of: dict[tuple[int, ...], Reading]
    ) -> None:
        if not rows:
            return
        final = [
            trunk_of[row.tokens].residual(self.model.cfg.n_layers - 1)[len(row.prompt) - 1 :]
            for row in rows
        ]
        self._predict(
            torch.cat(final),
            [row.index for row in rows for _ in row.continuation],
            [step for row in rows for step in range(len(row.continuation))],
        )

    def _score_steered(
        self, rows: Sequence[ForcedRow], trunk_of: dict[tuple[int, ...], Reading]
    ) -> None:
        """Prompts that several rows share first, then what each row has of its own."""
        users = Counter((row.prompt, row.effect) for row in rows if row.effect)
        prompts = {
            (row.prompt, row.effect): self._prompt_stretch(
                row, trunk_of[row.tokens], len(row.prompt) - 1
            )
            for row in rows
            if users[row.prompt, row.effect] > 1 and len(row.prompt) - 1 > len(self.preamble)
        }
        known = self._remembered(prompts)
        row_of: dict[int, ForcedRow] = {}
        stretches = []
        for row in rows:
            opening = self.openings.get(row.effect)
            # The last prompt token predicts the first of the continuation, so it is run again.
            start, before = len(row.prompt) - 1, known.get((row.prompt, row.effect), {})
            if row.effect and not before:
                start, before = (len(self.preamble), opening) if opening else (0, {})
            assert row.steering is not None  # it touches a layer
            stretches.append(
                _Stretch(
                    trunk=trunk_of[row.tokens],
                    steering=row.steering,
                    n_prompt=len(row.prompt),
                    start=start,
                    stop=len(row.tokens),
                    before=before,
                )
            )
            row_of[id(stretches[-1])] = row
        for some in _passes(stretches, self.batch_size):
            resid, _ = _advance(self.model, some)
            self._predict_pass(resid, some, [row_of[id(one)] for one in some])

    def _predict_pass(
        self,
        resid: Float[Tensor, "row pos d_model"],
        stretches: Sequence[_Stretch],
        rows: Sequence[ForcedRow],
    ) -> None:
        """Steps outside, rows inside: a visitor meets rows of one prompt and step together."""
        n_steps = max(len(row.continuation) for row in rows)
        places = [
            (step, i)
            for step in range(n_steps)
            for i, row in enumerate(rows)
            if step < len(row.continuation)
        ]
        positions = [stretches[i].n_prompt - 1 - stretches[i].start + step for step, i in places]
        self._predict(
            resid[[i for _, i in places], positions],
            [rows[i].index for _, i in places],
            [step for step, _ in places],
        )

    def _predict(
        self, resid: Float[Tensor, "position d_model"], rows: list[int], steps: list[int]
    ) -> None:
        """Logits of some final residuals, handed over in chunks."""
        size = max(1, _MOST_LOGITS // self.model.cfg.d_vocab)
        for a in range(0, len(resid), size):
            b = a + size
            self.visit(rows[a:b], steps[a:b], unembed(self.model, resid[a:b]))


def _packs(
    items: Sequence[Item], width: Callable[[Item], int], budget: int, most: int
) -> Iterator[list[Item]]:
    """Items in order, in runs of at most `most` whose number times width stays in a budget."""
    pack: list[Item] = []
    widest = 0
    for item in items:
        full = len(pack) == most or max(widest, width(item)) * (len(pack) + 1) > budget
        if pack and full:
            yield pack
            pack, widest = [], 0
        pack.append(item)
        widest = max(widest, width(item))
    if pack:
        yield pack


def _units(rows: Sequence[ForcedRow]) -> Iterator[list[ForcedRow]]:
    """Rows in order, cut between prompts as soon as there are enough of them to fill a pass."""
    unit: list[ForcedRow] = []
    n_tokens = 0
    for row in rows:
        if unit and n_tokens >= _WORTH_A_PASS and row.prompt != unit[-1].prompt:
            yield unit
            unit, n_tokens = [], 0
        unit.append(row)
        n_tokens += len(row.continuation)
    if unit:
        yield unit


def _passes(stretches: Sequence[_Stretch], batch_size: int) -> Iterator[list[_Stretch]]:
    """Stretches that begin at one position, in passes of about equal size, as they join."""
    by_start: dict[int, list[_Stretch]] = {}
    for one in stretches:
        by_start.setdefault(one.start, []).append(one)
    for group in by_start.values():
        group.sort(key=lambda one: one.layer)
        width = max(one.stop - one.start for one in group)
        n_passes = -(-len(group) * width // _PASS_TOKENS)
        size = min(-(-len(group) // n_passes), batch_size)
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _score_plainly(
    model: TransformerBridge,
    rows: Sequence[ForcedRow],
    visit: Visit,
    batch_size: int | None = None,
) -> None:
    """The bridge's own path: padded batches whose logits stay within bounds, hooks and all."""
    ordered = sorted(rows, key=lambda row: -len(row.tokens))
    budget = max(1, _MOST_LOGITS // model.cfg.d_vocab)
    size = batch_size or _PLAIN_ROWS
    for batch in _packs(ordered, lambda row: len(row.continuation), budget, size):
        tokens, mask = left_padded([row.tokens for row in batch], device=device_of(model))
        n_prompt = torch.tensor([len(row.prompt) for row in batch], device=tokens.device)
        roles = TokenRoles.of_mask(mask, tokens.shape[1], n_prompt)
        compiled = RowSteering([r.steering for r in batch], device=tokens.device, per_row=True)
        n_steps = max(len(row.continuation) for row in batch)
        hooks = compiled.hooks(lambda roles=roles: roles)  # type: ignore[misc]
        with model.hooks(fwd_hooks=hooks):
            logits = model(tokens, attention_mask=mask, use_cache=False, logits_to_keep=n_steps)
        for row, own in zip(batch, logits, strict=True):
            steps = len(row.continuation)
            visit([row.index] * steps, list(range(steps)), own[-steps:])
