"""Which modules are a model's repeated blocks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

from lora_ga_cli.model.blocks import blocks, count_blocks
from tests.conftest import FAMILIES, build_model


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_its_layers(family: str) -> None:
    assert count_blocks(build_model(family)) == 2


def test_experts_are_no_blocks() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    with torch.device("meta"):
        model = MixtralForCausalLM(MixtralConfig(**sizes, num_hidden_layers=3, num_local_experts=8, vocab_size=32))
    assert blocks(model) is model.model.layers


def test_a_longer_list_inside_a_block_does_not_count() -> None:
    block = lambda: nn.ModuleDict({"experts": nn.ModuleList(nn.Linear(2, 2) for _ in range(5))})  # noqa: E731
    model = nn.ModuleDict({"layers": nn.ModuleList(block() for _ in range(3))})
    assert blocks(model) is model["layers"]
    assert count_blocks(nn.Linear(2, 2)) == 1
