"""Residuals of token rows at chosen layers, averaged over a span of each row.

On the fast path rows share what they begin with: the beginning of all rows (a chat preamble) is run
once, then that of each **family**, a run of rows in lexicographic order that begin alike, such as
the two sides of a contrast pair. Blocks above the last asked layer, and the unembedding, are not
run. On the plain path rows run whole, in left-padded batches sorted by length.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.batches import common_prefix, packs
from steerlens.engine.forward import PassRow, run_rows
from steerlens.engine.fused_blocks import fused_blocks
from steerlens.engine.memory import Reading
from steerlens.engine.modules import fast_modules
from steerlens.engine.paths import BRIDGE, FastPath
from steerlens.engine.plain import bridge_pass
from steerlens.engine.reading import read

__all__ = ["Span", "residuals_shared", "residuals_unshared"]

Span = tuple[int, int]
"""Half-open range of token indices of one row that a residual is averaged over."""

Keep = Callable[[int, Sequence[int], Tensor], None]
# A shared beginning of fewer tokens is not worth a pass of its own.
_MIN_SHARED = 4


@contextmanager
def _collected(
    model: TransformerBridge, n_rows: int, layers: Sequence[int], show_progress: bool | None
) -> Iterator[tuple[Tensor, Keep]]:
    """The tensor to fill, and what fills it and moves the progress bar on."""
    result = torch.empty(n_rows, len(layers), model.cfg.d_model, dtype=torch.float32)
    column = {layer: index for index, layer in enumerate(layers)}
    disable = None if show_progress is None else not show_progress
    with tqdm(total=n_rows, desc="caching residuals", unit="prompt", disable=disable) as bar:

        def keep(layer: int, batch: Sequence[int], means: Float[Tensor, "row d_model"]) -> None:
            result[list(batch), column[layer]] = means.cpu()
            if layer == layers[-1]:
                bar.update(len(batch))

        yield result, keep


@torch.inference_mode()
def residuals_unshared(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    spans: Sequence[Span],
    layers: Sequence[int],
    batch_size: int,
    show_progress: bool | None = False,
    path: FastPath = BRIDGE,
) -> Float[Tensor, "row layer d_model"]:
    """`residuals_at` on the plain path, which says which rows may be padded: every row whole."""
    with _collected(model, len(rows), layers, show_progress) as (result, keep):
        for batch in path.batches([len(row) for row in rows], batch_size):
            width = max(len(rows[i]) for i in batch)
            windows = [_moved(spans[i], width - len(rows[i])) for i in batch]

            def observe(
                layer: int,
                _: Tensor,
                resid: Tensor,
                batch: list[int] = batch,
                windows: list[Span] = windows,
            ) -> None:
                keep(layer, batch, _span_means(resid, windows))

            some = [rows[i] for i in batch]
            bridge_pass(model, some, observe=observe, observed=layers, stop=max(layers) + 1)
    return result


@torch.inference_mode()
def residuals_shared(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    spans: Sequence[Span],
    layers: Sequence[int],
    batch_size: int,
    show_progress: bool | None = False,
) -> Float[Tensor, "row layer d_model"]:
    """`residuals_at` on the fast path: beginnings that rows share are run once.

    First the beginning of all rows is run, then those of families. None reaches into a row's span.
    """
    stop = max(layers) + 1
    # A prefix may not swallow the span it is read over, nor the row's last token.
    limits = [min(start, len(row) - 1) for row, (start, _) in zip(rows, spans, strict=True)]
    shared = min([common_prefix(rows), *limits])
    shared = shared if shared >= _MIN_SHARED else 0
    parts = [
        part for family in _families(rows, limits, shared) for part in family.parts(batch_size)
    ]
    families = sorted(parts, key=lambda family: family.width(rows), reverse=True)
    with (
        _collected(model, len(rows), layers, show_progress) as (result, keep),
        fast_modules(model),
        fused_blocks(model),
    ):
        trunk = read(model, [rows[0][:shared]], [None], stop)[0] if shared else None
        for pack in packs(
            families, lambda f: f.width(rows), most_rows=batch_size, n_rows=lambda f: len(f.members)
        ):
            longer = [family for family in pack if family.n_shared > shared]
            heads = [rows[family.members[0]][shared : family.n_shared] for family in longer]
            head_readings = read(model, heads, [trunk] * len(heads), stop) if heads else []
            parent_of = dict(zip(map(id, longer), head_readings, strict=True))
            members = [
                (i, parent_of.get(id(family), trunk)) for family in pack for i in family.members
            ]
            _read_tails(model, rows, spans, layers, members, keep)
    return result


def _read_tails(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    spans: Sequence[Span],
    layers: Sequence[int],
    members: Sequence[tuple[int, Reading | None]],
    keep: Keep,
) -> None:
    """Run what each row has of its own and keep the means over its span."""
    batch = [i for i, _ in members]
    starts = [parent.length if parent else 0 for _, parent in members]
    windows = [_moved(spans[i], -start) for i, start in zip(batch, starts, strict=True)]
    run_rows(
        model,
        [
            PassRow(tokens=rows[i][start:], before=parent)
            for (i, parent), start in zip(members, starts, strict=True)
        ],
        max(layers) + 1,
        observe=lambda layer, _, resid: keep(layer, batch, _span_means(resid, windows)),
        observed=layers,
    )


@dataclass(frozen=True)
class _Family:
    """Rows that share their first `n_shared` tokens."""

    members: tuple[int, ...]
    n_shared: int

    def parts(self, size: int) -> "list[_Family]":
        """The family in parts of at most `size` members."""
        starts = range(0, len(self.members), size)
        return [_Family(self.members[start : start + size], self.n_shared) for start in starts]

    def width(self, rows: Sequence[Sequence[int]]) -> int:
        """Tokens of the longest row after the shared ones."""
        return max(len(rows[i]) for i in self.members) - self.n_shared


def _families(rows: Sequence[Sequence[int]], limits: Sequence[int], shared: int) -> list[_Family]:
    """Rows in families whose common beginning is longer than what all rows share."""
    order = sorted(range(len(rows)), key=lambda i: tuple(rows[i]))
    families: list[_Family] = []
    for i in order:
        if families:
            last = families[-1]
            together = (*last.members, i)
            common = min(
                common_prefix([rows[last.members[0]], rows[i]]),
                *(limits[member] for member in together),
            )
            # Joining must not give up much of what the family already shares.
            alone = last.n_shared if len(last.members) > 1 else shared + _MIN_SHARED
            if common >= max(alone, shared + _MIN_SHARED):
                families[-1] = _Family(together, min(common, last.n_shared or common))
                continue
        families.append(_Family((i,), 0))
    return [
        family if len(family.members) > 1 else _Family(family.members, shared)
        for family in families
    ]


def _moved(span: Span, offset: int) -> Span:
    return span[0] + offset, span[1] + offset


def _span_means(
    resid: Float[Tensor, "batch pos d_model"], windows: Sequence[Span]
) -> Float[Tensor, "batch d_model"]:
    return torch.stack(
        [row[start:stop].float().mean(0) for row, (start, stop) in zip(resid, windows, strict=True)]
    )
