"""The bridge's own path: one batch at a time, every hook point live, attention in its eager form.

Slower than the engine and needed when something else on the model is hooked; also what the engine
is checked against (`steerlens.engine.verification`). Rows are padded on the left, unless the path
says that they may not be, and a batch runs until its last row ends.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.batches import left_padded
from steerlens.engine.paths import BRIDGE, FastPath, length_switch
from steerlens.engine.rows import Choose, Row, is_sound
from steerlens.steering.roles import TokenRoles
from steerlens.steering.rows import RowSteering

__all__ = ["after_blocks", "decode_rows_plainly", "first_logits_plainly"]


@contextmanager
def after_blocks(
    model: TransformerBridge, layers: Sequence[int], function: Callable[[int, Tensor], None]
) -> Iterator[None]:
    """Call ``function(layer, residual)`` after each of some blocks of the bridge, to read it.

    The block as a whole is listened to, not its ``hook_out``: PyTorch hooks that someone has put on
    the block act after that, and what the next block reads is what they leave.
    """

    def after(layer: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            function(layer, output if isinstance(output, Tensor) else output[0])

        return hook

    with ExitStack() as stack:
        for layer in layers:
            handle = model.blocks[layer].register_forward_hook(after(layer))
            stack.callback(handle.remove)
        yield


@torch.inference_mode()
def decode_rows_plainly(
    model: TransformerBridge,
    rows: Sequence[Row],
    batch_size: int,
    ends: frozenset[int],
    choose: Choose,
    finished: Callable[[Row], None],
    path: FastPath = BRIDGE,
) -> None:
    """Decode every row to its end.

    Args:
        model: As for the engine's `decode_rows`, like all arguments but the last.
        rows: See there.
        batch_size: See there, ``n_slots``.
        ends: See there.
        choose: See there.
        finished: See there.
        path: Which rows may share a batch.
    """
    for batch in path.batches([len(row.tokens) for row in rows], batch_size):
        _decode_batch(model, [rows[i] for i in batch], ends, choose, path)
        for i in batch:
            finished(rows[i])


def _decode_batch(
    model: TransformerBridge,
    rows: Sequence[Row],
    ends: frozenset[int],
    choose: Choose,
    path: FastPath,
) -> None:
    tokens, mask = left_padded([row.tokens for row in rows], device=model.cfg.device)
    compiled = RowSteering([r.steering for r in rows], device=model.cfg.device, per_row=True)
    n_prompt = torch.tensor([len(row.tokens) for row in rows], device=tokens.device)
    switch = length_switch(model)
    whole = tokens
    roles: list[TokenRoles] = []
    cache: Any = None
    with model.hooks(fwd_hooks=compiled.hooks(lambda: roles[0])):
        while any(row.reason is None for row in rows):
            # What was read with the factors of short rows is read anew, as Hugging Face does.
            switched = switch is not None and whole.shape[1] == switch + 1
            if switched or not path.caches:
                tokens, cache = whole, None
            roles[:] = [TokenRoles.of_mask(mask, tokens.shape[1], n_prompt)]
            if path.caches:
                logits, cache = model(
                    tokens,
                    attention_mask=mask,
                    past_key_values=cache,
                    return_type="logits_and_cache",
                    use_cache=True,
                    logits_to_keep=1,
                )
            else:
                logits = model(tokens, attention_mask=mask, use_cache=False)
            following = choose(logits[:, -1], [row.index for row in rows])
            finite = is_sound(logits[:, -1], following)
            for row, token, sound in zip(rows, following.tolist(), finite, strict=True):
                row.take(token, sound, ends)
            tokens = following[:, None]
            whole = torch.cat([whole, tokens], dim=1)
            mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)


@torch.inference_mode()
def first_logits_plainly(
    model: TransformerBridge,
    rows: Sequence[Row],
    batch_size: int,
    visit: Callable[[list[int], Float[Tensor, "row vocab"]], None],
    path: FastPath = BRIDGE,
) -> None:
    """First-token logits of every row.

    Args:
        model: As for the engine's `first_logits`, like all arguments but the last.
        rows: See there.
        batch_size: See there.
        visit: See there.
        path: Which rows may share a batch.
    """
    for batch in path.batches([len(row.tokens) for row in rows], batch_size):
        some = [rows[i] for i in batch]
        tokens, mask = left_padded([row.tokens for row in some], device=model.cfg.device)
        roles = TokenRoles.of_mask(mask, tokens.shape[1], None)
        compiled = RowSteering([r.steering for r in some], device=model.cfg.device, per_row=True)
        hooks = compiled.hooks(lambda roles=roles: roles)  # type: ignore[misc]
        with model.hooks(fwd_hooks=hooks):
            logits = model(tokens, attention_mask=mask, use_cache=False, logits_to_keep=1)
        visit([row.index for row in some], logits[:, -1])
