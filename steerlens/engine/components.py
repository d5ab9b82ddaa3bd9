"""Parts of the residual stream: what attention and MLPs write at the last token of each row.

A block adds two vectors to the stream, its attention's and its MLP's. `last_parts` records both
for unsteered rows, with what each attention head put in (``z``, before the output projection) and
the stream itself; `varied_parts` does so for one row whose last token's residual is replaced by
several others at one layer. Only the last token is kept: ``z`` is 1/`n_heads` of the per-head
outputs' size, and everything else about a head follows from it (`steerlens.engine.linear_norms`).

Where a norm follows attention or MLP (Gemma 2 and 3, OLMo 2), what is written is what leaves that
norm. TransformerLens's aliases ``hook_attn_out`` and ``hook_mlp_out`` point there, and say here
which module to listen to on the fast path as well.

`ActivationCache.get_full_resid_decomposition` gives the same parts where no norm follows attention.
It keeps ``[layer × head, row, pos, d_model]`` on the way, runs every block of every row whole, and
takes a head's output for its contribution also where a norm follows; so it serves the tests.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.batches import common_prefix, left_padded, length_batches
from steerlens.engine.choosing import running
from steerlens.engine.forward import PassRow, run_rows
from steerlens.engine.modules import fast_modules, on_blocks
from steerlens.engine.paths import FastPath
from steerlens.engine.reading import read
from steerlens.errors import ModelError
from steerlens.models.adapter.bridge import norm_after, own_module, parts_of

__all__ = [
    "Parts",
    "check_components",
    "last_parts",
    "varied_parts",
]


@dataclass(frozen=True, eq=False)
class Parts:
    """What was written to the stream at the last token of some rows; dicts are by layer.

    Attributes:
        z: Concatenated head outputs ``[row, head × d_head]`` before the output projection.
        attn: What attention added to the stream ``[row d_model]``, after any norm that follows.
        mlp: What the MLP added, likewise.
        resid: The stream after the block; layer −1 is the embedding.
    """

    z: dict[int, Tensor] = field(default_factory=dict)
    attn: dict[int, Tensor] = field(default_factory=dict)
    mlp: dict[int, Tensor] = field(default_factory=dict)
    resid: dict[int, Tensor] = field(default_factory=dict)


Visit = Callable[[list[int], Parts], None]
Vary = Callable[[Float[Tensor, "d_model"]], Float[Tensor, "variant d_model"]]


def check_components(model: TransformerBridge) -> None:
    """`ModelError` when the model's blocks are not made of attention heads and an MLP."""
    for layer, block in enumerate(model.blocks):
        parts = parts_of(block)
        if "attn" not in parts or "mlp" not in parts or "o" not in parts_of(parts["attn"]):
            raise ModelError(
                f"block {layer} of this model is not attention with an output projection and an "
                "MLP, so its components cannot be told apart; separability, causal recovery and "
                "patching work without them"
            )


@torch.inference_mode()
def last_parts(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    stop: int,
    batch_size: int,
    visit: Visit,
) -> None:
    """Parts of blocks ``0 ≤ l < stop`` at the last token of each row.

    Args:
        model: A hooked model whose blocks have parts (`check_components`).
        rows: Token ids of each row, without padding.
        stop: How many blocks to run.
        batch_size: Rows a forward pass.
        visit: Called with the numbers of a batch's rows and their parts.
    """
    with running(model, max(map(len, rows), default=0)) as path:
        _last_parts(model, rows, stop, batch_size, visit, path)


def _last_parts(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    stop: int,
    batch_size: int,
    visit: Visit,
    path: FastPath,
) -> None:
    layers = range(stop)
    if not path.is_fast:
        for batch in path.batches([len(row) for row in rows], batch_size):
            tokens, mask = left_padded([rows[i] for i in batch], device=model.cfg.device)
            with _recording_plainly(model, layers) as parts:
                if stop < model.cfg.n_layers:
                    model(tokens, attention_mask=mask, stop_at_layer=stop, use_cache=False)
                else:
                    model(tokens, attention_mask=mask, use_cache=False, logits_to_keep=1)
            visit(batch, parts)
        return
    shared = common_prefix(rows)
    sites = _sites(model, layers)
    trunk = None
    if shared:
        with fast_modules(model):
            trunk = read(model, [rows[0][:shared]], [None], stop)[0]
    for batch in length_batches([len(row) for row in rows], batch_size):
        tails = [rows[i][shared:] for i in batch]
        ends = [len(tail) - 1 for tail in tails]
        with fast_modules(model), _recording(model, sites, ends) as parts:
            read(model, tails, [trunk] * len(tails), stop)
        # Outside, where the model's parts have their own names again.
        visit(batch, parts)


@torch.inference_mode()
def varied_parts(
    model: TransformerBridge, tokens: Sequence[int], layer: int, n_variants: int, vary: Vary
) -> Parts:
    """Parts of the blocks above `layer` when the last token's residual there takes several values.

    The tokens before the last are run once: a residual changed at the last token alone is seen by
    no other token.

    Args:
        model: A hooked model whose blocks have parts.
        tokens: One row, at least two tokens.
        layer: After this block the residual is replaced.
        n_variants: How many values `vary` gives.
        vary: The values, from the residual as it was.

    Returns:
        Parts with one row a variant, the stream at `layer` as replaced included.
    """
    with running(model, len(tokens)) as path:
        return _varied_parts(model, tokens, layer, n_variants, vary, path)


def _varied_parts(
    model: TransformerBridge,
    tokens: Sequence[int],
    layer: int,
    n_variants: int,
    vary: Vary,
    path: FastPath,
) -> Parts:
    n_layers = model.cfg.n_layers
    above = range(layer + 1, n_layers)
    if not path.is_fast:
        ids, mask = left_padded([tokens] * n_variants, device=model.cfg.device)

        def replace(resid: Tensor, hook: Any) -> Tensor:
            changed = resid.clone()
            changed[:, -1] = vary(resid[0, -1])
            return changed

        with (
            model.hooks(fwd_hooks=[(f"blocks.{layer}.hook_out", replace)]),
            _recording_plainly(model, above, before=layer) as parts,
        ):
            model(ids, attention_mask=mask, use_cache=False, logits_to_keep=1)
        return parts
    sites = _sites(model, above)
    with fast_modules(model):
        before = read(model, [tokens[:-1]], [None], n_layers)
        [ending] = read(model, [tokens[-1:]], before, layer + 1, [layer])
        variants = vary(ending.resid[layer][0])
        rows = [PassRow(resid=resid[None], layer=layer, before=before[0]) for resid in variants]
        with _recording(model, sites, None) as parts:
            run_rows(model, rows)
        parts.resid[layer] = variants
    return parts


@dataclass(frozen=True, eq=False)
class _Site:
    """Where to listen to one block once the bridge's components are out of the way.

    Attributes:
        layer: The block's number.
        block: Its own module.
        project: The output projection; its input is ``z``.
        attn: The module whose output attention adds to the stream.
        mlp: The same for the MLP.
        scale: Factor of what is added (Granite).
    """

    layer: int
    block: nn.Module
    project: nn.Module
    attn: nn.Module
    mlp: nn.Module
    scale: float


def _sites(model: TransformerBridge, layers: Sequence[int]) -> list[_Site]:
    """To be called outside `fast_modules`, where blocks are the bridge's."""
    sites = []
    for layer in layers:
        block = model.blocks[layer]
        project = own_module(block.attn.o)
        sites.append(
            _Site(
                layer=layer,
                block=own_module(block),
                project=project,
                attn=norm_after(block, "hook_attn_out") or project,
                mlp=norm_after(block, "hook_mlp_out") or own_module(block.mlp),
                scale=float(getattr(block, "residual_contribution_scale", 1.0)),
            )
        )
    return sites


@contextmanager
def _recording(
    model: TransformerBridge,
    sites: Sequence[_Site],
    ends: Sequence[int] | None,
) -> Iterator[Parts]:
    """Fill a `Parts` from the plain modules, inside `fast_modules`.

    Args:
        model: The model.
        sites: Blocks to listen to.
        ends: Index of each row's last token; ``None``: the last column of every row.
    """
    parts = Parts()

    def last(values: Tensor) -> Tensor:
        if ends is None:
            return values[:, -1]
        index = torch.tensor(ends, device=values.device)
        return values[torch.arange(len(values), device=values.device), index]

    def keep(store: dict[int, Tensor], site: _Site) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            values = output[0] if isinstance(output, tuple) else output
            store[site.layer] = last(values) * site.scale

        return hook

    def keep_input(
        store: dict[int, Tensor], layer: int
    ) -> Callable[[nn.Module, Any, dict[str, Any]], None]:
        def hook(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            store[layer] = last(args[0] if args else kwargs["hidden_states"])

        return hook

    def keep_stream(layer: int, resid: Tensor) -> None:
        parts.resid[layer] = last(resid)

    with ExitStack() as stack:
        for site in sites:
            z, enters = keep_input(parts.z, site.layer), keep_input(parts.resid, -1)
            handles = [
                site.attn.register_forward_hook(keep(parts.attn, site)),
                site.mlp.register_forward_hook(keep(parts.mlp, site)),
                site.project.register_forward_pre_hook(z, with_kwargs=True),
            ]
            if site.layer == 0:
                handles.append(site.block.register_forward_pre_hook(enters, with_kwargs=True))
            for handle in handles:
                stack.callback(handle.remove)
        stack.enter_context(on_blocks(model, [site.layer for site in sites], keep_stream))
        yield parts


@contextmanager
def _recording_plainly(
    model: TransformerBridge, layers: Sequence[int], before: int | None = None
) -> Iterator[Parts]:
    """Fill a `Parts` through the bridge's own hook points; rows are padded on the left."""
    parts = Parts()

    def keep(store: dict[int, Tensor], layer: int) -> Callable[[Tensor, Any], None]:
        def hook(values: Tensor, hook: Any) -> None:
            store[layer] = values[:, -1].flatten(1)

        return hook

    hooks = []
    for layer in layers:
        hooks += [
            (f"blocks.{layer}.attn.hook_z", keep(parts.z, layer)),
            (f"blocks.{layer}.hook_attn_out", keep(parts.attn, layer)),
            (f"blocks.{layer}.hook_mlp_out", keep(parts.mlp, layer)),
            (f"blocks.{layer}.hook_out", keep(parts.resid, layer)),
        ]
    if before is None:
        hooks.append(("blocks.0.hook_in", keep(parts.resid, -1)))
    else:
        hooks.append((f"blocks.{before}.hook_out", keep(parts.resid, before)))
    with model.hooks(fwd_hooks=hooks):
        yield parts
