"""What attention and MLPs write to the residual stream at the last token of each row.

A block adds two vectors to the stream, its attention's and its MLP's. `last_parts` records both for
unsteered rows, with what the attention heads put in (``z``, before the output projection) and the
stream itself. `varied_parts` does so for one row whose last residual is replaced by several others
at one layer. Only the last token is kept, and everything else about a head follows from ``z``
(`steerlens.engine.linear_norms`).

Where a norm follows attention or MLP (Gemma 2 and 3, OLMo 2), what is written is what leaves that
norm. TransformerLens's aliases ``hook_attn_out`` and ``hook_mlp_out`` point there, on both paths.

`ActivationCache.get_full_resid_decomposition` gives the same parts where no norm follows attention,
but keeps ``[layer × head, row, pos, d_model]`` and runs every row whole; so it serves the tests.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.batches import common_prefix, length_batches
from steerlens.engine.choosing import running
from steerlens.engine.forward import PassRow, run_rows
from steerlens.engine.modules import blocks_of, fast_modules, on_blocks
from steerlens.engine.plain import bridge_pass
from steerlens.engine.reading import read
from steerlens.errors import ModelError
from steerlens.models.adapter.bridge import norm_after, own_module, parts_of
from steerlens.steering.roles import TokenRoles

__all__ = ["Parts", "check_components", "last_parts", "varied_parts"]


@dataclass(frozen=True, eq=False)
class Parts:
    """What was written to the stream at the last token of some rows; all are by layer.

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
        batch_size: Rows per forward pass.
        visit: Called with the numbers of a batch's rows and their parts.
    """
    lengths = [len(row) for row in rows]
    with running(model, max(lengths, default=0)) as path:
        if not path.is_fast:
            for batch in path.batches(lengths, batch_size):
                with _recording_plainly(model, range(stop)) as parts:
                    bridge_pass(model, [rows[i] for i in batch], stop=stop)
                visit(batch, parts)
            return
        shared, trunk = common_prefix(rows), None
        sources = _sources(model, range(stop))
        if shared:
            with fast_modules(model):
                [trunk] = read(model, [rows[0][:shared]], [None], stop)
        for batch in length_batches(lengths, batch_size):
            tails = [PassRow(tokens=rows[i][shared:], before=trunk) for i in batch]
            ends = [tail.n_tokens - 1 for tail in tails]
            with fast_modules(model), _recording(model, sources, ends) as parts:
                run_rows(model, tails, stop)
            # Outside, where the model's parts have their own names again.
            visit(batch, parts)


@torch.inference_mode()
def varied_parts(
    model: TransformerBridge, tokens: Sequence[int], layer: int, n_variants: int, vary: Vary
) -> Parts:
    """Parts of the blocks above `layer` when the last token's residual there takes several values.

    Args:
        model: A hooked model whose blocks have parts.
        tokens: One row, at least two tokens.
        layer: After this block the residual is replaced.
        n_variants: How many values `vary` gives.
        vary: The values, from the residual as it was.

    Returns:
        Parts with one row per variant, the stream at `layer` as replaced included.
    """
    above = range(layer + 1, model.cfg.n_layers)
    with running(model, len(tokens)) as path:
        if not path.is_fast:
            with _recording_plainly(model, above) as parts:
                bridge_pass(
                    model,
                    [tokens] * n_variants,
                    _Vary(layer, vary),
                    observe=lambda at, _, resid: parts.resid.update({at: resid[:, -1]}),
                    observed=[layer],
                )
            return parts
        sources = _sources(model, above)
        with fast_modules(model):
            # No other token sees the last one, so those before it are run once.
            [before] = read(model, [tokens[:-1]], [None])
            [ending] = read(model, [tokens[-1:]], [before], layer + 1, [layer])
            variants = vary(ending.resid[layer][0])
            rows = [PassRow(resid=resid[None], layer=layer, before=before) for resid in variants]
            with _recording(model, sources, [0] * n_variants) as parts:
                run_rows(model, rows)
        parts.resid[layer] = variants
        return parts


class _Vary:
    """Puts another residual at the last token of each row."""

    def __init__(self, layer: int, vary: Vary) -> None:
        self.layers, self.vary = [layer], vary

    def apply(
        self, layer: int, resid: Float[Tensor, "batch pos d_model"], roles: TokenRoles
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residuals with the last ones replaced."""
        return torch.cat([resid[:, :-1], self.vary(resid[0, -1])[:, None]], dim=1)


@dataclass(frozen=True, eq=False)
class _Source:
    """A module to listen to once the bridge's components are out of the way.

    Attributes:
        part: The field of `Parts`.
        layer: Under which layer.
        module: The module.
        is_input: Whether its input is recorded, not its output.
        scale: Factor of what is recorded (Granite).
    """

    part: str
    layer: int
    module: nn.Module
    is_input: bool = False
    scale: float = 1.0


def _sources(model: TransformerBridge, layers: Iterable[int]) -> list[_Source]:
    """To be called outside `fast_modules`, where blocks are the bridge's."""
    sources = []
    for layer in layers:
        block = model.blocks[layer]
        project = own_module(block.attn.o)
        attn = norm_after(block, "hook_attn_out") or project
        mlp = norm_after(block, "hook_mlp_out") or own_module(block.mlp)
        scale = float(getattr(block, "residual_contribution_scale", 1.0))
        sources += [
            _Source("z", layer, project, is_input=True),
            _Source("attn", layer, attn, scale=scale),
            _Source("mlp", layer, mlp, scale=scale),
        ]
        if layer == 0:
            sources.append(_Source("resid", -1, own_module(block), is_input=True))
    return sources


@contextmanager
def _recording(
    model: TransformerBridge, sources: Sequence[_Source], ends: Sequence[int]
) -> Iterator[Parts]:
    """Fill a `Parts` from the plain modules, inside `fast_modules`; `ends` are the last tokens."""
    parts = Parts()

    def last(values: Tensor) -> Tensor:
        return values[list(range(len(ends))), list(ends)]

    def at(source: _Source) -> Callable[..., None]:
        def hook(_module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any = None) -> None:
            values = output[0] if isinstance(output, tuple) else output
            if source.is_input:
                values = args[0] if args else kwargs["hidden_states"]
            getattr(parts, source.part)[source.layer] = last(values) * source.scale

        return hook

    def keep_stream(layer: int, resid: Tensor) -> None:
        parts.resid[layer] = last(resid)

    with ExitStack() as stack:
        for source in sources:
            module = source.module
            listen = (
                module.register_forward_pre_hook
                if source.is_input
                else module.register_forward_hook
            )
            stack.callback(listen(at(source), with_kwargs=True).remove)
        layers = {source.layer for source in sources if source.layer >= 0}
        stack.enter_context(on_blocks(blocks_of(model), layers, keep_stream))
        yield parts


@contextmanager
def _recording_plainly(model: TransformerBridge, layers: Sequence[int]) -> Iterator[Parts]:
    """Fill a `Parts` through the bridge's own hook points; rows are padded on the left."""
    parts = Parts()

    def at(name: str, store: dict[int, Tensor], layer: int) -> tuple[str, Callable[..., None]]:
        def hook(values: Tensor, hook: Any) -> None:
            store[layer] = values[:, -1].flatten(1)

        return name, hook

    hooks = [at("blocks.0.hook_in", parts.resid, -1)] if 0 in layers else []
    for layer in layers:
        hooks += [
            at(f"blocks.{layer}.attn.hook_z", parts.z, layer),
            at(f"blocks.{layer}.hook_attn_out", parts.attn, layer),
            at(f"blocks.{layer}.hook_mlp_out", parts.mlp, layer),
            at(f"blocks.{layer}.hook_out", parts.resid, layer),
        ]
    with model.hooks(fwd_hooks=hooks):
        yield parts
