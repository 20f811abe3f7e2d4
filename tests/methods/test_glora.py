"""GLoRA: the change of a layer against the formula, computed by hand in float64, in every form."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.glora import GloraLinear
from torch import Tensor

from lora_ga_cli.errors import InvalidInput, TargetError
from lora_ga_cli.methods.base import PreparedModel, method_of
from tests.conftest import build_batch, build_model
from tests.helpers import configured, configured_classifier, prepare

WITHOUT_NONE, WITHOUT_CONSTANT = ["lora", "vector", "constant"], ["lora", "vector", "none"]
FORMS = list(itertools.product(WITHOUT_NONE, WITHOUT_CONSTANT, ["vector", "constant", "none"]))
LAYER, RANK = "bert.encoder.layer.0.output.dense", 4  # d_in 80, d_out 48


def adapted(*forms: str) -> PreparedModel:
    """A classifier in float64 with GLoRA of these forms (A and B, C, D and E) on one layer."""
    names = ("config_A_B", "config_C", "config_D_E")
    options = [f"method.{name}={form}" for name, form in zip(names, forms, strict=True)]
    config = configured_classifier("glora", "target_modules=[layer.0.output.dense]", *options)
    base = build_model("bert").double().eval()
    torch.nn.init.normal_(base.get_submodule(LAYER).bias)  # a new model's is zero, which D could not change
    return prepare(base, config)


def layer_of(prepared: PreparedModel) -> GloraLinear:
    (layer,) = [module for module in prepared.model.modules() if isinstance(module, GloraLinear)]
    return layer


def value(layer: GloraLinear, letter: str, form: str, shape: tuple[int, ...]) -> Tensor:
    """A letter's value in full shape, from the parameters alone."""
    stored = {name: item.detach() for name, item in getattr(layer, f"glora_{letter}").named_parameters()}
    if form == "none":
        assert not stored
        return torch.zeros(shape, dtype=torch.float64)
    if form == "lora":
        left, right = stored["default.Xd"].double(), stored["default.Xu"].double()
        assert left.shape[1] == right.shape[0] == RANK
        return left @ right
    return stored["default.X"].double().expand(shape)


@pytest.mark.parametrize("forms", FORMS, ids="-".join)
def test_every_form_computes_and_merges_as_the_formula_says(forms: tuple[str, str, str]) -> None:
    prepared = adapted(*forms)
    layer, x = layer_of(prepared), torch.randn(5, 80, dtype=torch.float64)
    base: Any = layer.get_base_layer()
    weight, bias = base.weight.detach().clone(), base.bias.detach().clone()
    with torch.no_grad():
        assert torch.equal(layer(x), base(x))  # nothing changes before the first step
        for item in prepared.model.parameters():
            if item.requires_grad:
                item.normal_()
        shapes = {"A": (48, 80), "B": (48, 80), "C": (80, 1), "D": (48,), "E": (48,)}
        form_of = dict(zip("ABCDE", (forms[0], forms[0], forms[1], forms[2], forms[2]), strict=True))
        a, b, c, d, e = (value(layer, letter, form, shapes[letter]) for letter, form in form_of.items())
        weight_after, bias_after = weight + weight * a + b, bias + bias * d + e + (weight @ c).flatten()
        assert (layer(x) - (x @ weight_after.T + bias_after)).abs().max() < 1e-11
        layer.merge()
        assert (base.weight - weight_after).abs().max() < 1e-13
        assert (base.bias - bias_after).abs().max() < 1e-11


@pytest.mark.parametrize(
    ("forms", "count"),
    [
        (("lora", "none", "none"), 2 * RANK * (48 + 80)),
        (("vector", "none", "vector"), 2 * 48 + 2 * 48),
        (("constant", "vector", "constant"), 2 + 80 + 2),
        (("constant", "lora", "none"), 2 + RANK * (80 + 1)),
    ],
)
def test_a_form_trains_as_many_numbers_as_it_has(forms: tuple[str, str, str], count: int) -> None:
    layer = layer_of(adapted(*forms))
    assert sum(item.numel() for item in layer.parameters() if item.requires_grad) == count


@pytest.mark.parametrize("forms", FORMS, ids="-".join)
def test_every_letter_gets_a_gradient_at_the_start(forms: tuple[str, str, str]) -> None:
    """Of two factors, the one that begins at zero; were it both, nothing would ever train."""
    model = adapted(*forms).model
    model(**build_batch("bert")).loss.backward()
    moved = {name for name, item in model.named_parameters() if item.requires_grad and bool(item.grad.any())}  # type: ignore[union-attr]
    trained = {name for name, item in model.named_parameters() if item.requires_grad}
    assert trained - moved == {name for name in trained if name.endswith(".Xu")}


def test_the_saved_adapter_loads_in_peft_alone(tmp_path: Path) -> None:
    prepared = adapted("vector", "lora", "constant")
    with torch.no_grad():
        for item in prepared.model.parameters():
            if item.requires_grad:
                item.normal_(std=0.1)
    method = method_of(configured_classifier("glora"))
    method.save(prepared.model, tmp_path, None)
    base = build_model("bert").double()
    base.get_submodule(LAYER).bias.data = layer_of(prepared).get_base_layer().bias.data
    loaded = PeftModel.from_pretrained(base, tmp_path).eval()
    batch = build_batch("bert")
    with torch.no_grad():
        expected = prepared.model.eval()(**batch).logits
        assert torch.allclose(loaded(**batch).logits, expected, atol=1e-12)


def test_a_layer_without_a_bias_is_named_before_peft_leaves_the_change_out() -> None:
    config = configured("glora", "method.config_C=lora")
    with pytest.raises(TargetError, match=r"q_proj .*has no bias, which method\.config_C=lora would change: set both"):
        prepare(build_model("llama"), config)


def test_other_layers_than_linear_are_named() -> None:
    with pytest.raises(TargetError, match=r"c_attn: PEFT's GLoRA takes nn\.Linear only, and this is Conv1D"):
        prepare(build_model("gpt2"), configured("glora"))


def test_no_change_of_the_weight_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"two matrices of zeros as large as every weight"):
        configured("glora", "method.config_A_B=none")


def test_what_trains_is_described() -> None:
    prepared, config = adapted("lora", "none", "none"), configured_classifier("glora")
    assert method_of(config).describe(prepared.model) == "A and B as lora, rank 4, 1 layers"
    assert method_of(config).built_size(prepared.model) == [RANK]
    config = configured_classifier("glora", "method.config_A_B=vector")
    assert "rank" not in config.shared_uses  # so that a recipe's rank is noted as one without effect
    assert method_of(config).describe(adapted("vector", "none", "none").model) == "A and B as vector, 1 layers"
