"""Linear layers that PEFT cannot adapt are left out of all-linear, and refused by name where they are named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    FalconH1Config,
    JambaConfig,
    Llama4TextConfig,
    MambaConfig,
    PreTrainedModel,
)

from lora_ga_cli.errors import TargetError
from lora_ga_cli.model.targets import find_targets
from lora_ga_cli.model.unadaptable import unadaptable
from tests.conftest import build_model

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
GROUPED = SIZES | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 2}
MIXTURE = {"num_local_experts": 4, "num_experts_per_tok": 2}
MAMBA = {"mamba_d_state": 4, "mamba_dt_rank": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2}
MIXER = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_n_groups": 1}
CONFIGS: dict[str, Any] = {
    "llama4": lambda: Llama4TextConfig(**GROUPED | MIXTURE | {"intermediate_size_mlp": 48}),
    "mamba": lambda: MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4),
    "jamba": lambda: JambaConfig(**GROUPED | MAMBA | {"use_mamba_kernels": False}),
    "falcon_h1": lambda: FalconH1Config(**GROUPED | MIXER),
    "falcon": lambda: FalconConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4),
}
LEFT_OUT = {
    "llama4": {"router"},
    "mamba": {"x_proj", "dt_proj", "out_proj"},
    "jamba": {"dt_proj"},
    "falcon_h1": {"out_proj"},
    "falcon": set(),
}


def build(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[name]())


@pytest.mark.parametrize("name", CONFIGS)
def test_peft_adapts_exactly_the_layers_that_are_not_left_out(name: str) -> None:
    """For a model in memory and for one without weights, and PEFT alone takes all of these names."""
    model = build(name)
    targets = find_targets(model)
    assert {layer.rpartition(".")[2] for layer in unadaptable(model)} == LEFT_OUT[name]
    assert not set(targets) & set(unadaptable(model))
    with torch.device("meta"):
        assert list(find_targets(build(name))) == list(targets)
    wrapped = get_peft_model(model, LoraConfig(target_modules=sorted(targets), task_type="CAUSAL_LM"))
    adapted = {layer.removesuffix(".lora_A") for layer, _ in wrapped.base_model.model.named_modules()} & set(targets)
    assert adapted == set(targets)
    assert wrapped(input_ids=torch.arange(4)[None]).logits.isfinite().all()


def test_an_adapter_on_a_layer_that_is_left_out_would_be_ignored() -> None:
    tokens = torch.arange(12)[None]
    before = build("jamba").eval()(input_ids=tokens).logits
    for layer, ignored in (("dt_proj", True), ("x_proj", False)):
        config = LoraConfig(target_modules=[layer], init_lora_weights=False)
        changed = get_peft_model(build("jamba"), config).eval()(input_ids=tokens).logits
        assert torch.equal(changed, before) == ignored


@pytest.mark.parametrize(
    ("name", "layer", "reason"),
    [
        ("llama4", "router", "Llama4Router returns more than the product with its weight"),
        ("jamba", "dt_proj", "Mamba's kernels read its weight without calling it"),
    ],
)
def test_named_it_is_refused_with_the_reason(name: str, layer: str, reason: str) -> None:
    with pytest.raises(TargetError, match=f"{reason}.*; leave {layer} out of target_modules"):
        find_targets(build(name), [layer])
    with pytest.raises(TargetError, match=reason):
        find_targets(build(name), f".*{layer}")


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "bert"])
def test_most_models_have_none(family: str) -> None:
    assert not unadaptable(build_model(family))
