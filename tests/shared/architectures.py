"""Tiny random models of many families, and how each runs through the package beside plain hooks.

A family is a Hugging Face config small enough that its model is built and loaded in a fraction of
a second, yet with every kind of block that the family has (sliding and full attention, dense and
mixture-of-experts, with and without rotary positions).
"""

from pathlib import Path

from family import (
    ALL_EXPERTS,
    ALTERNATING,
    CHUNKED,
    CONTEXT,
    IDS,
    LONGROPE,
    SWITCH,
    WINDOW,
    Family,
    usual,
)
from tiny_models import byte_tokenizer

GPT2 = {**IDS, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": CONTEXT}
FALCON = {
    **IDS,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.3,
}
LATENT = {  # DeepSeek's attention
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}

RECURRENT = {**IDS, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 3}

FAMILIES: dict[str, Family] = {
    "llama": usual("LlamaConfig"),
    "llama-3 rope": usual(
        "LlamaConfig",
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": SWITCH,
        },
    ),
    "llama, linear rope": usual(
        "LlamaConfig", rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
    ),
    "llama, longrope": usual(
        "LlamaConfig", rope_parameters=LONGROPE, may_refuse="crossing", is_plain=True
    ),
    "mistral": usual("MistralConfig", sliding_window=WINDOW),
    "mixtral": usual(
        "MixtralConfig",
        sliding_window=WINDOW,
        num_local_experts=4,
        num_experts_per_tok=2,
        in_half=ALL_EXPERTS,
    ),
    "qwen2": usual("Qwen2Config"),
    "qwen2-moe": usual(
        "Qwen2MoeConfig",
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        num_experts=4,
        num_experts_per_tok=2,
        decoder_sparse_step=2,
        in_half=ALL_EXPERTS,
    ),
    "qwen3": usual("Qwen3Config", head_dim=8),
    "qwen3-moe": usual(
        "Qwen3MoeConfig",
        head_dim=8,
        moe_intermediate_size=16,
        num_experts=4,
        num_experts_per_tok=2,
        mlp_only_layers=[1],
        in_half=ALL_EXPERTS,
    ),
    "gemma": usual("GemmaConfig", head_dim=8),
    "gemma-2": usual(
        "Gemma2Config",
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=WINDOW,
        layer_types=ALTERNATING,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=3.0,
    ),
    "gemma-3": usual(
        "Gemma3TextConfig",
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=WINDOW,
        layer_types=ALTERNATING,
    ),
    "phi": usual("PhiConfig", partial_rotary_factor=0.5),
    "phi-3": usual("Phi3Config", sliding_window=WINDOW),
    "phi-3, longrope": usual(
        "Phi3Config",
        rope_parameters=LONGROPE,
        original_max_position_embeddings=SWITCH,
        may_refuse="crossing",
        recomputes=True,
        is_plain=True,
    ),
    "olmo": usual("OlmoConfig", clip_qkv=8.0),
    "olmo-2": usual("Olmo2Config"),
    "olmo-3": usual("Olmo3Config", sliding_window=WINDOW, layer_types=ALTERNATING),
    "gpt-2": Family("GPT2Config", {**GPT2, "initializer_range": 0.3}),
    "gpt-2, scaled by layer": Family(
        "GPT2Config",
        {**GPT2, "initializer_range": 0.3, "scale_attn_by_inverse_layer_idx": True},
    ),
    "gpt-neo": Family(
        "GPTNeoConfig",
        {
            **IDS,
            "hidden_size": 32,
            "num_layers": 4,
            "num_heads": 4,
            "max_position_embeddings": CONTEXT,
            "window_size": WINDOW,
            "attention_types": [[["global", "local"], 2]],
            "initializer_range": 0.3,
        },
        is_plain=True,
    ),
    "gpt-neox": usual("GPTNeoXConfig", num_key_value_heads=None, rotary_pct=0.5),
    "gpt-neox, sequential": usual(
        "GPTNeoXConfig", num_key_value_heads=None, use_parallel_residual=False
    ),
    "gpt-j": Family(
        "GPTJConfig", {**GPT2, "rotary_dim": 4, "initializer_range": 0.3}, is_plain=True
    ),
    "gpt-bigcode": Family("GPTBigCodeConfig", {**GPT2, "initializer_range": 0.3}),
    "opt": Family(
        "OPTConfig",
        {
            **IDS,
            "hidden_size": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": CONTEXT,
            "word_embed_proj_dim": 32,
            "init_std": 0.3,
        },
    ),
    "opt, norm after": Family(
        "OPTConfig",
        {
            **IDS,
            "hidden_size": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": CONTEXT,
            "word_embed_proj_dim": 16,
            "do_layer_norm_before": False,
            "init_std": 0.3,
        },
    ),
    "bloom": Family(
        "BloomConfig",
        {**IDS, "hidden_size": 32, "n_layer": 4, "n_head": 4, "initializer_range": 0.3},
        is_plain=True,
    ),
    "falcon": Family("FalconConfig", FALCON),
    "falcon, sequential": Family(
        "FalconConfig", {**FALCON, "parallel_attn": False, "bias": True, "multi_query": False}
    ),
    "falcon, alibi": Family("FalconConfig", {**FALCON, "alibi": True}, is_plain=True),
    "stablelm": usual("StableLmConfig", partial_rotary_factor=0.5),
    "stablelm, parallel": usual(
        "StableLmConfig", use_parallel_residual=True, qk_layernorm=True, use_qkv_bias=True
    ),
    "cohere": usual("CohereConfig", logit_scale=0.5),
    "cohere-2": usual(
        "Cohere2Config", logit_scale=0.5, sliding_window=WINDOW, layer_types=ALTERNATING
    ),
    "granite": usual(
        "GraniteConfig",
        embedding_multiplier=2.0,
        logits_scaling=2.0,
        residual_multiplier=0.5,
        attention_multiplier=0.2,
    ),
    "mpt": Family(
        "MptConfig",
        {
            **IDS,
            "d_model": 32,
            "n_heads": 4,
            "n_layers": 4,
            "max_seq_len": CONTEXT,
            "initializer_range": 0.3,
        },
        is_plain=True,
    ),
    "starcoder-2": usual("Starcoder2Config", sliding_window=WINDOW, use_bias=True),
    "gpt-oss": usual(
        "GptOssConfig",
        head_dim=8,
        intermediate_size=16,
        sliding_window=WINDOW,
        layer_types=ALTERNATING,
        num_local_experts=4,
        num_experts_per_tok=2,
        in_half=ALL_EXPERTS,
    ),
    "llama-4": usual(
        "Llama4TextConfig",
        head_dim=8,
        intermediate_size=16,
        intermediate_size_mlp=32,
        num_local_experts=4,
        num_experts_per_tok=1,
        interleave_moe_layer_step=2,
        attention_chunk_size=WINDOW,
        layer_types=CHUNKED,
        no_rope_layers=[1, 1, 0, 1],
        floor_scale=SWITCH,
        attn_scale=0.5,
        in_half=ALL_EXPERTS,
        is_plain=True,
    ),
    "deepseek-2": usual(
        "DeepseekV2Config",
        **(LATENT | {"topk_method": "greedy", "n_group": 1, "topk_group": 1}),
        in_half=ALL_EXPERTS,
    ),
    "deepseek-3": usual(
        "DeepseekV3Config", **(LATENT | {"n_group": 2, "topk_group": 1}), in_half=ALL_EXPERTS
    ),
    "smollm-3": usual("SmolLM3Config", no_rope_layers=[1, 0, 1, 0]),
    "smollm-3, sliding": usual(
        "SmolLM3Config",
        no_rope_layers=[1, 0, 1, 0],
        use_sliding_window=True,
        sliding_window=WINDOW,
        layer_types=ALTERNATING,
    ),
    "glm-4": usual("Glm4Config", head_dim=8),
    "exaone-4": usual("Exaone4Config", head_dim=8, sliding_window=WINDOW, layer_types=ALTERNATING),
    "nemotron": usual("NemotronConfig"),
    "granite-moe": usual(
        "GraniteMoeConfig", num_local_experts=4, num_experts_per_tok=2, in_half=ALL_EXPERTS
    ),
    "codegen": Family(
        "CodeGenConfig", {**GPT2, "rotary_dim": 4, "initializer_range": 0.3}, "half", is_plain=True
    ),
    "xglm": Family(
        "XGLMConfig",
        {
            **IDS,
            "d_model": 32,
            "ffn_dim": 48,
            "num_layers": 4,
            "attention_heads": 4,
            "max_position_embeddings": CONTEXT,
            "init_std": 0.3,
        },
        is_plain=True,
    ),
    "qwen3-next": usual(
        "Qwen3NextConfig",
        head_dim=8,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        layer_types=["linear_attention", "full_attention"] * 2,
        in_half=ALL_EXPERTS,
        is_plain=True,
    ),
    "lfm2": usual(
        "Lfm2Config", layer_types=["conv", "full_attention"] * 2, recomputes=True, is_plain=True
    ),
    "mamba": Family(
        "MambaConfig", {**RECURRENT, "time_step_rank": 4}, "any", recomputes=True, is_plain=True
    ),
    "mamba-2": Family(
        "Mamba2Config",
        {**RECURRENT, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": WINDOW},
        "any",
        recomputes=True,
        is_plain=True,
    ),
    "rwkv": Family(
        "RwkvConfig",
        {**IDS, "hidden_size": 32, "num_hidden_layers": 3, "context_length": CONTEXT},
        "any",
        recomputes=True,
        is_plain=True,
    ),
    "bamba": usual(
        "BambaConfig",
        mamba_n_heads=8,
        mamba_d_head=8,
        mamba_d_state=8,
        mamba_n_groups=1,
        mamba_chunk_size=WINDOW,
        attn_layer_indices=[1, 3],
        may_refuse="any",
        recomputes=True,
        is_plain=True,
    ),
    "recurrent-gemma": usual(
        "RecurrentGemmaConfig",
        lru_width=32,
        attention_window_size=WINDOW,
        head_dim=8,
        block_types=["recurrent", "attention"],
        may_refuse="any",
        recomputes=True,
        is_plain=True,
    ),
    "gpt-1": Family(
        "OpenAIGPTConfig",
        {**GPT2, "initializer_range": 0.3},
        "any",
        recomputes=True,
        is_plain=True,
    ),
}


# Tested with every test run; STEERLENS_EVERY_FAMILY=1 tests all, in five times the time.
DAILY = (
    "llama",
    "llama-3 rope",
    "llama, longrope",
    "mistral",
    "mixtral",
    "qwen2-moe",
    "qwen3",
    "gemma-2",
    "gemma-3",
    "phi",
    "phi-3, longrope",
    "olmo-2",
    "gpt-2",
    "gpt-neo",
    "gpt-neox",
    "gpt-j",
    "gpt-bigcode",
    "opt",
    "bloom",
    "falcon",
    "stablelm, parallel",
    "cohere-2",
    "granite",
    "mpt",
    "starcoder-2",
    "gpt-oss",
    "llama-4",
    "deepseek-3",
    "smollm-3",
    "mamba",
)

# TransformerLens has no hooks for these; `load_model` says so.
UNKNOWN: dict[str, Family] = {
    "ministral": usual("MinistralConfig", head_dim=8, sliding_window=WINDOW),
    "phi-moe": usual("PhimoeConfig", num_local_experts=4, num_experts_per_tok=2),
    "phi, normed queries": usual("PhiConfig", qk_layernorm=True),
    "gpt-bigcode, many keys": Family("GPTBigCodeConfig", {**GPT2, "multi_query": False}),
    "falcon, new": Family(
        "FalconConfig", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}
    ),
}


def write_family(name: str, folder: Path, half: bool = False) -> Path:
    """The family's model and the tokenizer of bytes as an ordinary model folder."""
    (FAMILIES | UNKNOWN)[name].build(half).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
