"""Trained rows of embeddings and heads: what PEFT computes, without a copy of the matrix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedModel

from lora_ga_cli.lora.beside import embedding_parameters
from lora_ga_cli.lora.rows import compute_rows
from tests.conftest import build_batch, build_model
from tests.helpers import configured, prepare

PADDING = 2
OPTIONS = [f"method.trainable_token_indices=[7,5,100,{PADDING}]"]


def untied() -> PreTrainedModel:
    config = build_model("llama").config
    config.tie_word_embeddings = False
    torch.manual_seed(0)
    return type(build_model("llama"))(config)


def scaled() -> PreTrainedModel:
    """Gemma multiplies its embeddings."""
    torch.manual_seed(0)
    return Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=259,
            hidden_size=48,
            intermediate_size=80,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=12,
            pad_token_id=PADDING,
        )
    )


MODELS = {"tied": lambda: build_model("llama"), "untied": untied, "scaled": scaled}


def loss_and_gradients(model: Any) -> list[torch.Tensor]:
    model.zero_grad()
    output = model(**build_batch("llama", rows=3))  # 36 positions, so that no other tensor has the matrix's shape
    output.loss.backward()
    return [output.logits, *(item.grad for item in model.parameters() if item.grad is not None)]


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_it_computes_what_peft_computes(build: Any) -> None:
    model = prepare(build().double(), configured("lora", *OPTIONS)).model.eval()
    for item in embedding_parameters(model):
        item.data = item.data.double() + 0.1
    ours = loss_and_gradients(model)
    for module in model.modules():
        if hasattr(module, "token_adapter"):
            del module.token_adapter.forward
    for actual, expected in zip(ours, loss_and_gradients(model), strict=True):
        torch.testing.assert_close(actual, expected)


class Shapes(TorchDispatchMode):
    """The shapes of everything that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        # a view is no copy
        if isinstance(output, torch.Tensor) and func.overloadpacket.__name__ not in ("t", "detach", "alias"):
            self.seen.add(tuple(output.shape))
        return output


@pytest.mark.parametrize("build", [MODELS["tied"], MODELS["untied"]], ids=["tied", "untied"])
def test_nothing_has_the_size_of_the_matrix(build: Any) -> None:
    model = prepare(build(), configured("lora", *OPTIONS)).model.eval()
    with Shapes() as shapes:
        loss_and_gradients(model)
    assert {(259, 48), (48, 259)}.isdisjoint(shapes.seen)
    assert (4, 48) in shapes.seen


def test_a_disabled_adapter_leaves_the_base() -> None:
    base = build_model("llama").eval()
    expected = base(**build_batch("llama")).logits
    model = prepare(build_model("llama"), configured("lora", *OPTIONS)).model.eval()
    for item in embedding_parameters(model):
        item.data += 1
    assert not torch.allclose(model(**build_batch("llama")).logits, expected)
    with model.disable_adapter():
        torch.testing.assert_close(model(**build_batch("llama")).logits, expected)


def test_another_kind_of_layer_is_left_to_peft() -> None:
    model = prepare(build_model("llama"), configured("lora", *OPTIONS)).model
    layer = model.get_base_model().model.embed_tokens.token_adapter
    del layer.forward
    layer.base_layer.max_norm = 1.0
    compute_rows(layer)
    assert "forward" not in vars(layer)
