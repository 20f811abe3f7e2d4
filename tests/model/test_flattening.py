"""Rows one after another give the loss and gradients of padded rows, or the model is refused with the reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from lora_ga_cli.data.collate import collate_tokens
from lora_ga_cli.data.flatten import flatten_tokens
from lora_ga_cli.model import flattening
from lora_ga_cli.model.flattening import BLOCK_MASK, use_flattening, use_varlen
from lora_ga_cli.model.unsupported import Unsupported

COMMON: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
GROUPED = COMMON | {"num_key_value_heads": 2, "head_dim": 8}
EXPERTS = GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}
QWEN_EXPERTS = GROUPED | {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "decoder_sparse_step": 1,
}
SHARED = {"shared_expert_intermediate_size": 24}
LATENT = COMMON | {"moe_intermediate_size": 24, "first_k_dense_replace": 1, "n_routed_experts": 4, "n_group": 2}
LATENT |= {"num_experts_per_tok": 2, "topk_group": 1, "kv_lora_rank": 8, "q_lora_rank": 8, "num_key_value_heads": 4}
LATENT |= {"qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4}
EAGER = {"attn_implementation": "eager"}
WINDOW = {"sliding_window": 3}
BOTH = {"layer_types": ["sliding_attention", "full_attention"]}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "pad_token_id": 2}
BLOOM = {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4, "pad_token_id": 2}
FALCON = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 2}
MAMBA = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "pad_token_id": 2}
JAMBA = {"num_experts": 2, "mamba_d_state": 4, "mamba_dt_rank": 4, "use_mamba_kernels": False}
JAMBA |= {"attn_layer_period": 2, "attn_layer_offset": 1}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", GROUPED),
    "mistral": ("Mistral", GROUPED | WINDOW),
    "qwen2": ("Qwen2", GROUPED | WINDOW | BOTH | {"use_sliding_window": True}),
    "qwen3": ("Qwen3", GROUPED),
    "gemma2": ("Gemma2", GROUPED | WINDOW | BOTH | EAGER),
    "gemma3": ("Gemma3Text", GROUPED | WINDOW | BOTH),
    "phi3": ("Phi3", GROUPED | WINDOW),
    "gpt2": ("GPT2", GPT2),
    "gpt_neox": ("GPTNeoX", COMMON),
    "opt": ("OPT", COMMON | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "falcon": ("Falcon", FALCON),
    "falcon_alibi": ("Falcon", FALCON | {"alibi": True}),
    "bloom": ("Bloom", BLOOM | EAGER),
    "olmo2": ("Olmo2", GROUPED),
    "smollm3": ("SmolLM3", GROUPED),
    "granite": ("Granite", GROUPED),
    "deepseek_v3": ("DeepseekV3", LATENT),
    "gpt_oss": ("GptOss", EXPERTS | WINDOW | BOTH | EAGER),
    "mixtral": ("Mixtral", EXPERTS | WINDOW),
    "qwen2_moe": ("Qwen2Moe", QWEN_EXPERTS | SHARED),
    "qwen2_moe_window": ("Qwen2Moe", QWEN_EXPERTS | SHARED | WINDOW | BOTH | {"use_sliding_window": True}),
    "qwen3_moe": ("Qwen3Moe", QWEN_EXPERTS),
    "llama4": (
        "Llama4Text",
        EXPERTS | {"attention_chunk_size": 3, "intermediate_size_mlp": 48, "no_rope_layers": [1, 0]},
    ),
    "mamba": ("Mamba", MAMBA | EAGER),
    "jamba": ("Jamba", GROUPED | JAMBA),
}
FLATTENED = "equal to padded rows"
LEAK = "its rows would see each other"
MASKS = "its masks leave out tokens that its layers do not name"
OWN = "its attention is code of its own"
OUTCOMES: dict[str, tuple[str, str]] = {
    "llama": (FLATTENED, FLATTENED),
    "mistral": (FLATTENED, FLATTENED),
    "qwen2": (FLATTENED, FLATTENED),
    "qwen3": (FLATTENED, FLATTENED),
    "gemma2": (FLATTENED, "its attention has a soft cap"),
    "gemma3": (FLATTENED, FLATTENED),
    "phi3": (FLATTENED, FLATTENED),
    "gpt2": (FLATTENED, "its attention has dropout"),
    "gpt_neox": (FLATTENED, FLATTENED),
    "opt": (LEAK, FLATTENED),
    "falcon": (LEAK, OWN),
    "falcon_alibi": (LEAK, OWN),
    "bloom": (LEAK, OWN),
    "olmo2": (FLATTENED, FLATTENED),
    "smollm3": (FLATTENED, FLATTENED),
    "granite": (FLATTENED, FLATTENED),
    "deepseek_v3": (FLATTENED, "its attention has values of another size than queries"),
    "gpt_oss": (LEAK, "its attention has attention sinks"),
    "mixtral": (FLATTENED, FLATTENED),
    "qwen2_moe": (FLATTENED, FLATTENED),
    "qwen2_moe_window": (FLATTENED, MASKS),
    "qwen3_moe": (FLATTENED, FLATTENED),
    "llama4": (FLATTENED, MASKS),
    "mamba": (LEAK, OWN),
    "jamba": (LEAK, LEAK),
}
"""What becomes of each family with a block mask, and with attention of variable lengths."""


def build(name: str, **options: Any) -> PreTrainedModel:
    family, settings = MODELS[name]
    settings = settings | options
    implementation = settings.pop("attn_implementation", "sdpa")
    config = getattr(transformers, f"{family}Config")(**settings)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


def attend_row_by_row(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scale: float | None, window: int | None
) -> Tensor:
    """What the kernels for variable lengths compute: every row alone."""
    results = []
    for begin, end in pairwise(bounds.tolist()):
        assert end - begin <= longest
        row = (tensor[begin:end].transpose(0, 1) for tensor in (query, key, value))
        age = torch.arange(end - begin)[:, None] - torch.arange(end - begin)
        mask = (age >= 0) & (age < (window or longest))
        attended = functional.scaled_dot_product_attention(*row, attn_mask=mask, scale=scale, enable_gqa=True)
        results.append(attended.transpose(0, 1))
    return torch.cat(results)


def rows() -> list[dict[str, list[int]]]:
    """Rows whose lengths differ, some longer than a window, with and without labels of the first tokens."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for length, prompt in ((9, 3), (4, 0), (1, 0), (12, 5), (2, 1)):
        ids = torch.randint(3, 64, (length,), generator=generator).tolist()
        made.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]})
    return made


class Tokenizer:
    """As much of one as padding needs."""

    pad_token_id = 2
    eos_token_id = 1
    padding_side = "right"


def padded() -> dict[str, Any]:
    return collate_tokens(Tokenizer(), rows())


def loss_and_gradients(model: nn.Module, batch: dict[str, Any]) -> list[Tensor]:
    """The loss and the gradient of every parameter that trains, 0 where there is none."""
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [loss.detach(), *(torch.zeros_like(each) if each.grad is None else each.grad.clone() for each in trained)]


def distance(model: nn.Module, batch: dict[str, Any], expected: list[Tensor]) -> float:
    """The largest relative difference of loss and gradients, each beside the norm of all gradients of its model."""
    actual = loss_and_gradients(model, batch)
    size = float(torch.stack([tensor.norm() for tensor in expected[1:]]).norm())
    parts = [float((one - other).norm()) / size for one, other in zip(actual[1:], expected[1:], strict=True)]
    return max(*parts, abs(float(actual[0] / expected[0]) - 1))


def outcome(model: PreTrainedModel, prepare: Callable[[PreTrainedModel], object]) -> str:
    before = model.config._attn_implementation
    expected = loss_and_gradients(model, padded())
    try:
        prepare(model)
    except Unsupported as reason:
        assert model.config._attn_implementation == before
        assert distance(model, padded(), expected) == 0, "the model is not as before"
        return str(reason)
    assert distance(model, flatten_tokens(rows()), expected) < 1e-5
    assert distance(model, padded(), expected) < 1e-6, "padded rows no longer work"
    return FLATTENED


def with_block_mask(model: PreTrainedModel) -> None:
    assert use_flattening(model, torch.device("cpu")) == BLOCK_MASK


def with_varlen(model: PreTrainedModel) -> None:
    flattening.prepare(model)
    use_varlen(model, attend_row_by_row)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """The functions that transformers knows are those from before the test."""
    tables = (AttentionInterface._global_mapping, AttentionMaskInterface._global_mapping)
    before = [dict(table) for table in tables]
    yield
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)


@pytest.mark.parametrize("name", MODELS)
def test_rows_with_a_block_mask_are_as_padded_rows_or_refused(name: str) -> None:
    assert outcome(build(name), with_block_mask) == OUTCOMES[name][0]


@pytest.mark.parametrize("name", MODELS)
def test_rows_with_attention_of_variable_lengths_are_as_padded_rows_or_refused(name: str) -> None:
    assert outcome(build(name), with_varlen) == OUTCOMES[name][1]
