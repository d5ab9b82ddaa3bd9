"""Reading prompts without steering: what rows begin with is read once.

Two kinds of sharing rest on this, and both are exact. Rows that begin alike (a chat preamble, the
two sides of a contrast pair) share the reading of the beginning. Rows of one prompt under steerings
that first touch it at layer *l* share everything up to the output of block *l*: the **trunk**, from
which they part there (`steerlens.engine.forward`).
"""

from collections.abc import Collection, Iterable, Sequence

from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.batches import PASS_TOKENS, common_prefix, packs
from steerlens.engine.forward import PassRow, run_rows
from steerlens.engine.memory import Reading
from steerlens.steering.interventions import Steering

__all__ = ["Trunks", "first_touched", "read"]

# A shared beginning shorter than this is not worth a pass of its own.
MIN_PREAMBLE = 8

Tokens = tuple[int, ...]


def first_touched(steering: Steering | None, n_layers: int) -> int:
    """The first layer where a steering changes the prompt; `n_layers` when it never does."""
    if steering is None:
        return n_layers
    return min(steering.touching("prompt").layers, default=n_layers)


def read(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    parents: Sequence[Reading | None],
    stop: int | None = None,
    keep: Collection[int] = (),
) -> list[Reading]:
    """Read token rows, each after its parent.

    Args:
        model: A model inside `fast_modules`.
        rows: Token ids to add to each parent; at least one per row.
        parents: What stands before each row; a parent must have run as many blocks.
        stop: How many blocks to run; by default all.
        keep: Layers whose residuals the readings shall hold.
    """
    new = [PassRow(tokens=row, before=parent) for row, parent in zip(rows, parents, strict=True)]
    passed = run_rows(model, new, stop, keep, remember=True)
    return [passed.reading(i) for i in range(len(rows))]


class Trunks:
    """Unsteered readings of prompts, each as deep as its rows need.

    Args:
        model: A model inside `fast_modules`.
        rows: Every prompt, and the layer at which a row of it parts from the trunk (the number of
            layers where it never does); once per row.
    """

    def __init__(
        self,
        model: TransformerBridge,
        rows: Iterable[tuple[Tokens, int]],
    ) -> None:
        self.model = model
        self.n_layers = model.cfg.n_layers
        self.layers: dict[Tokens, set[int]] = {}
        self.users: dict[Tokens, int] = {}
        for tokens, layer in rows:
            self.layers.setdefault(tokens, set()).add(layer)
            self.users[tokens] = self.users.get(tokens, 0) + 1
        self.readings: dict[Tokens, Reading] = {}
        prompts = list(self.layers)
        self.preamble = prompts[0][: common_prefix(prompts, MIN_PREAMBLE)]
        self._start: Reading | None = None

    def prepare(self, prompts: Iterable[Tokens]) -> None:
        """Read the prompts that are not known yet, the shared beginning once for all."""
        missing = [p for p in dict.fromkeys(prompts) if p not in self.readings]
        if not missing:
            return
        if self.preamble and self._start is None:
            [self._start] = self._read([self.preamble], [None], list(self.layers))
        begin = len(self.preamble)
        for pack in packs(missing, lambda p: len(p) - begin, PASS_TOKENS, tight=True):
            rest = [prompt[begin:] for prompt in pack]
            readings = self._read(rest, [self._start] * len(pack), pack)
            self.readings.update(zip(pack, readings, strict=True))

    def _read(
        self, rows: Sequence[Tokens], parents: Sequence[Reading | None], prompts: Sequence[Tokens]
    ) -> list[Reading]:
        """Read rows as deep as some prompts need."""
        layers = {layer for prompt in prompts for layer in self.layers[prompt]}
        stop = min(max(layers) + 1, self.n_layers)
        return read(self.model, rows, parents, stop, layers - {self.n_layers})

    def release(self, prompt: Tokens) -> None:
        """One row less needs this prompt; its reading is forgotten after the last one."""
        self.users[prompt] -= 1
        if self.users[prompt] == 0:
            self.readings.pop(prompt, None)
