"""Attention on a CPU: one new token per row over memory that is never copied, and prompts.

**Decoding.** The query of a step is one token per row, so attention is two small matrix products
per row and key-value head. Query heads that share a key-value head ride in one product, keys lie
transposed in memory (`steerlens.engine.memory.SlotCache`) so that the first product reads them in
order, and the mask is added as numbers. On two CPU cores in bfloat16 a step over 96 rows × 105
tokens takes 0.5 ms per layer, the fused kernel with a boolean mask 1.1–1.7 ms. Compiling does not
pay: with norms and MLPs compiled a step over 96 rows took 90 ms instead of 80, after 26 s.

**Reading prompts in half precision.** The bridge's attention rounds scores and pattern to the
model's dtype, the fused kernel keeps them in float32. Either is as far from a float32 computation.
While a generation reads prompts in bfloat16, `read_attention` rounds as the bridge does, so that
greedy text follows TransformerLens's more closely.

**Attention without a fused kernel.** Soft-capped scores (Gemma 2) and attention sinks (GPT-OSS)
are not part of the fused kernel. Both functions have them, and serve such models throughout.

Both are registered with Hugging Face's attention interface on first use, and chosen for a time.
"""

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from steerlens.models.adapter import hugging_face

__all__ = [
    "DECODE",
    "READ",
    "attention_chosen",
    "branching_attention",
    "decode_attention",
    "decoding_attention",
    "read_attention",
    "reading_attention",
]

DECODE = "steerlens_decode"
READ = "steerlens_read"
_FEW = 4


def decode_attention(
    module: nn.Module,
    query: Float[Tensor, "row head one d_head"],
    key: Float[Tensor, "row kv_head pos d_head"],
    value: Float[Tensor, "row kv_head pos d_v"],
    attention_mask: Float[Tensor, "#row 1 1 pos"],
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Float[Tensor, "head"] | None = None,
    **_options: Any,
) -> tuple[Float[Tensor, "row one head d_v"], None]:
    """Attention of one query token per row; the signature is Hugging Face's.

    Args:
        module: Not looked at.
        query: Queries of the new tokens.
        key: Keys of all tokens so far; fastest when their last two axes lie transposed in memory.
        value: Values of all tokens so far.
        attention_mask: 0 where a key may be seen, minus infinity elsewhere; float32.
        scaling: Factor of the scores; ``d_head ** -0.5`` by default.
        softcap: Soft limit of the scores (Gemma 2).
        s_aux: Attention sink of each head: a score that takes its share and gives nothing.
    """
    n_rows, n_heads, _, width = query.shape
    n_shared = key.shape[1]
    scaled = query.to(key.dtype) * (width**-0.5 if scaling is None else scaling)
    # flatten and view, not einops: this runs 30 times a step, and each of these is a microsecond.
    grouped = scaled.reshape(n_rows * n_shared, n_heads // n_shared, width)
    scores = torch.bmm(grouped, key.mT.flatten(0, 1))
    if softcap is not None:
        scores = softcap * torch.tanh(scores.float() / softcap)
    # The mask is float32, so the sum and its softmax are too.
    seen = scores.view(n_rows, n_shared, *scores.shape[1:]) + attention_mask
    sinks = None if s_aux is None else s_aux.view(1, n_shared, -1, 1)
    pattern = _softmax(seen, sinks).to(value.dtype)
    out = torch.bmm(pattern.flatten(0, 1), value.flatten(0, 1))
    return out.view(n_rows, 1, n_heads, value.shape[-1]).to(query.dtype), None


def read_attention(
    module: nn.Module,
    query: Float[Tensor, "row head query d_head"],
    key: Float[Tensor, "row kv_head pos d_head"],
    value: Float[Tensor, "row kv_head pos d_v"],
    attention_mask: Float[Tensor, "#row 1 query pos"] | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Float[Tensor, "head"] | None = None,
    **_options: Any,
) -> tuple[Float[Tensor, "row query head d_v"], None]:
    """Attention of many query tokens per row, with scores and pattern in the model's dtype.

    Arguments as for `decode_attention`; without a mask all keys are seen.
    """
    n_rows, n_heads, n_queries, width = query.shape
    n_shared = key.shape[1]
    grouped = query.reshape(n_rows * n_shared, n_heads // n_shared * n_queries, width)
    scores = torch.bmm(grouped, key.flatten(0, 1).mT)
    scores *= width**-0.5 if scaling is None else scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    by_head = scores.view(n_rows, n_heads, n_queries, -1)
    if attention_mask is not None:
        by_head += attention_mask.to(scores.dtype)
    sinks = None if s_aux is None else s_aux.view(1, -1, 1, 1).to(scores.dtype)
    pattern = _softmax(by_head, sinks).reshape(scores.shape)
    out = torch.bmm(pattern, value.flatten(0, 1))
    return out.view(n_rows, n_heads, n_queries, -1).transpose(1, 2), None


def _softmax(
    scores: Float[Tensor, "row head query pos"], sinks: Float[Tensor, "1 #head #query 1"] | None
) -> Float[Tensor, "row head query pos"]:
    """Over keys and, where heads have one, the sink beside them."""
    if sinks is None:
        return scores.softmax(-1)
    beside = sinks.expand(*scores.shape[:-1], 1)
    return torch.cat([scores, beside.to(scores.dtype)], dim=-1).softmax(-1)[..., :-1]


@functools.cache
def _register() -> None:
    hugging_face.register_attention(DECODE, decode_attention)
    hugging_face.register_attention(READ, read_attention)


@contextmanager
def decoding_attention(model: TransformerBridge) -> Iterator[bool]:
    """Choose `decode_attention` on a CPU; yields whether it is chosen."""
    wanted = next(model.original_model.parameters()).device.type == "cpu"
    with attention_chosen(model.original_model, DECODE if wanted else None):
        yield wanted


def reading_attention(model: TransformerBridge) -> AbstractContextManager[None]:
    """Choose `read_attention` on a CPU in half precision."""
    weight = next(model.original_model.parameters())
    wanted = weight.device.type == "cpu" and weight.dtype in (torch.bfloat16, torch.float16)
    return attention_chosen(model.original_model, READ if wanted else None)


def branching_attention(model: TransformerBridge, n_queries: int) -> AbstractContextManager[None]:
    """Choose `read_attention` on a CPU for rows with few new tokens behind many keys.

    The fused kernel takes a copy of keys and values for every query head that shares them: with 2
    new tokens behind 100 that copying took as long as the rest of attention.
    """
    root = model.original_model
    on_cpu = next(root.parameters()).device.type == "cpu"
    wanted = on_cpu and n_queries <= _FEW and hugging_face.supports_custom_attention(root)
    return attention_chosen(root, READ if wanted else None)


def attention_chosen(root: nn.Module, name: str | None) -> AbstractContextManager[None]:
    """Within the block, a Hugging Face model's modules attend in this way.

    Args:
        root: A Hugging Face model.
        name: As in Hugging Face's attention interface; ``None`` leaves it as it is.
    """
    _register()
    return hugging_face.attention_chosen(root, name)
