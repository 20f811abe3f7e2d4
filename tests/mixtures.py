"""Small mixtures of experts: three ways in which transformers stores and names their weights."""

from __future__ import annotations

import torch
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

MIXTURES = ("mixtral", "gpt_oss", "deepseek")
EXPERTS = 4


def build_mixture(family: str, seed: int = 0) -> PreTrainedModel:
    """A random mixture of four experts, with sizes that all differ, that gives each token to two of them.

    ``mixtral`` stores (experts, d_out, d_in), ``gpt_oss`` (experts, d_in, d_out) with biases, and ``deepseek`` has
    linear layers beside its experts with names that experts once had.
    """
    torch.manual_seed(seed)
    sizes = {
        "vocab_size": 3 + 256,
        "hidden_size": 48,
        "intermediate_size": 56,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "num_experts_per_tok": 2,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    if family == "mixtral":
        return MixtralForCausalLM(
            MixtralConfig(**sizes, num_hidden_layers=1, num_key_value_heads=2, num_local_experts=EXPERTS)
        )
    if family == "gpt_oss":
        return GptOssForCausalLM(
            GptOssConfig(
                **sizes,
                num_hidden_layers=1,
                num_key_value_heads=2,
                head_dim=16,
                num_local_experts=EXPERTS,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
                layer_types=["full_attention"],
            )
        )
    return DeepseekV3ForCausalLM(
        DeepseekV3Config(
            **sizes,
            num_hidden_layers=2,
            first_k_dense_replace=1,
            moe_intermediate_size=40,
            num_key_value_heads=4,
            n_shared_experts=1,
            n_routed_experts=EXPERTS,
            n_group=1,
            topk_group=1,
            q_lora_rank=24,
            kv_lora_rank=16,
            qk_rope_head_dim=8,
            qk_nope_head_dim=8,
            v_head_dim=12,
        )
    )
