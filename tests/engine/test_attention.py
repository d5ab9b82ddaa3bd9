"""The engine's attention against Hugging Face's own, and chosen for a time only."""

from types import SimpleNamespace

import pytest
import torch
from transformers.models.llama.modeling_llama import eager_attention_forward

from steerlens.engine.attention import (
    DECODE,
    READ,
    decode_attention,
    decoding_attention,
    read_attention,
    reading_attention,
)
from steerlens.engine.modules import fast_modules
from steerlens.models.loading import load_model

N_ROWS, N_HEADS, N_SHARED, N_KEYS, WIDTH = 3, 6, 2, 11, 8


def _parts(n_queries: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Queries, keys, values, and a causal mask under which later rows miss their first keys."""
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(N_ROWS, N_HEADS, n_queries, WIDTH, generator=draw).to(dtype)
    key, value = (
        torch.randn(N_ROWS, N_SHARED, N_KEYS, WIDTH, generator=draw).to(dtype) for _ in range(2)
    )
    places = torch.arange(N_KEYS)
    seen = places <= N_KEYS - n_queries + torch.arange(n_queries)[:, None]
    seen = seen & (places >= torch.arange(N_ROWS)[:, None, None])
    mask = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)[:, None]
    return query, key, value, mask


def _theirs(query, key, value, mask, scaling):
    module = SimpleNamespace(num_key_value_groups=N_HEADS // N_SHARED, training=False)
    out, _ = eager_attention_forward(module, query, key, value, mask.to(query.dtype), scaling)
    return out


@pytest.mark.parametrize(
    ("ours", "n_queries"),
    [(read_attention, 5), (read_attention, N_KEYS - 2), (decode_attention, 1)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_hugging_faces_eager_one(ours, n_queries, dtype):
    query, key, value, mask = _parts(n_queries, dtype)
    before = [one.clone() for one in (query, key, value, mask)]
    out, _ = ours(torch.nn.Identity(), query, key, value, mask, scaling=0.3)
    theirs = _theirs(query, key, value, mask, 0.3)
    if dtype is torch.float32:
        torch.testing.assert_close(out, theirs, atol=1e-6, rtol=1e-6)
    else:
        # In half precision kernels round as the processor has them: what is asked is that ours is
        # as near to the exact result as theirs. 2: the last rounding alone may go either way.
        exact = _theirs(query.float(), key.float(), value.float(), mask, 0.3)
        assert (out - exact).abs().max() <= 2 * (theirs - exact).abs().max()
    # and what it was given is as it was
    for one, other in zip(before, (query, key, value, mask), strict=True):
        assert torch.equal(one, other)


def test_a_soft_limit_bounds_the_scores():
    query, key, value, mask = _parts(5, torch.float32)
    out, _ = read_attention(torch.nn.Identity(), query, key, value, mask, 1.0, softcap=2.0)
    grouped = key.repeat_interleave(N_HEADS // N_SHARED, 1)
    scores = 2 * torch.tanh(query @ grouped.mT / 2) + mask
    theirs = scores.softmax(-1) @ value.repeat_interleave(N_HEADS // N_SHARED, 1)
    torch.testing.assert_close(out, theirs.transpose(1, 2), atol=1e-6, rtol=1e-6)


def test_reading_rounds_as_the_bridge_in_half_precision_only_and_is_put_back(tiny_folder):
    for dtype, name in (("float32", "sdpa"), ("bfloat16", READ)):
        model = load_model(tiny_folder, dtype=dtype, device="cpu")
        config = model.original_model.config
        before = config._attn_implementation
        with fast_modules(model):
            with pytest.raises(KeyError), reading_attention(model):
                assert config._attn_implementation == name
                with decoding_attention(model):
                    assert config._attn_implementation == DECODE
                assert config._attn_implementation == name
                raise KeyError
            assert config._attn_implementation == "sdpa"
        assert config._attn_implementation == before
