"""Blocks in fewer operations: Hugging Face's numbers, in every known kind of block."""

import pytest
import torch
import transformers

from steerlens.engine.attention import READ, attention_chosen
from steerlens.engine.fused_blocks import _FusedBlock, _Rotation, plainly
from steerlens.engine.memory import PassCache, SlotCache, attention_masks
from steerlens.models.adapter.blocks import block_parts

SIZES = {
    "vocab_size": 64,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
WINDOWS = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
CONFIGS = {
    "llama": transformers.LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "mistral": transformers.MistralConfig(**SIZES, sliding_window=4),
    "qwen2": transformers.Qwen2Config(**SIZES),
    "qwen3": transformers.Qwen3Config(**SIZES),
    "gemma3": transformers.Gemma3TextConfig(**SIZES, **WINDOWS, query_pre_attn_scalar=9),
}


def built(name, dtype=torch.float32):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def fuse(model):
    rotation = _Rotation()
    for block in model.model.layers:
        vars(block)["forward"] = _FusedBlock(block_parts(block), plainly, rotation)


def error(ours, true):
    return float((ours.double() - true.double()).norm() / true.double().norm())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_pass_and_steps_give_hugging_faces_logits(name):
    model = built(name)
    tokens = torch.randint(3, 64, (3, 9), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        true = model(tokens, use_cache=False).logits
        fuse(model)
        assert error(model(tokens, use_cache=False).logits, true) < 1e-5

        first, slots = PassCache([None] * 3, remember=True), SlotCache(3, 12)
        model(tokens[:, :6], past_key_values=first, attention_mask=None)
        for layer, (keys, values) in first.new.items():
            for slot in range(3):
                slots.write(slot, layer, keys[slot], values[slot])
        for place in range(6, 9):
            positions = slots.begin_step([place] * 3, "cpu")
            keys = torch.arange(slots.width)[None]
            masks = attention_masks(
                model.config, positions, keys, torch.ones_like(keys).bool(), torch.float32
            )
            step = model(
                tokens[:, place : place + 1],
                past_key_values=slots,
                position_ids=positions,
                attention_mask=masks,
            )
            assert error(step.logits[:, 0], true[:, place]) < 1e-5


@pytest.mark.parametrize("name", CONFIGS)
def test_in_bfloat16_it_is_as_near_to_float32_as_hugging_face_is(name):
    exact, half = built(name), built(name, torch.bfloat16)
    exact.load_state_dict({key: own.float() for key, own in half.state_dict().items()})
    tokens = torch.randint(3, 64, (8, 16), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode(), attention_chosen(half, READ):
        true = exact(tokens, use_cache=False).logits
        theirs = error(half(tokens, use_cache=False).logits, true)
        fuse(half)
        ours = error(half(tokens, use_cache=False).logits, true)
    # It rounds less often. A quarter is the scatter of such an error over four small blocks.
    assert ours < 1.25 * theirs


def test_other_blocks_and_changed_ones_are_left_alone():
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2))
    assert block_parts(gpt2.transformer.h[0]) is None
    block = built("llama").model.layers[0]
    assert block_parts(block) is not None
    block.mlp.up_proj.forward = lambda inputs: inputs
    assert block_parts(block) is None
    other = built("llama").model.layers[0]
    other.mlp.down_proj = torch.nn.Sequential(other.mlp.down_proj)
    assert block_parts(other) is None
