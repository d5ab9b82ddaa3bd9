"""Scoring given continuations: what each row, under its own steering, predicts token by token.

A row is a prompt, a continuation and a steering. Its continuation is fed, not chosen (teacher
forcing), and the logits that predict each of its tokens are handed to a visitor: step 0 is
predicted from the last prompt token, step *t* from continuation token *t* − 1. Only some positions'
logits exist at a time: with a vocabulary of 49,152 those of 32 tokens under 1,000 steerings would
be 6 GB.

What rows share is computed once:

* below the first layer at which a row is steered, it is the unsteered run of its tokens, from which
  it parts there (`steerlens.engine.forward`);
* the beginning that all prompts share (a chat preamble) is steered once for all rows whose
  steerings do the same to a prompt, such as one vector at scopes ``prompt`` and ``all``;
* so is the rest of a prompt, so that only continuations are run row by row. A row that leaves the
  prompt alone (scope ``response``) takes all of it from the unsteered run.

On the plain path (`steerlens.engine.choosing`) rows are scored whole, in padded batches.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.attention import branching_attention
from steerlens.engine.batches import PASS_TOKENS, common_prefix, packs
from steerlens.engine.choosing import running
from steerlens.engine.forward import PassRow, run_rows
from steerlens.engine.fused_blocks import fused_blocks
from steerlens.engine.memory import Reading
from steerlens.engine.modules import device_of, fast_modules, unembed
from steerlens.engine.paths import BRIDGE, FastPath
from steerlens.engine.plain import bridge_pass
from steerlens.engine.reading import MIN_PREAMBLE, first_touched, read
from steerlens.errors import SteeringError, SteerlensError
from steerlens.steering.interventions import Steering
from steerlens.steering.operations import Intervention
from steerlens.steering.rows import RowSteering

__all__ = ["ForcedRow", "Visit", "score_rows"]

Visit = Callable[[list[int], list[int], Float[Tensor, "position vocab"]], None]
Effect = tuple[tuple[Hashable, ...], ...]
Item = TypeVar("Item")

# Rows of several prompts are taken together until they are worth a pass.
_WORTH_A_PASS = 1024
# Different steered prompts at a time: each holds its own memory of the prompts at work.
_MOST_EFFECTS = 128
# Logits at a time: 25 MB in float32. Blocks above 32 MB are taken from the system anew at each use:
# copying 256 positions took 8 times as long as twice 128.
_MOST_LOGITS = 128 * 49_152
# Rows of a padded batch on the bridge's own path, whose eager attention holds every score.
_PLAIN_ROWS = 32


@dataclass(frozen=True, eq=False)
class ForcedRow:
    """One continuation to score.

    Attributes:
        index: The caller's number for it.
        prompt: Prompt token ids; at least one.
        continuation: Token ids to predict; at least one. The last is predicted, not read.
        steering: Its interventions; ``None`` leaves the model alone.
        first_step: The first step to predict; continuation tokens before it are only read.
    """

    index: int
    prompt: tuple[int, ...]
    continuation: tuple[int, ...]
    steering: Steering | None
    first_step: int = 0

    @cached_property
    def tokens(self) -> tuple[int, ...]:
        """Everything that is read."""
        return self.prompt + self.continuation[:-1]

    @property
    def steps(self) -> range:
        """The steps to predict."""
        return range(self.first_step, len(self.continuation))

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers touched, ascending; none when it is not steered."""
        return () if self.steering is None else self.steering.layers

    @cached_property
    def effect(self) -> Effect:
        """What is done to the prompt, as a value: rows that agree share the steered prompt."""
        if self.steering is None:
            return ()
        return tuple(map(_as_value, self.steering.touching("prompt").interventions))


def _as_value(intervention: Intervention) -> tuple[Hashable, ...]:
    """Everything about an intervention but its name and the tokens it touches."""
    names = [field.name for field in fields(intervention) if field.name not in ("label", "scope")]
    return tuple(
        value.float().cpu().numpy().tobytes() if isinstance(value, Tensor) else value
        for value in (getattr(intervention, name) for name in names)
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
        visit: Called with row indices, steps, and the logits of each row at its step. Every (row,
            step) comes once; rows of one prompt and equal steps mostly come side by side.
        batch_size: Most rows per forward pass; by default as many as a pass holds.

    Raises:
        SteeringError: A steering does not fit the model, or its strength is adaptive.
        SteerlensError: A row without a prompt or continuation, or longer than the context.
    """
    _check(model, rows)
    with running(model, max((len(row.tokens) for row in rows), default=0)) as path:
        if not path.is_fast:
            _score_plainly(model, rows, visit, batch_size, path)
            return
        with fast_modules(model), fused_blocks(model):
            for block in _blocks(rows):
                _Block(model, block, visit, batch_size or len(block)).run()


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
            if steering.adaptive:
                raise SteeringError(
                    "an adaptive strength is for decoding, and these texts are scored as they are; "
                    "steer with adaptive=0, or see what it does with token_effects"
                )


def _blocks(rows: Sequence[ForcedRow]) -> Iterator[list[ForcedRow]]:
    """Rows whose prompts are steered in at most `_MOST_EFFECTS` ways, shallow layers first."""
    by_effect: dict[Effect, list[ForcedRow]] = {}
    for row in rows:
        by_effect.setdefault(row.effect, []).append(row)
    groups = sorted(by_effect.items(), key=lambda item: min(item[1][0].layers, default=0))
    for start in range(0, len(groups), _MOST_EFFECTS):
        yield [row for _, group in groups[start : start + _MOST_EFFECTS] for row in group]


@dataclass(eq=False)
class _Block:
    """Rows that are scored together: what they share is known for as long as this lives."""

    model: TransformerBridge
    rows: Sequence[ForcedRow]
    visit: Visit
    batch_size: int

    def __post_init__(self) -> None:
        rows, n_layers = self.rows, self.model.cfg.n_layers
        prompts = list(dict.fromkeys(row.prompt for row in rows))
        self.preamble = prompts[0][: common_prefix(prompts, MIN_PREAMBLE)]
        # How deep the trunk must be, and at which layers rows part from it.
        touched = {first_touched(row.steering, n_layers) for row in rows}
        self.stop = min(max(touched) + 1, n_layers)
        ends = {row.layers[0] if row.layers else n_layers - 1 for row in rows}
        self.keep = sorted(ends | (touched - {n_layers}))
        self.begin: Reading | None = None
        self.openings: dict[Effect, Reading] = {}

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
        for some in packs(order, lambda tokens: len(tokens) - begin, PASS_TOKENS, self.batch_size):
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
            effect: self._prompt_part(example[effect], begin, len(self.preamble))
            for effect, n_users in users.items()
            if effect and n_users > 1
        }
        self.openings = self._read_parts(wanted)

    def _prompt_part(self, row: ForcedRow, trunk: Reading, stop: int) -> PassRow:
        """The steered prompt up to `stop`, from the end of its opening on."""
        assert row.steering is not None  # its effect is not empty
        steering = row.steering.touching("prompt")
        return PassRow(
            trunk=trunk,
            layer=steering.layers[0],
            before=self.openings.get(row.effect),
            stop=stop,
            steering=steering,
        )

    def _read_parts(self, parts: dict[Item, PassRow]) -> dict[Item, Reading]:
        """Readings of steered parts, by the same keys."""
        readings = {}
        key_of = {id(part): key for key, part in parts.items()}
        for some in _passes(list(parts.values()), self.batch_size):
            passed = run_rows(self.model, some, remember=True)
            readings.update({key_of[id(part)]: passed.reading(i) for i, part in enumerate(some)})
        return readings

    def _score_unsteered(
        self, rows: Sequence[ForcedRow], trunk_of: dict[tuple[int, ...], Reading]
    ) -> None:
        if not rows:
            return
        final = [
            trunk_of[row.tokens].residual(self.model.cfg.n_layers - 1)[
                len(row.prompt) - 1 + row.first_step :
            ]
            for row in rows
        ]
        self._predict(
            torch.cat(final),
            [row.index for row in rows for _ in row.steps],
            [step for row in rows for step in row.steps],
        )

    def _score_steered(
        self, rows: Sequence[ForcedRow], trunk_of: dict[tuple[int, ...], Reading]
    ) -> None:
        """Prompts that several rows share first, then what each row has of its own."""
        users = Counter((row.prompt, row.effect) for row in rows if row.effect)
        prompts = {
            (row.prompt, row.effect): self._prompt_part(
                row, trunk_of[row.tokens], len(row.prompt) - 1
            )
            for row in rows
            if users[row.prompt, row.effect] > 1 and len(row.prompt) - 1 > len(self.preamble)
        }
        known = self._read_parts(prompts)
        row_of: dict[int, ForcedRow] = {}
        unsteered: dict[tuple[int, int], Reading] = {}
        parts = []
        for row in rows:
            assert row.steering is not None  # it touches a layer
            trunk = trunk_of[row.tokens]
            if row.effect:
                begin = self.openings.get(row.effect)
                before = known.get((row.prompt, row.effect), begin)
            else:
                # The last prompt token predicts the first of the continuation: it is run again
                # where that is wanted.
                until = len(row.prompt) - (row.first_step == 0)
                before = unsteered.setdefault((id(trunk), until), trunk.until(until))
            parts.append(
                PassRow(
                    trunk=trunk,
                    layer=row.layers[0],
                    before=before,
                    steering=row.steering,
                    n_prompt=len(row.prompt),
                )
            )
            row_of[id(parts[-1])] = row
        for some in _passes(parts, self.batch_size):
            with branching_attention(self.model, max(part.n_tokens for part in some)):
                resid = run_rows(self.model, some).resid
            self._predict_pass(resid, some[0].start, [row_of[id(part)] for part in some])

    def _predict_pass(
        self, resid: Float[Tensor, "row pos d_model"], start: int, rows: Sequence[ForcedRow]
    ) -> None:
        """Steps outside, rows inside: a visitor meets rows of one prompt and step together."""
        n_steps = max(len(row.continuation) for row in rows)
        pairs = [
            (step, i) for step in range(n_steps) for i, row in enumerate(rows) if step in row.steps
        ]
        positions = [len(rows[i].prompt) - 1 - start + step for step, i in pairs]
        self._predict(
            resid[[i for _, i in pairs], positions],
            [rows[i].index for _, i in pairs],
            [step for step, _ in pairs],
        )

    def _predict(
        self, resid: Float[Tensor, "position d_model"], rows: list[int], steps: list[int]
    ) -> None:
        """Logits of some final residuals, handed over in chunks."""
        size = max(1, _MOST_LOGITS // self.model.cfg.d_vocab)
        for a in range(0, len(resid), size):
            b = a + size
            self.visit(rows[a:b], steps[a:b], unembed(self.model, resid[a:b]))


def _passes(parts: Sequence[PassRow], batch_size: int) -> Iterator[list[PassRow]]:
    """Parts that begin at one position, in passes of about equal size, in the order they join."""
    by_start: dict[int, list[PassRow]] = {}
    for part in parts:
        by_start.setdefault(part.start, []).append(part)
    for group in by_start.values():
        group.sort(key=lambda part: part.layer)
        n_passes = -(-len(group) * max(part.n_tokens for part in group) // PASS_TOKENS)
        size = min(-(-len(group) // n_passes), batch_size)
        yield from packs(group, lambda part: part.n_tokens, most_rows=size)


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


def _score_plainly(
    model: TransformerBridge,
    rows: Sequence[ForcedRow],
    visit: Visit,
    batch_size: int | None = None,
    path: FastPath = BRIDGE,
) -> None:
    """The plain path: batches whose logits stay within bounds."""
    budget = max(1, _MOST_LOGITS // model.cfg.d_vocab)
    for indices in path.batches([len(row.tokens) for row in rows], len(rows)):
        for batch in packs(
            [rows[i] for i in indices],
            lambda row: len(row.continuation),
            budget,
            batch_size or _PLAIN_ROWS,
        ):
            logits = bridge_pass(
                model,
                [row.tokens for row in batch],
                RowSteering([row.steering for row in batch], device_of(model), per_row=True),
                n_prompt=[len(row.prompt) for row in batch],
                n_logits=max(len(row.continuation) for row in batch),
            )
            for row, own in zip(batch, logits, strict=True):
                n_steps = len(row.steps)
                visit([row.index] * n_steps, list(row.steps), own[-n_steps:])
