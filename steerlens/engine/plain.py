"""The plain path: the bridge's own forward pass, every hook point live, attention in eager form.

Slower than the engine and needed when something else on the model is hooked; also what the engine
is checked against (`steerlens.engine.verification`). `bridge_pass` is to this path what
`steerlens.engine.forward.run_rows` is to the fast one. Rows are padded on the left, unless the path
says that they may not be, and a batch runs until its last row ends.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.batches import left_padded
from steerlens.engine.forward import Observe, Steers
from steerlens.engine.modules import on_blocks
from steerlens.engine.paths import BRIDGE, FastPath, length_switch
from steerlens.engine.rows import Choose, Row, advance
from steerlens.engine.steps import adapt_rows
from steerlens.errors.cancellation import check_cancelled
from steerlens.steering.roles import TokenRoles
from steerlens.steering.rows import RowSteering

__all__ = ["bridge_pass", "decode_rows_plainly"]


@torch.inference_mode()
def bridge_pass(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    steer: Steers | None = None,
    n_prompt: Sequence[int] | None = None,
    touched: Bool[Tensor, "row pos"] | None = None,
    observe: Observe | None = None,
    observed: Collection[int] = (),
    stop: int | None = None,
    n_logits: int = 1,
) -> Float[Tensor, "row last vocab"]:
    """One pass of whole rows, padded on the left.

    Args:
        model: A hooked model.
        rows: Token ids of each row.
        steer: What is done to the residuals.
        n_prompt: Where each row's response begins; by default all tokens are prompt.
        touched: Which tokens may be steered; for rows of one length.
        observe: Called for each of `observed`, lowest layer first.
        observed: Layers to observe.
        stop: How many blocks to run; by default all. With fewer, logits mean nothing.
        n_logits: At how many last positions logits are wanted.
    """
    check_cancelled()
    tokens, mask = left_padded(rows, device=model.cfg.device)
    lengths = None if n_prompt is None else torch.tensor(n_prompt, device=tokens.device)
    roles = TokenRoles.of_mask(mask, tokens.shape[1], lengths)
    if touched is not None:
        roles = roles.where(touched.to(tokens.device))
    before: dict[int, Tensor] = {}

    def at(layer: int) -> tuple[str, Callable[[Tensor, Any], Tensor]]:
        def hook(resid: Tensor, hook: Any) -> Tensor:
            before[layer] = resid
            assert steer is not None  # its layers are hooked
            return steer.apply(layer, resid, roles)

        return f"blocks.{layer}.hook_out", hook

    # The block as a whole is observed, not its ``hook_out``: PyTorch hooks that someone has put on
    # the block act after that, and what the next block reads is what they leave.
    def after(layer: int, resid: Tensor) -> None:
        if observe is not None:
            observe(layer, before.get(layer, resid), resid)

    options: dict[str, Any] = {"attention_mask": mask, "use_cache": False}
    options |= (
        {"logits_to_keep": n_logits}
        if stop in (None, model.cfg.n_layers)
        else {"stop_at_layer": stop}
    )
    hooks = [at(layer) for layer in sorted(steer.layers)] if steer is not None else []
    with model.hooks(fwd_hooks=hooks), on_blocks(model.blocks, observed, after):
        logits: Tensor = model(tokens, **options)
    return logits


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
    """Decode every row to its end; as `steerlens.engine.decoding.decode_rows` on this path."""
    switch = length_switch(model)
    for batch in path.batches([len(row.tokens) for row in rows], batch_size):
        _decode_batch(model, [rows[i] for i in batch], ends, choose, path.caches, switch)
        for i in batch:
            finished(rows[i])


def _decode_batch(
    model: TransformerBridge,
    rows: Sequence[Row],
    ends: frozenset[int],
    choose: Choose,
    caches: bool,
    switch: int | None,
) -> None:
    """Decode one batch; `switch` is the length at which rows must be read anew, if any."""
    # Rows whose strength is adaptive are there a second time, unsteered.
    adaptive = [i for i, row in enumerate(rows) if row.threshold]
    every = [*range(len(rows)), *adaptive]
    tokens, mask = left_padded([rows[i].tokens for i in every], device=model.cfg.device)
    steerings = [row.steering for row in rows] + [None] * len(adaptive)
    steering = RowSteering(steerings, device=model.cfg.device, per_row=True)
    n_prompt = torch.tensor([len(rows[i].tokens) for i in every], device=tokens.device)
    whole, cache = tokens, None
    roles: list[TokenRoles] = []
    with model.hooks(fwd_hooks=steering.hooks(lambda: roles[0])):
        while any(row.reason is None for row in rows):
            # What was read with the factors of short rows is read anew, as Hugging Face does.
            if not caches or (switch is not None and whole.shape[1] == switch + 1):
                tokens, cache = whole, None
            roles[:] = [TokenRoles.of_mask(mask, tokens.shape[1], n_prompt)]
            if caches:
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
            last = logits[:, -1]
            if adaptive:
                last = adapt_rows(last[: len(rows)], last[len(rows) :], rows, adaptive)
            tokens = advance(last, rows, choose, ends)[every, None]
            whole = torch.cat([whole, tokens], dim=1)
            mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)
