"""Decoder blocks in fewer operations, for the time of a call.

In a step of decoding over one row a block of a small model takes as long for the calls around its
matrix products as for the products. So blocks of known kinds
(`steerlens.models.adapter.blocks`) run here as one function: queries, keys and values are one
product where their weights are packed, gate and up another; queries and keys are rotated together,
by factors that are made once per pass; a norm is one operation. Everything around the blocks
(embeddings, positions, masks, final norm) stays Hugging Face's own, and so do blocks of any other
kind. The result is that of the block's own forward up to rounding, which
`steerlens.engine.verification` checks for each architecture with the rest of the engine.

Norm and rotation round once where Hugging Face's round after every operation.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.attention import decode_attention
from steerlens.engine.memory import SlotCache
from steerlens.engine.modules import blocks_of
from steerlens.models.adapter.blocks import (
    BlockParts,
    attention_named,
    block_parts,
    norm_epsilon,
)
from steerlens.models.exclusion import to_its_end

__all__ = ["Product", "fused_blocks", "plainly"]

Product = Callable[[Sequence[nn.Linear], Tensor], Sequence[Tensor]]
"""Several linear layers of one input: what each puts out, or all of it as one tensor."""


def plainly(linears: Sequence[nn.Linear], inputs: Tensor) -> Sequence[Tensor]:
    """Each layer by itself."""
    return [functional.linear(inputs, linear.weight, linear.bias) for linear in linears]


@contextmanager
def fused_blocks(model: TransformerBridge, product: Product = plainly) -> Iterator[bool]:
    """Run blocks of known kinds in fewer operations; yields whether all of them are.

    Args:
        model: A model inside `fast_modules`, to be called under ``inference_mode`` only.
        product: How linear layers are multiplied.
    """
    rotation = _Rotation()
    fused: list[nn.Module] = []
    blocks = blocks_of(model)
    parts = [block_parts(block) for block in blocks]
    try:
        for block, its in zip(blocks, parts, strict=True):
            if its is not None:
                vars(block)["forward"] = _FusedBlock(its, product, rotation)
                fused.append(block)
        yield len(fused) == len(blocks)
    finally:
        to_its_end(lambda: _let_go(fused))


def _let_go(blocks: Sequence[nn.Module]) -> None:
    for block in blocks:
        vars(block).pop("forward", None)


class _Rotation:
    """Factors of rotary positions, made once per pass from the cosines and sines of a model.

    With halves :math:`x = (x_1, x_2)`, :math:`(x_1 c - x_2 s, x_2 c + x_1 s)` is
    :math:`x \\odot (c, c) + (x_2, x_1) \\odot (-s, s)`.
    """

    def __init__(self) -> None:
        self._known: list[tuple[Any, torch.dtype, tuple[Tensor, Tensor]]] = []

    def factors(self, embeddings: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Factors of a head and of its swapped halves, ``[row pos 1 d_head]``."""
        for known, known_dtype, factors in self._known:
            if known is embeddings and known_dtype == dtype:
                return factors
        cos, sin = (part[:, :, None].to(dtype) for part in embeddings)
        half = sin.shape[-1] // 2
        factors = (cos, torch.cat([-sin[..., :half], sin[..., half:]], dim=-1))
        # Models with windows have two kinds of positions.
        self._known = [*self._known[-1:], (embeddings, dtype, factors)]
        return factors


class _FusedBlock:
    """The forward of one block.

    Args:
        parts: Its modules.
        product: How linear layers are multiplied.
        rotation: Shared by all blocks.
    """

    def __init__(self, parts: BlockParts, product: Product, rotation: _Rotation) -> None:
        self.parts, self.product, self.rotation = parts, product, rotation
        attention, mlp = parts.attention, parts.mlp
        self.width = attention.head_dim
        self.counts = [linear.out_features // self.width for linear in parts.readers]
        self.gated = (mlp.gate_proj, mlp.up_proj)
        self.activation = mlp.act_fn.forward if isinstance(mlp.act_fn, nn.Module) else mlp.act_fn
        gain_from = parts.gain_from
        self.norm_in = _norm(parts.norm_in, gain_from)
        self.norm_out = _norm(parts.norm_out, gain_from)
        self.norm_mlp_in = _norm(parts.norm_mlp_in, gain_from)
        self.norm_mlp_out = _norm(parts.norm_mlp_out, gain_from)
        self.norm_query = _norm(parts.norm_query, gain_from)
        self.norm_key = _norm(parts.norm_key, gain_from)

    def __call__(
        self,
        hidden_states: Float[Tensor, "row pos d_model"],
        attention_mask: Any = None,
        past_key_values: Any = None,
        position_embeddings: Any = None,
        **_options: Any,
    ) -> Float[Tensor, "row pos d_model"]:
        attended = self._attended(
            self.norm_in(hidden_states), attention_mask, past_key_values, position_embeddings
        )
        hidden_states = hidden_states + self.norm_out(attended)
        joint = self.product(self.gated, self.norm_mlp_in(hidden_states))
        gate, up = joint if len(joint) == 2 else joint[0].chunk(2, dim=-1)
        [out] = self.product((self.parts.mlp.down_proj,), self.activation(gate).mul_(up))
        return hidden_states + self.norm_mlp_out(out)

    def _attended(
        self, normed: Tensor, mask: Any, cache: Any, embeddings: Any
    ) -> Float[Tensor, "row pos d_model"]:
        shape = (*normed.shape[:2], -1, self.width)
        is_step = isinstance(cache, SlotCache)
        dtype = cache.dtype or normed.dtype if is_step else normed.dtype
        factors = self.rotation.factors(embeddings, dtype)
        heads = [part.view(shape) for part in self.product(self.parts.readers, normed)]
        if len(heads) == 1 and self.parts.norm_query is None:
            both, value = torch.split(
                heads[0].to(dtype), [sum(self.counts[:2]), self.counts[2]], dim=2
            )
            query, key = torch.split(_rotated(both, *factors), self.counts[:2], dim=2)
        else:
            query, key, value = (
                heads if len(heads) == 3 else torch.split(heads[0], self.counts, dim=2)
            )
            query = _rotated(self.norm_query(query).to(dtype), *factors)
            key = _rotated(self.norm_key(key).to(dtype), *factors)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        attention = self.parts.attention
        if cache is not None:
            key, value = cache.update(key, value, self.parts.layer)
        options = {"scaling": attention.scaling}
        if getattr(attention, "attn_logit_softcapping", None) is not None:
            options["softcap"] = attention.attn_logit_softcapping
        is_ours = is_step and normed.device.type == "cpu"
        attend = decode_attention if is_ours else attention_named(attention)
        out, _ = attend(attention, query, key, value, mask, dropout=0.0, **options)
        flat = out.reshape(*normed.shape[:2], -1).to(normed.dtype)
        [out] = self.product((attention.o_proj,), flat)
        return out


def _rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return torch.addcmul(heads * cos, heads.roll(heads.shape[-1] // 2, -1), sin)


def _norm(norm: Any, gain_from: int) -> Callable[[Tensor], Tensor]:
    """A root-mean-square norm as one operation; nothing where there is none."""
    if norm is None:
        return _unchanged
    epsilon, gain = norm_epsilon(norm), norm.weight
    shape = gain.shape
    if gain_from:
        gain = gain.float() + gain_from

        def wide(inputs: Tensor) -> Tensor:
            return functional.rms_norm(inputs.float(), shape, gain, epsilon).to(inputs.dtype)

        return wide
    return lambda inputs: functional.rms_norm(inputs, shape, gain, epsilon)


def _unchanged(inputs: Tensor) -> Tensor:
    return inputs
