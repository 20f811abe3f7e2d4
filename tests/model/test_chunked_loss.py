"""The loss in chunks is the model's own, in value and gradient, and whole logits never exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from lora_ga_cli.model.chunked_loss import use_chunked_loss
from tests.conftest import build_batch, build_model

VOCABULARY = 259
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
GROUPED = COMMON | {"num_key_value_heads": 2, "head_dim": 8}
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", GROUPED),
    "mistral": ("Mistral", GROUPED),
    "qwen2": ("Qwen2", GROUPED),
    "qwen3": ("Qwen3", GROUPED),
    "gemma2": ("Gemma2", GROUPED | {"final_logit_softcapping": 0.05}),
    "gemma3": ("Gemma3Text", GROUPED | {"final_logit_softcapping": 0.05}),
    "granite": ("Granite", GROUPED | {"logits_scaling": 8.0}),
    "cohere": ("Cohere", GROUPED | {"logit_scale": 7.0}),
    "cohere2": ("Cohere2", GROUPED | {"logit_scale": 7.0}),
    "gpt2": ("GPT2", {**build_model("gpt2").config.to_dict(), "n_embd": 32, "dtype": None}),
    "gpt_neox": ("GPTNeoX", COMMON),
    "opt": ("OPT", COMMON | {"ffn_dim": 56, "word_embed_proj_dim": 24}),
    "phi": ("Phi", COMMON),
    "phi3": ("Phi3", GROUPED),
    "mixtral": ("Mixtral", GROUPED | {"num_local_experts": 4, "output_router_logits": True}),
    "olmo2": ("Olmo2", GROUPED),
    "glm4": ("Glm4", GROUPED),
    "bloom": ("Bloom", {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4, "pad_token_id": 2}),
}


def decoder(name: str, **other: Any) -> PreTrainedModel:
    family, settings = DECODERS[name]
    config = getattr(transformers, f"{family}Config")(**settings | other)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():  # random enough for a soft cap or a bias to matter
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.2)
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        nn.init.normal_(head.bias)
    return model


def padded(rows: int = 4, tokens: int = 12) -> dict[str, Tensor]:
    return build_batch("llama", rows, tokens)


def flattened(rows: int = 4, tokens: int = 12) -> dict[str, Tensor]:
    """The rows of `padded` one after another."""
    batch = padded(rows, tokens)
    parts = [
        {name: value[row][batch["attention_mask"][row].bool()] for name, value in batch.items()} for row in range(rows)
    ]
    for part in parts:
        part["labels"][0] = -100
        part["position_ids"] = torch.arange(len(part["labels"]))
    names = ("input_ids", "labels", "position_ids")
    return {name: torch.cat([part[name] for part in parts])[None] for name in names}


def adapted(model: PreTrainedModel, **other: Any) -> nn.Module:
    """The model with a LoRA whose factors are all random."""
    torch.manual_seed(1)
    settings: dict[str, Any] = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | other
    model = get_peft_model(model, LoraConfig(**settings))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def results(model: nn.Module, batch: dict[str, Any], **other: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss, and gradients by name."""
    model.zero_grad()
    loss = model(**batch | other).loss
    (3 * loss).backward()
    return loss.detach(), {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def assert_equal(actual: Any, expected: Any, tolerance: float = 1e-6) -> None:
    assert distance(actual[0], expected[0]) <= tolerance
    assert actual[1].keys() == expected[1].keys()
    assert expected[1]
    both = [torch.cat([each.flatten() for each in side[1].values()]) for side in (actual, expected)]
    assert distance(*both) <= tolerance


def distance(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


class Sizes(TorchDispatchMode):
    """Remembers the most positions that a tensor had beside the vocabulary."""

    most = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **kwargs or {})
        for tensor in output if isinstance(output, (tuple, list)) else [output]:
            if isinstance(tensor, Tensor) and tensor.shape[-1:] == (VOCABULARY,):
                self.most = max(self.most, tensor.numel() // VOCABULARY)
        return output


@pytest.mark.parametrize("rows", [padded, flattened])
@pytest.mark.parametrize("name", DECODERS)
def test_loss_and_gradients_are_the_models_own(name: str, rows: Callable[[], dict[str, Tensor]]) -> None:
    model, batch = adapted(decoder(name)).eval(), rows()
    expected = results(model, batch)
    use_chunked_loss(model.base_model.model, tokens=5)
    assert_equal(results(model, batch), expected)
