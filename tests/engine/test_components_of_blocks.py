"""Claims about recording parts: every architecture, both paths, nothing left behind."""

import pytest
import torch
from hf_reference import residuals
from steering_examples import n_hooks
from tiny_models import byte_tokenizer
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GraniteConfig,
    MixtralConfig,
    Olmo2Config,
    Qwen2Config,
)

from steerlens.engine.components import check_components, last_parts, varied_parts
from steerlens.engine.linear_norms import head_contributions, through_final_norm
from steerlens.models.loading import load_model

SMALL = {"vocab_size": 260, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
BLOCKS = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
CONFIGS = [
    Qwen2Config(**SMALL, **BLOCKS),
    Olmo2Config(**SMALL, **BLOCKS),
    MixtralConfig(**SMALL, **BLOCKS, num_local_experts=2),
    GraniteConfig(**SMALL, **BLOCKS, residual_multiplier=0.3, embedding_multiplier=2.0),
    GPT2Config(**SMALL, n_embd=16, n_layer=3, n_head=4, n_positions=64, initializer_range=0.3),
]
ROWS = [[3, 4, 5, 6, 7], [3, 4, 9], [3, 4, 8, 8]]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
@pytest.mark.parametrize("hooked", [False, True], ids=["own path", "bridge"])
def test_parts_sum_to_the_stream_of_the_plain_model(config, hooked, tmp_path):
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    plain.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    model = load_model(tmp_path, device="cpu")
    check_components(model)
    streams = [residuals(plain, row)[-1] for row in ROWS]
    eye = torch.eye(16)
    seen = {}

    def visit(batch, parts):
        for place, i in enumerate(batch):
            total = parts.resid[-1][place].double()
            for layer in range(3):
                shares = head_contributions(model, layer, parts.z[layer], parts.attn[layer], eye)
                total = total + shares.heads[place].sum(0) + parts.mlp[layer][place]
                total = total if shares.bias is None else total + shares.bias[place]
            seen[i] = total

    watch = [("blocks.0.hook_in", lambda resid, hook: None)] if hooked else []
    with model.hooks(fwd_hooks=watch):
        last_parts(model, ROWS, 3, 2, visit)
    for i, stream in enumerate(streams):
        assert torch.allclose(seen[i].float(), stream, atol=1e-4)


def test_variants_pass_through_the_blocks_above_as_the_bridge_runs_them(tiny_model):
    row, shift = [3, 4, 5, 6], torch.linspace(-1, 1, 16)
    parts = varied_parts(tiny_model, row, 0, 2, lambda x: torch.stack([x, x + shift]))

    def steer(resid, hook):
        resid[:, -1] += shift
        return resid

    for variant, hooks in enumerate([[], [("blocks.0.hook_out", steer)]]):
        with tiny_model.hooks(fwd_hooks=hooks):
            _, cache = tiny_model.run_with_cache(torch.tensor([row]))
        for layer in (1, 2):
            expected = cache[f"blocks.{layer}.hook_out"][0, -1]
            assert torch.allclose(parts.resid[layer][variant], expected, atol=1e-5)
            assert torch.allclose(
                parts.mlp[layer][variant], cache[f"blocks.{layer}.hook_mlp_out"][0, -1], atol=1e-5
            )


def test_a_direction_of_logits_goes_through_the_frozen_final_norm(tiny_model):
    resid = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    target = torch.randn(16, generator=torch.Generator().manual_seed(1))
    aimed, scale = through_final_norm(tiny_model, target, resid)
    with torch.no_grad():
        expected = tiny_model.original_model.model.norm(resid) @ target
    assert torch.allclose((scale * (resid.double() @ aimed)).float(), expected, atol=1e-5)


def test_nothing_stays_on_the_model_after_a_failure(tiny_model):
    root = tiny_model.original_model
    before = [id(module) for module in root.modules()], n_hooks(tiny_model)
    recorded = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in root.modules())

    def fail(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        varied_parts(tiny_model, [3, 4, 5], 1, 2, fail)
    with pytest.raises(KeyboardInterrupt):
        last_parts(tiny_model, ROWS, 3, 2, lambda batch, parts: fail(parts))
    after = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in root.modules())
    assert ([id(module) for module in root.modules()], n_hooks(tiny_model)) == before
    assert after == recorded
