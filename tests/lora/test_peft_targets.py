"""The names by which PEFT finds exactly the weights that were chosen, also where it reads names in another way."""

from __future__ import annotations

import pytest
from peft import LoraConfig, get_peft_model

from lora_ga_cli.lora.layers import base_targets, factor_keys
from lora_ga_cli.lora.peft_targets import peft_targets
from lora_ga_cli.model.targets import find_targets
from tests.conftest import build_model
from tests.mixtures import MIXTURES, build_mixture


@pytest.mark.parametrize("parameters", ["all-experts", [], ["experts.down_proj"]])
@pytest.mark.parametrize("family", MIXTURES)
def test_peft_adapts_exactly_the_chosen_weights(family: str, parameters: str | list[str]) -> None:
    model = build_mixture(family)
    targets = find_targets(model, "all-linear", parameters)
    adapted = base_targets(get_peft_model(model, LoraConfig(r=2, **peft_targets(model, targets))))
    assert {item.parameter_name for item in adapted.values()} == {item.parameter_name for item in targets.values()}
    assert adapted.keys() == targets.keys()
    assert {name: item.shape for name, item in adapted.items()} == {name: item.shape for name, item in targets.items()}


def test_the_names_are_short_where_they_select_nothing_else() -> None:
    model = build_mixture("deepseek")
    every = peft_targets(model, find_targets(model, "all-linear", "all-experts"))
    assert every["target_parameters"] == [
        "down_proj.weight",
        "experts.down_proj",
        "experts.gate_up_proj",
        "gate_proj.weight",
        "up_proj.weight",
    ]
    one = peft_targets(model, find_targets(model, ["shared_experts.up_proj"]))
    assert one == {"target_modules": [], "target_parameters": ["model.layers.1.mlp.shared_experts.up_proj.weight"]}


def test_a_dense_model_has_target_modules_alone() -> None:
    model = build_model("llama")
    assert peft_targets(model, find_targets(model, ["q_proj", "v_proj"])) == {"target_modules": ["q_proj", "v_proj"]}


def test_the_files_name_of_an_expert_depends_on_what_else_is_adapted() -> None:
    def keys(*names: str) -> set[str]:
        model = build_mixture("mixtral")
        targets = find_targets(model, [], list(names))
        wrapped = get_peft_model(model, LoraConfig(r=2, **peft_targets(model, targets)))
        files = {key for key in wrapped.state_dict() if "lora_A" in key}
        found = {pair[0] for pair in factor_keys(wrapped).values()}
        assert {key.replace(".default", "") for key in files} == found
        return found

    experts = "base_model.model.model.layers.0.mlp.experts"
    assert keys("experts.down_proj") == {f"{experts}.lora_A.weight"}
    assert keys("experts.down_proj", "experts.gate_up_proj") == {
        f"{experts}.lora_A.weight",
        f"{experts}.base_layer.lora_A.weight",
    }
