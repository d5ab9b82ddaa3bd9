"""Decoding steps: one token for every active row, and the unsteered companions of adaptive rows.

An adaptive row (`steerlens.steering.adaptive`) needs the unsteered model's logits after the same
tokens. Up to the lowest layer at which any of them is steered, its own residuals are the unsteered
ones. From there on a **companion** runs beside it, with keys and values of those layers only, and
its prompt is the trunk that the row parts from anyway. Rows of a fixed strength have none.
"""

from collections.abc import Callable, Collection, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.forward import run_blocks
from steerlens.engine.memory import Reading, SlotCache, attention_masks
from steerlens.engine.modules import device_of
from steerlens.engine.rows import Row
from steerlens.steering.adaptive import adapted

__all__ = ["Companions", "adapt_rows", "close_gaps", "decode_step"]


def decode_step(
    model: TransformerBridge,
    cache: SlotCache,
    rows: Sequence[Row],
    dtype: torch.dtype,
    first: int = 0,
    resid: Float[Tensor, "row 1 d_model"] | None = None,
    layers: Collection[int] = (),
    function: Callable[[int, Tensor], Tensor | None] = lambda _layer, _resid: None,
) -> Float[Tensor, "row vocab"]:
    """Logits after the last token of every row.

    Args:
        model: A model inside `fast_modules` and `decoding_attention`.
        cache: Their keys and values; row *i* is in slot *i*.
        rows: The rows.
        dtype: Of the masks.
        first: The first block to run.
        resid: What enters it, if it is not 0.
        layers: Blocks after which `function` is called.
        function: See `steerlens.engine.modules.on_blocks`.
    """
    device = device_of(model)
    positions = cache.begin_step([len(row.tokens) + len(row.produced) - 1 for row in rows], device)
    keys = torch.arange(cache.width, device=device)[None]
    real = torch.ones_like(keys, dtype=torch.bool)
    tokens = torch.tensor([[row.produced[-1]] for row in rows], device=device)
    logits = run_blocks(
        model,
        first,
        model.cfg.n_layers,
        tokens=tokens if resid is None else None,
        resid=resid,
        positions=positions,
        masks=attention_masks(model.original_model.config, positions, keys, real, dtype),
        cache=cache,
        layers=layers,
        function=function,
        logits=True,
    )
    assert logits is not None  # they were asked for
    return logits[:, -1]


def close_gaps(rows: list[Row], cache: SlotCache) -> bool:
    """Fill the slots of ended rows with the last active ones; says whether any had ended."""
    if all(row.reason is None for row in rows):
        return False
    slot = 0
    while slot < len(rows):
        if rows[slot].reason is None:
            slot += 1
            continue
        last = rows.pop()
        if slot < len(rows):
            if last.reason is None:
                cache.move(len(rows), slot)
            rows[slot] = last
    return True


class Companions:
    """The unsteered companions of adaptive rows.

    Args:
        model: A model inside `fast_modules`.
        rows: All rows to come.
        n_slots: Most rows decoded together.
        n_positions: Longest prompt plus response, in tokens.
    """

    def __init__(
        self, model: TransformerBridge, rows: Sequence[Row], n_slots: int, n_positions: int
    ) -> None:
        self.model = model
        self.rows: list[Row] = []
        steered = [row.steering.layers[0] for row in rows if row.threshold and row.steering]
        self.layers = {min(steered)} if steered else set()
        self.cache = SlotCache(n_slots, n_positions)
        self._entering: Tensor | None = None

    def add(self, row: Row, reading: Reading) -> None:
        """Begin a companion, given the unsteered reading of its prompt."""
        for layer in range(min(self.layers) + 1, self.model.cfg.n_layers):
            self.cache.write(len(self.rows), layer, *reading.keys_and_values(layer))
        self.rows.append(row)

    def watch(self, layer: int, resid: Float[Tensor, "row 1 d_model"]) -> None:
        """See the residuals after a block before anything is steered there."""
        if layer in self.layers:
            self._entering = resid

    def adapt(
        self, logits: Float[Tensor, "row vocab"], rows: Sequence[Row], dtype: torch.dtype
    ) -> Float[Tensor, "row vocab"]:
        """The step's logits of all active rows, adapted to those of their companions."""
        if not self.rows or self._entering is None:
            return logits
        place = {id(row): i for i, row in enumerate(rows)}
        places = [place[id(row)] for row in self.rows]
        unsteered = decode_step(
            self.model, self.cache, self.rows, dtype, min(self.layers) + 1, self._entering[places]
        )
        return adapt_rows(logits, unsteered, rows, places)


def adapt_rows(
    logits: Float[Tensor, "row vocab"],
    unsteered: Float[Tensor, "adaptive vocab"],
    rows: Sequence[Row],
    places: Sequence[int],
) -> Float[Tensor, "row vocab"]:
    """Logits of rows, those at some places adapted; the rows note their shares of the strength."""
    at = torch.tensor(places, device=logits.device)
    thresholds = torch.tensor([rows[i].threshold for i in places], device=logits.device)
    changed, shares = adapted(logits[at], unsteered.to(logits.device), thresholds)
    for i, share in zip(places, shares.tolist(), strict=True):
        if rows[i].reason is None:
            rows[i].shares.append(share)
    return logits.index_copy(0, at, changed)
