"""Families that carry a state from token to token, alone or beside attention, at toy size."""

from family import ALL_EXPERTS, CONTEXT, IDS, WINDOW, Family, usual

STATE = {**IDS, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 3}
MIXED = ["linear_attention", "full_attention"] * 2
LINEAR = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": MIXED,
}
GRANITE_HYBRID = {
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "shared_intermediate_size": 16,
    "layer_types": ["mamba", "attention"] * 2,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": WINDOW,
}

RECURRENT: dict[str, Family] = {
    "qwen3-next": usual(
        "Qwen3NextConfig",
        head_dim=8,
        **LINEAR,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        in_half=ALL_EXPERTS,
        is_plain=True,
    ),
    "lfm2": usual(
        "Lfm2Config", layer_types=["conv", "full_attention"] * 2, recomputes=True, is_plain=True
    ),
    "mamba": Family(
        "MambaConfig", {**STATE, "time_step_rank": 4}, "any", recomputes=True, is_plain=True
    ),
    "mamba-2": Family(
        "Mamba2Config",
        {**STATE, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": WINDOW},
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
    "qwen3.5": usual("Qwen3_5TextConfig", head_dim=8, **LINEAR, is_plain=True),
    "olmo-hybrid": usual("OlmoHybridConfig", **LINEAR, is_plain=True),
    "falcon-h1": usual(
        "FalconH1Config",
        head_dim=8,
        mamba_d_ssm=32,
        mamba_n_heads=4,
        mamba_d_head=8,
        mamba_n_groups=1,
        mamba_d_state=8,
        mamba_chunk_size=WINDOW,
        recomputes=True,
        is_plain=True,
    ),
    "nemotron-h": usual(
        "NemotronHConfig",
        head_dim=8,
        hybrid_override_pattern="M*-M",
        mamba_num_heads=8,
        mamba_head_dim=8,
        ssm_state_size=8,
        n_groups=1,
        chunk_size=WINDOW,
        recomputes=True,
        is_plain=True,
    ),
    "jamba": usual(
        "JambaConfig",
        attn_layer_period=2,
        attn_layer_offset=1,
        num_experts=2,
        expert_layer_period=2,
        mamba_d_state=8,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
        recomputes=True,
        is_plain=True,
    ),
    "granite-hybrid": usual(
        "GraniteMoeHybridConfig",
        **GRANITE_HYBRID,
        position_embedding_type="rope",
        recomputes=True,
        in_half=ALL_EXPERTS,
        is_plain=True,
    ),
}
