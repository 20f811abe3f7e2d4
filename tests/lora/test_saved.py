"""Saved adapters, layer by layer: the changes are those that PEFT computes from the same folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from lora_ga_cli.errors import RunError
from lora_ga_cli.lora.convert import to_difference_form
from lora_ga_cli.lora.export import adapts_parameters
from lora_ga_cli.lora.layers import ADAPTER, lora_keys, lora_layers
from lora_ga_cli.lora.saved import SavedAdapter, read_saved, target_in
from lora_ga_cli.model.quantization import dense
from tests.conftest import build_model
from tests.helpers import save_random_factors
from tests.mixtures import build_mixture


def unasked() -> PreTrainedModel:
    raise AssertionError("no model is needed")


def save(folder: Path, model: PreTrainedModel, **options: object) -> PeftModel:
    """PEFT alone writes an adapter with random factors."""
    wrapped = get_peft_model(model.eval(), LoraConfig(**{"r": 3, "lora_alpha": 5, **options}))  # type: ignore[arg-type]
    return save_random_factors(wrapped, folder)


def check_changes(saved: SavedAdapter, wrapped: PeftModel) -> None:
    """Every change is the difference that PEFT adds to the weight, in the orientation (d_out, d_in)."""
    layers = lora_layers(wrapped)
    assert {layer.name for layer in saved.layers} == set(layers)
    for layer in saved.layers:
        expected = layers[layer.name].get_delta_weight(ADAPTER).detach()
        found = torch.stack([change.product() for change in layer.changes])
        if getattr(layers[layer.name].get_base_layer(), "is_transposed", False) or "c_" in layer.name:
            expected = expected.mT
        torch.testing.assert_close(found.squeeze(0).float(), expected.squeeze(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"target_modules": ["q_proj", "down_proj"]}),
        ("llama", {"target_modules": ["q_proj"], "use_rslora": True, "rank_pattern": {"layers.1.self_attn.q_proj": 7}}),
        ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    ],
)
def test_changes_are_those_that_peft_adds(tmp_path: Path, family: str, options: dict[str, object]) -> None:
    wrapped = save(tmp_path, build_model(family), **options)
    saved = read_saved(tmp_path, unasked)
    check_changes(saved, wrapped)
    assert (saved.others, saved.notes) == ({}, [])


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss"])
def test_experts_are_read_one_by_one_and_written_back(tmp_path: Path, family: str) -> None:
    parameters = ["experts.gate_up_proj", "experts.down_proj"]
    wrapped = save(tmp_path, build_mixture(family), target_modules=["q_proj"], target_parameters=parameters)
    assert adapts_parameters(tmp_path)
    with torch.device("meta"):
        empty = build_mixture(family)
    saved = read_saved(tmp_path, lambda: empty)
    check_changes(saved, wrapped)
    assert "model.layers.0.mlp.experts.down_proj.3" in saved.changes
    base = build_mixture(family)
    for layer in saved.layers:
        targets = target_in(base, layer)
        assert [target.name for target in targets] == list(layer.named)
        for target, change in zip(targets, layer.changes, strict=True):
            assert dense(target).shape == change.product().shape
        scaling = lora_layers(wrapped)[layer.name].scaling[ADAPTER]
        stored = {**saved.others, **layer.packed(layer.changes)}
        of_b = wrapped.state_dict()[layer.keys[1].replace(".weight", f".{ADAPTER}.weight")]
        torch.testing.assert_close(stored[layer.keys[1]], scaling * of_b)


def test_what_is_beside_the_products_is_named(tmp_path: Path) -> None:
    save(tmp_path, build_model("llama"), target_modules=["q_proj"], use_dora=True, modules_to_save=["lm_head"])
    saved = read_saved(tmp_path, unasked)
    assert saved.layers[0].magnitude is not None
    assert saved.notes == [
        "DoRA: ΔW is the product s·B A; the trained magnitudes are not part of it",
        "what trained beside the factors is not looked at: lm_head.weight",
    ]


def test_adapters_of_another_kind_and_bases_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no LoRA adapter \(there is no adapter_config.json\)"):
        read_saved(tmp_path, unasked)
    prompt = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2)
    get_peft_model(build_model("llama"), prompt).save_pretrained(str(tmp_path / "prompt"))
    with pytest.raises(RunError, match="of the kind PROMPT_TUNING, and only LoRA adapters"):
        read_saved(tmp_path / "prompt", unasked)
    save(tmp_path / "lora", build_model("llama"), target_modules=["q_proj"])
    (tmp_path / "lora" / "adapter_model.safetensors").rename(tmp_path / "lora" / "elsewhere")
    with pytest.raises(RunError, match="an adapter without adapter_model"):
        read_saved(tmp_path / "lora", unasked)
    (tmp_path / "lora" / "elsewhere").rename(tmp_path / "lora" / "adapter_model.safetensors")
    layer = read_saved(tmp_path / "lora", unasked).layers[0]
    with pytest.raises(RunError, match="the base model has no layer"):
        target_in(build_model("gpt2"), layer)
    with pytest.raises(RunError, match="another one than it was trained on"):
        target_in(build_mixture("deepseek"), type(layer)("lm_head", "lm_head", layer.keys, layer.changes))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda tensors, a, b: tensors.pop(b), "has .*q_proj.lora_A.weight and no .lora_B.weight"),
        (lambda tensors, a, b: tensors.pop(a), "has .*q_proj.lora_B.weight and no .lora_A.weight"),
        (
            lambda tensors, a, b: tensors.update({key.removeprefix("base_"): tensors.pop(key) for key in (a, b)}),
            "model.model.model.layers.0.self_attn.q_proj.lora_A.weight has no name of PEFT's",
        ),
    ],
)
def test_factors_without_their_pair_or_name_are_refused(
    tmp_path: Path, edit: Callable[..., object], message: str
) -> None:
    save(tmp_path, build_model("llama"), target_modules=["q_proj"])
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    edit(tensors, *lora_keys("model.layers.0.self_attn.q_proj"))
    save_file(tensors, file)
    with pytest.raises(RunError, match=message):
        read_saved(tmp_path, unasked)
    with pytest.raises(RunError, match=message):
        to_difference_form(tensors, LoraConfig(r=3))
