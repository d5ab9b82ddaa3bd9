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
    with_images,
)
from recurrent_families import GRANITE_HYBRID, RECURRENT
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
OPT = {
    **IDS,
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "init_std": 0.3,
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

GEMMA4 = {
    "head_dim": 8,
    "global_head_dim": 16,
    "sliding_window": WINDOW,
    "layer_types": ALTERNATING,
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
}

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
    "opt": Family("OPTConfig", {**OPT, "word_embed_proj_dim": 32}),
    "opt, norm after": Family(
        "OPTConfig", {**OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False}
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
    "seed-oss": usual("SeedOssConfig", head_dim=8),
    "apertus": usual("ApertusConfig"),
    "arcee": usual("ArceeConfig"),
    "ernie-4.5": usual("Ernie4_5Config", head_dim=8),
    "hunyuan": usual("HunYuanDenseV1Config", head_dim=8),
    "ministral-3": usual("Ministral3Config", head_dim=8),
    "glm-4-moe": usual(
        "Glm4MoeConfig",
        head_dim=8,
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
        in_half=ALL_EXPERTS,
    ),
    "minimax-m2": usual(
        "MiniMaxM2Config",
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        in_half=ALL_EXPERTS,
    ),
    "olmoe": usual("OlmoeConfig", num_experts=4, num_experts_per_tok=2, in_half=ALL_EXPERTS),
    "gemma-4": usual("Gemma4TextConfig", **GEMMA4),
    "gemma-4, inputs per layer": usual(
        "Gemma4TextConfig",
        **GEMMA4 | {"hidden_size_per_layer_input": 8, "global_head_dim": 8},
        vocab_size_per_layer_input=IDS["vocab_size"],
        is_plain=True,
    ),
    **RECURRENT,
}
FAMILIES |= {
    "gemma-3, with images": with_images("Gemma3Config", FAMILIES["gemma-3"]),
    "gemma-4, with images": with_images(
        "Gemma4Config", FAMILIES["gemma-4"], vision={"head_dim": 8, "num_key_value_heads": 2}
    ),
    "mistral, with images": with_images(
        "Mistral3Config",
        FAMILIES["mistral"],
        vision={"model_type": "pixtral", "head_dim": 8},
        spatial_merge_size=1,
        tie_word_embeddings=False,
    ),
    "llama-4, with images": with_images(
        "Llama4Config",
        FAMILIES["llama-4"],
        vision={"vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16},
    ),
    "qwen3.5, with images": with_images(
        "Qwen3_5Config",
        FAMILIES["qwen3.5"],
        vision={"depth": 1, "num_heads": 2, "out_hidden_size": 32, "num_position_embeddings": 16},
    ),
}


# Tested with every test run; STEERLENS_EVERY_FAMILY=1 tests all, in five times the time.
DAILY = (
    "llama",
    "llama-3 rope",
    "llama, longrope",
    "mistral",
    "mistral, with images",
    "mixtral",
    "qwen2",
    "qwen2-moe",
    "qwen3",
    "gemma-2",
    "gemma-3",
    "gemma-3, with images",
    "phi",
    "phi-3",
    "phi-3, longrope",
    "olmo-2",
    "gpt-2",
    "gpt-neo",
    "gpt-neox",
    "gpt-j",
    "opt",
    "bloom",
    "falcon",
    "stablelm",
    "stablelm, parallel",
    "cohere-2",
    "granite",
    "starcoder-2",
    "gpt-oss",
    "llama-4",
    "deepseek-3",
    "smollm-3",
    "mamba",
)

# TransformerLens has no hooks for these, or cannot run them with hooks; `load_model` says so.
UNKNOWN: dict[str, Family] = {
    "gpt-1": Family("OpenAIGPTConfig", {**GPT2, "initializer_range": 0.3}),
    "granite-hybrid, no positions": usual("GraniteMoeHybridConfig", **GRANITE_HYBRID),
    "helium": usual("HeliumConfig", head_dim=8),
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
