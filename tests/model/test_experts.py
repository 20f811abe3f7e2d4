"""Finding the weights of experts, and naming them as targets."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import JambaConfig, JambaForCausalLM

from lora_ga_cli.errors import TargetError
from lora_ga_cli.model.experts import expert_weights
from lora_ga_cli.model.targets import find_targets
from tests.conftest import build_model
from tests.mixtures import EXPERTS, MIXTURES, build_mixture

GATE_UP = "model.layers.0.mlp.experts.gate_up_proj"


@pytest.mark.parametrize("family", MIXTURES)
def test_the_experts_of_a_mixture_are_two_parameters_of_each_of_its_layers(family: str) -> None:
    model = build_mixture(family)
    found = expert_weights(model)
    assert {name.rsplit(".", 1)[-1] for name in found} == {"gate_up_proj", "down_proj"}
    assert all(weight.shape[0] == EXPERTS for weight in found.values())


def test_a_convolution_beside_experts_is_none() -> None:
    """Its kernel has three dimensions too."""
    config = JambaConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_experts=2,
        expert_layer_offset=1,
        attn_layer_period=2,
        attn_layer_offset=1,
        mamba_d_state=4,
        mamba_dt_rank=4,
    )
    model = JambaForCausalLM(config)
    assert any(item.dim() == 3 and "conv1d" in name for name, item in model.named_parameters())
    assert {name.split(".")[-2] for name in expert_weights(model)} == {"experts"}


def test_a_dense_model_has_none() -> None:
    assert expert_weights(build_model("llama")) == {}
    assert list(find_targets(build_model("llama"), "all-linear", "all-experts")) == list(
        find_targets(build_model("llama"))
    )


@pytest.mark.parametrize("family", MIXTURES)
def test_all_experts_are_targets_beside_the_linear_layers(family: str) -> None:
    model = build_mixture(family)
    linear, both = find_targets(model), find_targets(model, "all-linear", "all-experts")
    assert both.keys() - linear.keys() == expert_weights(model).keys()


def test_the_layers_of_a_target_are_those_of_its_experts() -> None:
    for family, transposed in (("mixtral", False), ("gpt_oss", True)):
        target = find_targets(build_mixture(family), [], ["experts.gate_up_proj"])[GATE_UP]
        assert [layer.name for layer in target.layers] == [f"{GATE_UP}.{number}" for number in range(EXPERTS)]
        assert (target.shape, target.transposed) == ((112, 48), transposed)
        assert {layer.shape for layer in target.layers} == {(112, 48)}
        assert target.oriented(target.weight).shape == (EXPERTS, 112, 48)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["experts.down_prj"], "did you mean experts.down_proj"),
        (["q_proj.weight"], "name it in target_modules"),
        (["gate_up_proj_bias"], None),
        (["norm.weight"], "of shape 48; only matrices"),
    ],
)
def test_what_cannot_be_adapted_as_a_parameter_is_refused(wanted: list[str], message: str | None) -> None:
    model = build_mixture("gpt_oss")
    if message is None:  # a matrix with a row for each expert, which PEFT adapts as one
        assert find_targets(model, [], wanted).popitem()[1].experts == 0
        return
    with pytest.raises(TargetError, match=message):
        find_targets(model, "all-linear", wanted)


def test_a_dense_model_says_that_it_has_no_experts() -> None:
    with pytest.raises(TargetError, match="the model has no experts"):
        find_targets(build_model("llama"), "all-linear", ["experts.down_proj"])


def test_a_parameter_of_a_hand_written_module_with_a_number_of_experts_is_found() -> None:
    class Bank(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_experts = 3
            self.weight = nn.Parameter(torch.zeros(3, 5, 4))
            self.other = nn.Parameter(torch.zeros(2, 5, 4))

    assert list(expert_weights(nn.Sequential(Bank()))) == ["0.weight"]
