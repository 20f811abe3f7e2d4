"""Which blocks gradient checkpointing computes again, and that gradients do not change."""

from __future__ import annotations

import functools
from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lora_ga_cli.model.checkpointing import (
    checkpoint_blocks,
    checkpointed_layers,
    from_cpu,
    offload_checkpoints,
    offloading_checkpoint,
    to_cpu,
)
from lora_ga_cli.model.unsupported import Unsupported
from tests.conftest import FAMILIES, build_batch, build_model

COUNTED = {"llama": 2, "gpt2": 2, "bert": 2, "t5": 4}
"""Blocks of each family's small model; T5's encoder and decoder have two each."""


def gradients(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model.zero_grad()
    model(**batch).loss.backward()
    return {name: item.grad.clone() for name, item in model.named_parameters() if item.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("every", [1, 2, 3])
def test_every_nth_block_is_computed_again(family: str, every: int) -> None:
    model, batch = build_model(family).train(), build_batch(family)
    expected = gradients(model, batch)
    checkpoint_blocks(model, every)
    layers, passes = checkpointed_layers(model), Counter[int]()
    for number, layer in enumerate(layers):
        inner: Any = next(module for module in layer.modules() if isinstance(module, nn.Linear | Conv1D))
        inner.register_forward_pre_hook(lambda *_, number=number: passes.update([number]))
    actual = gradients(model, batch)
    assert len(layers) == COUNTED[family]
    assert passes == {number: 1 + (number % every == 0) for number in range(len(layers))}
    assert expected.keys() == actual.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient)


def test_models_without_such_blocks_are_refused_before_anything_changes() -> None:
    model = build_model("llama")
    model.supports_gradient_checkpointing = False
    with pytest.raises(Unsupported, match="LlamaForCausalLM has no gradient checkpointing"):
        checkpoint_blocks(model)
    assert not model.is_gradient_checkpointing


@pytest.mark.parametrize("family", FAMILIES)
def test_inputs_that_wait_elsewhere_change_no_gradient(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = build_model(family).train(), build_batch(family)
    checkpoint_blocks(model)
    expected = gradients(model, batch)
    moved, returned = list[torch.Tensor](), list[torch.Tensor]()

    def away(tensor: torch.Tensor) -> torch.Tensor:
        moved.append(tensor)
        return tensor.detach().clone()

    def back(copy: torch.Tensor) -> torch.Tensor:
        returned.append(copy)
        return copy

    monkeypatch.setattr("lora_ga_cli.model.checkpointing.to_cpu", away)
    monkeypatch.setattr("lora_ga_cli.model.checkpointing.from_cpu", back)
    for layer in checkpointed_layers(model):
        layer._gradient_checkpointing_func = functools.partial(offloading_checkpoint, use_reentrant=False)
    actual = gradients(model, batch)
    assert len(moved) == len(returned) >= COUNTED[family]  # the inputs of blocks, and nothing from inside them
    assert len(moved) <= 4 * COUNTED[family]
    assert expected.keys() == actual.keys()
    assert all(torch.equal(actual[name], gradient) for name, gradient in expected.items())


def test_what_is_moved_returns_as_it_was() -> None:
    tensor = torch.randn(3, 5, 7, dtype=torch.bfloat16).transpose(0, 1)
    assert torch.equal(from_cpu(to_cpu(tensor)), tensor)


def test_only_checkpointed_blocks_beside_a_gpu_can_be_moved() -> None:
    model = build_model("llama")
    with pytest.raises(Unsupported, match="no blocks that are checkpointed one by one"):
        offload_checkpoints(model)
    checkpoint_blocks(model)
    with pytest.raises(Unsupported, match="in the CPU's memory already"):
        offload_checkpoints(model)
