"""Activation patching: the residual of one token at one layer replaced by another run's.

`ending_residuals` keeps what is put in: the residuals of the last tokens of some rows, at every
asked layer, and the logits that the rows end with. `patched_logits` runs a row once for every layer
and each of its last tokens, with that one residual replaced.

On the fast path nothing is run twice. Replacing the token *k* places before the end changes nothing
before it, so only its *k* successors run; and nothing below its layer, so for one position the
runs of all layers ride in one pass, each joining where it is patched. For 30 layers, 8 positions
and a prompt of 60 tokens, 17,460 tokens pass a block instead of 432,000. On the plain path rows run
whole.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.batches import common_prefix, length_batches
from steerlens.engine.choosing import running
from steerlens.engine.forward import PassRow, run_rows
from steerlens.engine.memory import Reading
from steerlens.engine.modules import device_of, dtype_of, fast_modules, unembed
from steerlens.engine.plain import bridge_pass
from steerlens.engine.reading import read
from steerlens.steering.roles import TokenRoles

__all__ = ["ending_residuals", "patched_logits"]

Visit = Callable[[int, int, Float[Tensor, "layer vocab"]], None]


@torch.inference_mode()
def ending_residuals(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    layers: Sequence[int],
    n_last: int,
    batch_size: int,
) -> tuple[Float[Tensor, "row layer last d_model"], Float[Tensor, "row vocab"]]:
    """The residuals of each row's last tokens, and the logits after the last.

    Args:
        model: A hooked model.
        rows: Token ids of each row, more than `n_last` in each.
        layers: Layers to keep.
        n_last: How many tokens before the end to keep.
        batch_size: Rows per forward pass.
    """
    shape = len(rows), len(layers), n_last, model.cfg.d_model
    kept = torch.empty(shape, dtype=dtype_of(model), device=device_of(model))
    logits = torch.empty(len(rows), model.cfg.d_vocab, dtype=torch.float32)
    column = {layer: i for i, layer in enumerate(layers)}
    lengths = [len(row) for row in rows]
    with running(model, max(lengths)) as path:
        if not path.is_fast:
            for batch in path.batches(lengths, batch_size):

                def keep(layer: int, _: Tensor, resid: Tensor, batch: list[int] = batch) -> None:
                    kept[batch, column[layer]] = resid[:, -n_last:]

                some = [rows[i] for i in batch]
                logits[batch] = (
                    bridge_pass(model, some, observe=keep, observed=layers)[:, -1].float().cpu()
                )
            return kept, logits
        with fast_modules(model):
            shared, trunk = _trunk(model, rows, n_last)
            for batch in length_batches(lengths, batch_size):
                tails = [PassRow(tokens=rows[i][shared:], before=trunk) for i in batch]

                def keep_ends(
                    layer: int,
                    _: Tensor,
                    resid: Tensor,
                    batch: list[int] = batch,
                    tails: list[PassRow] = tails,
                ) -> None:
                    for i, own, tail in zip(batch, resid, tails, strict=True):
                        kept[i, column[layer]] = own[tail.n_tokens - n_last : tail.n_tokens]

                resid = run_rows(model, tails, observe=keep_ends, observed=layers).resid
                last = torch.stack(
                    [own[tail.n_tokens - 1] for own, tail in zip(resid, tails, strict=True)]
                )
                logits[batch] = unembed(model, last).float().cpu()
    return kept, logits


@torch.inference_mode()
def patched_logits(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    sources: Float[Tensor, "row layer last d_model"],
    layers: Sequence[int],
    visit: Visit,
) -> None:
    """Logits after each row's last token, with one residual replaced at a time.

    Args:
        model: A hooked model.
        rows: Token ids of each row; longer than the last axis of `sources`.
        sources: What is put in: entry ``[i, l, p]`` replaces the output of block ``layers[l]`` of
            row *i* at its token ``p − last`` (counted from the end).
        layers: Ascending.
        visit: Called with row, position (−1 is the last token), and the logits at each layer.
    """
    n_last = sources.shape[2]
    with running(model, max(map(len, rows))) as path:
        if not path.is_fast:
            for i, tokens in enumerate(rows):
                for back in range(1, n_last + 1):
                    replace = _Replace(dict(zip(layers, sources[i, :, -back], strict=True)), back)
                    logits = bridge_pass(model, [tokens] * len(layers), replace)
                    visit(i, -back, logits[:, -1])
            return
        with fast_modules(model):
            shared, trunk = _trunk(model, rows, n_last)
            for i, tokens in enumerate(rows):
                middle = tokens[shared:-n_last]
                before = read(model, [middle], [trunk])[0] if len(middle) else trunk
                [ending] = read(model, [tokens[-n_last:]], [before], keep=layers)
                for back in range(1, n_last + 1):
                    known = ending.until(ending.length - back)
                    patched = []
                    for layer, source in zip(layers, sources[i, :, -back], strict=True):
                        resid = ending.resid[layer][n_last - back :].clone()
                        resid[0] = source
                        patched.append(PassRow(resid=resid, layer=layer, before=known))
                    visit(i, -back, unembed(model, run_rows(model, patched).resid[:, -1]))


def _trunk(
    model: TransformerBridge, rows: Sequence[Sequence[int]], n_last: int
) -> tuple[int, Reading | None]:
    """What all rows begin with, read once; it ends before the kept tokens of every row."""
    shared = min(common_prefix(rows), min(map(len, rows)) - n_last)
    return shared, read(model, [rows[0][:shared]], [None])[0] if shared else None


class _Replace:
    """Replaces one token's residual: in row *i* after the *i*-th layer.

    Args:
        sources: What is put in, by layer, ascending.
        back: Which token, counted from the end.
    """

    def __init__(self, sources: dict[int, Float[Tensor, "d_model"]], back: int) -> None:
        self.sources, self.back = sources, back
        self.layers = list(sources)

    def apply(
        self, layer: int, resid: Float[Tensor, "batch pos d_model"], roles: TokenRoles
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residuals with one of them replaced."""
        changed = resid.clone()
        changed[self.layers.index(layer), -self.back] = self.sources[layer]
        return changed
