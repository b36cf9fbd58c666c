"""A tiny config of every causal language model of transformers; windows and chunks of five positions."""

from __future__ import annotations

from typing import Any

VOCABULARY = 42  # as many as toys.WORDS
WINDOW = 5

_USUAL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "sliding_window": WINDOW,
    "attention_chunk_size": WINDOW,
    # mixtures of experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 8,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    # latent attention
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    # names of older models
    "n_inner": 32,
    "rotary_dim": 4,
    "ffn_dim": 32,
    "dff": 32,
}

_LATENT: dict[str, Any] = {"num_key_value_heads": 2}
_SLIDING: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention"]}
_SWITCHED: dict[str, Any] = {"use_sliding_window": True, "max_window_layers": 1}

_OWN: dict[str, dict[str, Any]] = {
    "afmoe": _SLIDING,
    "axk1": _LATENT,
    "codegen": {"n_head": 4, "rotary_dim": 4},
    "cohere": {"logit_scale": 0.25},
    "cohere2": _SLIDING | {"logit_scale": 0.25},
    "cohere2_moe": _SLIDING | {"logit_scale": 0.25},
    "cohere_compass_text": _SLIDING
    | {
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
            "full_attention": None,
        }
    },
    "dbrx": {
        "d_model": 16,
        "n_heads": 2,
        "n_layers": 2,
        "max_seq_len": 128,
        "attn_config": {"kv_n_heads": 1, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 16, "ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "diffllama": {"num_key_value_heads": 2},
    "dots1": _SWITCHED,
    "exaone4": _SLIDING,
    "exaone_moe": _SLIDING,
    "flint": _SLIDING,
    "gemma2": {"final_logit_softcapping": 5.0},
    "gemma3_text": _SLIDING,
    "glm4_moe_lite": _LATENT,
    "granite": {"logits_scaling": 3.0, "embedding_multiplier": 2.0},
    "granitemoe": {"logits_scaling": 3.0},
    "granitemoehybrid": {"layer_types": ["full_attention"] * 2, "mamba_n_heads": 4},
    "hyperclovax": {"logits_scaling": 3.0},
    "kolibri1": _SLIDING,
    "laguna": _SLIDING,
    "llama4_text": {"layer_types": ["chunked_attention", "full_attention"]},
    "mellum": _SLIDING,
    "minicpm3": _LATENT | {"dim_model_base": 8},
    "ministral": _SLIDING,
    "olmo3": _SLIDING,
    "qwen2": _SWITCHED,
    "qwen2_moe": _SWITCHED,
    "qwen3": _SWITCHED,
    "qwen3_moe": {"use_sliding_window": True},
    "smollm3": _SLIDING,
    "youtu": _LATENT,
}


def toy(model_type: str) -> dict[str, Any]:
    """The config of a random model of this type, of a few thousand parameters."""
    from transformers import CONFIG_MAPPING

    config = CONFIG_MAPPING[model_type]
    own_names = getattr(config, "attribute_map", {})
    known = {name for base in config.__mro__ for name in getattr(base, "__annotations__", {})}
    options = {own_names.get(k, k): v for k, v in _USUAL.items() if k in known or k in own_names}
    return {"model_type": model_type} | options | _OWN.get(model_type, {})


def known() -> set[str]:
    """The causal language models that this transformers has."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
