"""Tiny random models of the families that `check_models.py` tries, from transformers' own configuration classes.

They have two to four layers, among them one of each kind of block that the family has, and the vocabulary of the
bundled tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel

from lora_ga_cli.model.loading import AUTO_CLASS
from lora_ga_cli.paths import resolve_path

TOKENIZER = "bundled:tiny_base"
CAUSAL, SEQ2SEQ, CLASSIFIER = "causal_lm", "seq2seq_lm", "sequence_classification"


@dataclass(frozen=True)
class Family:
    """A model family with the settings of its tiny model.

    Args:
        name: as it stands in the table.
        config: transformers' configuration class.
        settings: of the configuration class.
        task: ``model.task``.
    """

    name: str
    config: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    task: str = CAUSAL


SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 16}
"""Grouped queries: two heads of keys and values for four of queries."""
WINDOW = {"sliding_window": 16}
SLIDING_AND_FULL = WINDOW | {"layer_types": ["sliding_attention", "full_attention"]}
MIXTURE = GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}
QWEN_MIXTURE = GROUPED | {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "decoder_sparse_step": 1,
}
SHARED_EXPERT = {"shared_expert_intermediate_size": 32}
LATENT = SIZES | {
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "num_key_value_heads": 4,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
}
LINEAR_ATTENTION = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
GPT_SIZES = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}
STATE_SPACE = {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}
STATE_SPACE_2 = STATE_SPACE | {"num_heads": 8, "head_dim": 16, "n_groups": 1, "expand": 2, "chunk_size": 16}
JAMBA = GROUPED | {
    "num_experts": 4,
    "mamba_d_state": 8,
    "mamba_dt_rank": 8,
    "use_mamba_kernels": False,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
}
FALCON_H1 = GROUPED | {
    "mamba_d_ssm": 64,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}
T5_SIZES = {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4}
BART_SIZES = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "max_position_embeddings": 512,
}
FAMILIES = [
    Family("Llama", "LlamaConfig", GROUPED),
    Family(
        "Llama 4 (text)", "Llama4TextConfig", MIXTURE | {"intermediate_size_mlp": 96, "interleave_moe_layer_step": 2}
    ),
    Family("Mistral", "MistralConfig", GROUPED | WINDOW),
    Family("Ministral", "MinistralConfig", GROUPED | SLIDING_AND_FULL),
    Family("Ministral 3", "Ministral3Config", GROUPED),
    Family("Qwen2", "Qwen2Config", GROUPED),
    Family("Qwen3", "Qwen3Config", GROUPED),
    Family("Qwen3-Next", "Qwen3NextConfig", QWEN_MIXTURE | SHARED_EXPERT | LINEAR_ATTENTION),
    Family("Gemma 2", "Gemma2Config", GROUPED | SLIDING_AND_FULL),
    Family("Gemma 3 (text)", "Gemma3TextConfig", GROUPED | SLIDING_AND_FULL),
    Family("Phi-3", "Phi3Config", GROUPED | WINDOW),
    Family("GPT-2", "GPT2Config", GPT_SIZES),
    Family("GPT-J", "GPTJConfig", GPT_SIZES | {"rotary_dim": 8}),
    Family(
        "GPT-Neo",
        "GPTNeoConfig",
        SIZES | {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 16},
    ),
    Family("GPT-NeoX", "GPTNeoXConfig", SIZES),
    Family("OPT", "OPTConfig", SIZES | {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    Family("Falcon", "FalconConfig", SIZES),
    Family("Falcon-H1", "FalconH1Config", FALCON_H1),
    Family("Bloom", "BloomConfig", {"hidden_size": 64, "n_layer": 2, "n_head": 4}),
    Family("MPT", "MptConfig", {"d_model": 64, "n_layers": 2, "n_heads": 4, "expansion_ratio": 2, "max_seq_len": 512}),
    Family("OLMo 2", "Olmo2Config", GROUPED),
    Family("SmolLM3", "SmolLM3Config", GROUPED),
    Family("Granite", "GraniteConfig", GROUPED),
    Family("Cohere", "CohereConfig", GROUPED),
    Family("StarCoder2", "Starcoder2Config", GROUPED),
    Family("DeepSeek-V3", "DeepseekV3Config", LATENT),
    Family("gpt-oss", "GptOssConfig", MIXTURE | SLIDING_AND_FULL),
    Family("Mixtral", "MixtralConfig", MIXTURE),
    Family("Qwen2-MoE", "Qwen2MoeConfig", QWEN_MIXTURE | SHARED_EXPERT),
    Family("Qwen3-MoE", "Qwen3MoeConfig", QWEN_MIXTURE),
    Family("Mamba", "MambaConfig", STATE_SPACE),
    Family("Mamba-2", "Mamba2Config", STATE_SPACE_2),
    Family("Jamba", "JambaConfig", JAMBA),
    Family("RWKV", "RwkvConfig", {"hidden_size": 64, "num_hidden_layers": 2, "context_length": 512}),
    Family("T5", "T5Config", T5_SIZES, SEQ2SEQ),
    Family("mT5", "MT5Config", T5_SIZES, SEQ2SEQ),
    Family("BART", "BartConfig", BART_SIZES, SEQ2SEQ),
    Family("Pegasus", "PegasusConfig", BART_SIZES, SEQ2SEQ),
    Family("BERT", "BertConfig", SIZES, CLASSIFIER),
    Family("RoBERTa", "RobertaConfig", SIZES, CLASSIFIER),
    Family(
        "DeBERTa-v3",
        "DebertaV2Config",
        SIZES
        | {
            "relative_attention": True,
            "position_buckets": 32,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
        CLASSIFIER,
    ),
    Family("DistilBERT", "DistilBertConfig", {"dim": 64, "hidden_dim": 96, "n_layers": 2, "n_heads": 4}, CLASSIFIER),
    Family(
        "ModernBERT", "ModernBertConfig", SIZES | {"global_attn_every_n_layers": 2, "local_attention": 16}, CLASSIFIER
    ),
    Family("ELECTRA", "ElectraConfig", SIZES | {"embedding_size": 32}, CLASSIFIER),
    Family("XLNet", "XLNetConfig", {"d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 96}, CLASSIFIER),
    Family("MPNet", "MPNetConfig", SIZES, CLASSIFIER),
]


def save_tiny(family: Family, folder: Path) -> None:
    """Writes a family's tiny model with random weights and the bundled tokenizer; a classifier without its head."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_path(TOKENIZER))
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    ids |= {"pad_token_id": tokenizer.pad_token_id}
    settings = dict(family.settings) | ids | {"vocab_size": len(tokenizer)}
    if family.task == SEQ2SEQ:
        settings |= {"decoder_start_token_id": tokenizer.pad_token_id}
    if family.task == CLASSIFIER:
        settings |= {"cls_token_id": tokenizer.bos_token_id, "sep_token_id": tokenizer.eos_token_id}
    config = getattr(transformers, family.config)(**settings)
    torch.manual_seed(0)
    model: PreTrainedModel = AUTO_CLASS[family.task].from_config(config)
    for parameter in model.parameters():
        if parameter.dim() == 2:  # the usual small weights would hide differences below the rounding error
            nn.init.normal_(parameter, std=0.1)
    (model.base_model if family.task == CLASSIFIER else model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
