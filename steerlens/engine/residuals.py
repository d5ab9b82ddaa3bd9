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

from steerlens.engine.batches import common_prefix, left_padded
from steerlens.engine.modules import fast_modules
from steerlens.engine.paths import BRIDGE, FastPath
from steerlens.engine.plain import after_blocks
from steerlens.engine.reading import Reading, read

__all__ = ["Span", "residuals_shared", "residuals_unshared"]

Span = tuple[int, int]
"""Half-open range of token indices of one row that a residual is averaged over."""

Keep = Callable[[int, Sequence[int], Tensor], None]
# A shared beginning of fewer tokens is not worth a pass of its own.
_MIN_SHARED = 4


@torch.inference_mode()
def residuals_shared(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    spans: Sequence[Span],
    layers: Sequence[int],
    batch_size: int,
    progress: bool | None = False,
) -> Float[Tensor, "row layer d_model"]:
    """`residuals_at` on the fast path."""
    with _collected(model, len(rows), layers, progress) as (result, keep):
        _walk_sharing(model, rows, spans, layers, batch_size, keep)
    return result


@torch.inference_mode()
def residuals_unshared(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    spans: Sequence[Span],
    layers: Sequence[int],
    batch_size: int,
    progress: bool | None = False,
    path: FastPath = BRIDGE,
) -> Float[Tensor, "row layer d_model"]:
    """`residuals_at` on the bridge's path, which says which rows may be padded."""
    with _collected(model, len(rows), layers, progress) as (result, keep):
        _walk_plainly(model, rows, spans, layers, batch_size, keep, path)
    return result


@contextmanager
def _collected(
    model: TransformerBridge, n_rows: int, layers: Sequence[int], progress: bool | None
) -> Iterator[tuple[Tensor, Keep]]:
    """The tensor to fill, and what fills it and moves the progress bar on."""
    result = torch.empty(n_rows, len(layers), model.cfg.d_model, dtype=torch.float32)
    column = {layer: index for index, layer in enumerate(layers)}
    disable = None if progress is None else not progress
    with tqdm(total=n_rows, desc="caching residuals", unit="prompt", disable=disable) as bar:

        def keep(layer: int, batch: Sequence[int], means: Float[Tensor, "row d_model"]) -> None:
            result[list(batch), column[layer]] = means.cpu()
            if layer == layers[-1]:
                bar.update(len(batch))

        yield result, keep


def _walk_plainly(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    spans: Sequence[Span],
    layers: Sequence[int],
    batch_size: int,
    keep: Keep,
    path: FastPath,
) -> None:
    """Every row whole, in left-padded batches through the bridge's own forward pass."""
    stop = max(layers) + 1
    for batch in path.batches([len(row) for row in rows], batch_size):
        tokens, mask = left_padded([rows[i] for i in batch], device=model.cfg.device)
        offsets = [tokens.shape[1] - len(rows[i]) for i in batch]
        windows = [_moved(spans[i], offset) for i, offset in zip(batch, offsets, strict=True)]

        def after(
            layer: int, resid: Tensor, batch: list[int] = batch, windows: list[Span] = windows
        ) -> None:
            keep(layer, batch, _span_means(resid, windows))

        with after_blocks(model, layers, after):
            if stop < model.cfg.n_layers:
                model(tokens, attention_mask=mask, stop_at_layer=stop, use_cache=False)
            else:
                model(tokens, attention_mask=mask, use_cache=False, logits_to_keep=1)


def _walk_sharing(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    spans: Sequence[Span],
    layers: Sequence[int],
    batch_size: int,
    keep: Keep,
) -> None:
    """Beginnings that rows share are run once: first that of all rows, then those of families.

    A family is a run of rows, in lexicographic order, that begin alike: the two sides of a pair
    share everything up to where the instruction stands. No beginning reaches into a row's span.
    """
    stop = max(layers) + 1
    # A prefix may not swallow the span it is read over, nor the row's last token.
    limits = [min(start, len(row) - 1) for row, (start, _) in zip(rows, spans, strict=True)]
    shared = min(common_prefix(rows), *limits) if len(rows) > 1 else 0
    shared = shared if shared >= _MIN_SHARED else 0
    with fast_modules(model):
        trunk = read(model, [rows[0][:shared]], [None], stop)[0] if shared else None
        families = _families(rows, limits, shared)
        for some in _packed(families, rows, batch_size):
            longer = [family for family in some if family.n_shared > shared]
            heads = [rows[family.members[0]][shared : family.n_shared] for family in longer]
            read_heads = read(model, heads, [trunk] * len(heads), stop) if heads else []
            parent_of = dict(zip([id(family) for family in longer], read_heads, strict=True))
            members = [
                (i, parent_of.get(id(family), trunk)) for family in some for i in family.members
            ]
            _read_tails(model, rows, spans, layers, stop, members, keep)


def _read_tails(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    spans: Sequence[Span],
    layers: Sequence[int],
    stop: int,
    members: Sequence[tuple[int, Reading | None]],
    keep: Keep,
) -> None:
    """Run what each row has of its own and keep the means over its span."""
    batch = [i for i, _ in members]
    parents = [parent for _, parent in members]
    starts = [parent.length if parent else 0 for parent in parents]
    windows = [_moved(spans[i], -start) for i, start in zip(batch, starts, strict=True)]
    read(
        model,
        [rows[i][start:] for i, start in zip(batch, starts, strict=True)],
        parents,
        stop,
        visit=lambda layer, resid: keep(layer, batch, _span_means(resid, windows)),
        visit_layers=layers,
    )


@dataclass(frozen=True)
class _Family:
    """Rows that share their first `n_shared` tokens."""

    members: tuple[int, ...]
    n_shared: int


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


def _packed(
    families: Sequence[_Family], rows: Sequence[Sequence[int]], batch_size: int
) -> Iterator[list[_Family]]:
    """Families of similar own length in packs of about `batch_size` rows, longest first."""

    def own(family: _Family) -> int:
        return max(len(rows[i]) for i in family.members) - family.n_shared

    pack: list[_Family] = []
    for family in sorted(families, key=own, reverse=True):
        if pack and sum(len(f.members) for f in pack) + len(family.members) > batch_size:
            yield pack
            pack = []
        pack.append(family)
    if pack:
        yield pack


def _moved(span: Span, offset: int) -> Span:
    return span[0] + offset, span[1] + offset


def _span_means(
    resid: Float[Tensor, "batch pos d_model"], windows: Sequence[Span]
) -> Float[Tensor, "batch d_model"]:
    return torch.stack(
        [row[start:stop].float().mean(0) for row, (start, stop) in zip(resid, windows, strict=True)]
    )
