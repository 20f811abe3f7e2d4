"""LoRA-GA's factors of experts: packed as PEFT reads them, aligned with each expert's gradient, exact in PEFT alone."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from lora_ga_cli import estimate_gradients
from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.gradient.estimators.exact import ExactEstimator
from lora_ga_cli.lora.experts import pack, unpack
from lora_ga_cli.lora.export import export_adapter, restore_adapter
from lora_ga_cli.lora.initialization import first_step_alignment
from lora_ga_cli.lora.layers import ADAPTER, base_targets, lora_layers, lora_ranks, weight_of
from lora_ga_cli.lora.links import merge_layers
from lora_ga_cli.lora.offset import LoraInit, differences
from lora_ga_cli.methods.lora_ga import initialize
from tests.mixtures import EXPERTS, MIXTURES, build_mixture

RANK, D_IN, D_OUT = 3, 12, 20
NAMES = ["experts.gate_up_proj", "experts.down_proj"]
all_mixtures = pytest.mark.parametrize("family", MIXTURES)
both_offsets = pytest.mark.parametrize("offset", ["base", "adapter"])


class Bank(nn.Module):
    """Experts in one parameter, in either layout."""

    def __init__(self, transposed: bool):
        super().__init__()
        self.num_experts, self.is_transposed = EXPERTS, transposed
        self.weight = nn.Parameter(torch.zeros(EXPERTS, *((D_IN, D_OUT) if transposed else (D_OUT, D_IN))))

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("transposed", [False, True])
def test_packed_factors_are_those_that_peft_multiplies(transposed: bool) -> None:
    model = get_peft_model(nn.Sequential(Bank(transposed)), LoraConfig(r=RANK, target_parameters=["0.weight"]))
    (layer,) = lora_layers(model).values()
    a, b = torch.randn(EXPERTS, RANK, D_IN), torch.randn(EXPERTS, D_OUT, RANK)
    packed = pack(layer, a, b)
    for pair, factor in zip((layer.lora_A, layer.lora_B), packed, strict=True):
        assert weight_of(pair).shape == factor.shape
        weight_of(pair).data = factor
    added = layer.get_delta_weight(ADAPTER)
    for number in range(EXPERTS):
        product = layer.scaling[ADAPTER] * (b[number] @ a[number])
        torch.testing.assert_close(added[number], product.T if transposed else product)
    for factor, again in zip((a, b), unpack(layer, *packed), strict=True):
        assert torch.equal(factor, again)


def rows() -> dict[str, Tensor]:
    ids = torch.randint(3, 259, (4, 32), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": ids}


def wrapped(base: PreTrainedModel) -> PeftModel:
    config = LoraConfig(
        task_type="CAUSAL_LM", r=RANK, lora_alpha=6, use_rslora=True, target_modules=["o_proj"], target_parameters=NAMES
    )
    return get_peft_model(base, config)


def gradient(base: PreTrainedModel) -> GradientArtifact:
    return estimate_gradients(
        base,
        [rows()],
        target_modules=["o_proj"],
        target_parameters=NAMES,
        capacity=2 * RANK,
        estimator=ExactEstimator(),
    )


def initialized(family: str, offset: str) -> tuple[PeftModel, LoraInit]:
    base = build_mixture(family).eval()
    artifact = gradient(base)
    model = wrapped(base).eval()
    return model, initialize(model, artifact, offset=offset)


def train_a_little(model: PeftModel) -> None:
    """Two steps of gradient descent on what trains."""
    for _ in range(2):
        model(**rows()).loss.backward()
        for parameter in model.parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None
                parameter.data -= 0.05 * parameter.grad / parameter.grad.norm().clamp(min=1e-12)
                parameter.grad = None


@all_mixtures
@both_offsets
def test_nothing_changes_before_the_first_step(family: str, offset: str) -> None:
    expected = build_mixture(family).eval()(**rows()).logits
    model, _ = initialized(family, offset)
    torch.testing.assert_close(model(**rows()).logits, expected, atol=2e-5, rtol=1e-4)


@all_mixtures
def test_the_first_step_of_each_expert_follows_the_best_one_of_its_rank(family: str) -> None:
    """Theorem 3.1 of LoRA-GA, expert by expert, with autograd's gradient of the original weights."""
    base = build_mixture(family).eval()
    base(**rows()).loss.backward()
    gradients = {name: item.grad for name, item in base.named_parameters() if ".experts." in name}
    model, init = initialized(family, "adapter")
    for name, target in base_targets(model).items():
        for number in range(target.experts):
            of_expert = target.oriented(gradients[name][number])
            a0, b0 = (factor[number] for factor in init.factors[name])
            if of_expert.any():
                assert first_step_alignment(of_expert.double(), a0.double(), b0.double()) > 0.9999


@all_mixtures
@both_offsets
def test_what_was_trained_is_what_peft_alone_loads(family: str, offset: str, tmp_path: Path) -> None:
    base = build_mixture(family).eval()
    before = base(**rows()).logits
    model, init = initialized(family, offset)
    train_a_little(model)
    expected = model(**rows()).logits
    assert float((expected - before).detach().abs().max()) > 1e-2
    export_adapter(model, tmp_path, init)
    loaded = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    torch.testing.assert_close(loaded(**rows()).logits, expected, atol=1e-5, rtol=1e-4)
    assert lora_ranks(loaded) == [2 * RANK] * len(lora_layers(loaded))


@all_mixtures
@both_offsets
def test_a_checkpoint_is_read_back_to_the_bit(family: str, offset: str, tmp_path: Path) -> None:
    model, init = initialized(family, offset)
    train_a_little(model)
    export_adapter(model, tmp_path, init)
    again, stored = initialized(family, offset)
    restore_adapter(again, tmp_path, stored)
    for name, layer in lora_layers(model).items():
        for one, other in zip(differences(layer), differences(lora_layers(again)[name]), strict=True):
            assert torch.equal(one, other)


@all_mixtures
def test_merged_experts_are_the_sum_in_float64(family: str, tmp_path: Path) -> None:
    model, init = initialized(family, "adapter")
    train_a_little(model)
    expected = model(**rows()).logits
    export_adapter(model, tmp_path, init)
    base = build_mixture(family).eval()
    weights = copy.deepcopy(dict(base.named_parameters()))
    loaded = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    changes = {
        name: layer.scaling[ADAPTER] * (b.double() @ a.double())
        for name, layer in lora_layers(loaded).items()
        for a, b in [differences(layer)]
    }
    targets = base_targets(loaded)
    merge_layers(loaded, torch.float32)
    plain = loaded.merge_and_unload()
    for name, change in changes.items():
        target = targets[name]
        added = target.oriented(change)
        total = (weights[target.parameter_name].double() + added).float()
        assert torch.equal(plain.get_parameter(target.parameter_name).data, total)
    torch.testing.assert_close(plain(**rows()).logits, expected, atol=1e-5, rtol=1e-4)


def test_an_expert_without_gradient_begins_as_in_lora() -> None:
    base = build_mixture("mixtral").eval()
    artifact = gradient(base)
    name = "model.layers.0.mlp.experts.down_proj"
    factors = {key: value for key, value in artifact.factors.items() if key != f"{name}.2"}
    partial = GradientArtifact(factors, artifact.capacity, {**artifact.info, "unreached": [f"{name}.2"]})
    init = initialize(wrapped(base), partial)
    a0, b0 = init.factors[name]
    assert [bool(b.any()) for b in b0] == [True, True, False, True]
    assert a0[2].any()
    assert float(a0[2].abs().max()) <= 56**-0.5  # PEFT's uniform distribution


def test_a_half_precision_base_trains_float32_factors() -> None:
    base = build_mixture("gpt_oss").to(torch.bfloat16).eval()
    expected = base(**rows()).logits
    model = wrapped(base).eval()
    initialize(model, gradient(build_mixture("gpt_oss")))
    assert torch.equal(model(**rows()).logits, expected)  # zero is added
    train_a_little(model)
    trained = [item for item in model.parameters() if item.requires_grad]
    assert {item.dtype for item in trained} == {torch.float32}
    assert all(item.any() for item in trained)
