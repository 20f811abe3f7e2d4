"""A linear layer and its adapter as one operation, beside the two that it replaces and beside autograd in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional

from lora_ga_cli.lora.initialization import random_factors
from lora_ga_cli.lora.layers import lora_layers, weight_of
from lora_ga_cli.lora.linear import AdaptedLinear
from lora_ga_cli.lora.offset import compute_init, install, train_directly
from tests.lora.test_product import operations

D_IN, D_OUT, RANK = 24, 40, 3


class Two(nn.Module):
    """A layer without a bias, and one with."""

    def __init__(self) -> None:
        super().__init__()
        self.config: Any = {"model_type": "none"}
        self.first = nn.Linear(D_IN, D_OUT, bias=False)
        self.second = nn.Linear(D_OUT, D_IN)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(functional.silu(self.first(x)))  # type: ignore[no-any-return]


def adapted(form: str, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """The two layers with an adapter that is not zero, of a form: ``direct``, ``base`` or ``adapter``."""
    torch.manual_seed(3)
    model = get_peft_model(Two(), LoraConfig(r=RANK, target_modules=["first", "second"], **options))  # type: ignore[arg-type]
    model = model.to(dtype)
    if form == "direct":
        train_directly(model)
    else:

        def pair(name: str, target: Any, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
            return random_factors(target.shape, rank, factor=0.3, seed=len(name))

        install(model, compute_init(model, pair, offset=form))
        model = model.to(dtype)  # what trains was made in float32
    with torch.no_grad():
        for layer in lora_layers(model).values():
            for factor in (layer.lora_A, layer.lora_B):
                weight_of(factor).add_(torch.randn(weight_of(factor).shape).to(dtype), alpha=0.1)
    return model


def pass_of(model: Any, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The result for an input, and the gradients of the input and of everything that trains."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    result = model(x)
    result.square().sum().backward()
    return result.detach(), [x.grad, *(item.grad for item in model.parameters() if item.requires_grad)]  # type: ignore[list-item]


def calls(model: Any, run: Callable[[], Any]) -> int:
    """How often the one operation is applied."""
    with mock.patch.object(AdaptedLinear, "apply", wraps=AdaptedLinear.apply) as apply:
        run()
    return apply.call_count


def separately(model: Any) -> Any:
    """A copy whose layers compute by PEFT's ``forward``, which calls the base and then the adapter."""
    model = copy.deepcopy(model)
    for layer in lora_layers(model).values():
        del layer.forward
    return model


every_form = pytest.mark.parametrize("form", ["direct", "base", "adapter"])


@every_form
def test_one_operation_gives_what_two_do(form: str) -> None:
    """In float64, with and without a bias, and for rows in two dimensions or three."""
    model, x = adapted(form), torch.randn(2, 5, D_IN, dtype=torch.float64)
    other = separately(model)
    for rows in (x, x[0]):
        (one, of_one), (two, of_two) = pass_of(model, rows), pass_of(other, rows)
        for actual, expected in zip([one, *of_one], [two, *of_two], strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    assert calls(model, lambda: model(x)) == 2
    assert calls(other, lambda: other(x)) == 0


def test_a_model_may_change_the_result_in_place() -> None:
    """The mixture of experts of Llama 4 adds to what its shared expert returns."""
    model, x = adapted("direct"), torch.randn(2, 5, D_IN, dtype=torch.float64)
    other = torch.randn(2, 5, D_IN, dtype=torch.float64)

    def gradients(compute: Callable[[Any], Tensor], model: Any) -> list[Tensor]:
        trained = [item for item in model.parameters() if item.requires_grad]
        return list(torch.autograd.grad(compute(model).square().sum(), trained))

    expected = gradients(lambda model: model(x) + other, separately(model))
    torch.testing.assert_close(gradients(lambda model: model(x).add_(other), model), expected)


def test_gradients_are_those_of_finite_differences() -> None:
    model = adapted("direct")
    layer: Any = lora_layers(model)["second"]
    x = torch.randn(4, D_OUT, dtype=torch.float64, requires_grad=True)
    trained = (weight_of(layer.lora_A), weight_of(layer.lora_B))
    assert calls(model, lambda: layer(x)) == 1
    for item in (x, *trained):
        assert torch.autograd.gradcheck(lambda _: layer(x), (item,), fast_mode=True)


@every_form
def test_an_input_in_another_type_has_a_gradient_in_its_own(form: str) -> None:
    model = adapted("direct" if form == "base" else form, torch.float32)
    x = torch.randn(5, D_IN, dtype=torch.bfloat16)
    result, (of_x, *_) = pass_of(model, x)
    assert (result.dtype, of_x.dtype) == (torch.float32, torch.bfloat16)


def test_autocast_in_the_type_of_the_weights_is_one_operation() -> None:
    model, x = adapted("direct", torch.bfloat16), torch.randn(5, D_IN)
    with torch.autocast("cpu", torch.bfloat16):
        assert calls(model, lambda: model(x)) == 2
    with torch.autocast("cpu", torch.float16):
        assert calls(model, lambda: model(x)) == 0


def test_a_call_to_which_something_else_applies_is_pefts() -> None:
    x = torch.randn(3, D_IN, dtype=torch.float64)
    model = adapted("direct")
    layers = [layer.get_base_layer() for layer in lora_layers(model).values()]
    alone = calls(model, lambda: model(x))
    seen: list[Tensor] = []
    handle = layers[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert calls(model, lambda: model(x)) == alone - 1
    assert len(seen) == 1
    handle.remove()
    layers[1].bias.requires_grad_(True)
    assert calls(model, lambda: model(x)) == alone - 1
    layers[1].bias.requires_grad_(False)
    with model.disable_adapter():
        assert calls(model, lambda: model(x)) == 0
        base = model(x)
    assert not torch.equal(base, model(x))
    assert calls(adapted("direct", lora_dropout=0.1), lambda: None) == 0
    dropped = adapted("direct", lora_dropout=0.1).train()
    assert calls(dropped, lambda: dropped(x)) == 0
    model.merge_adapter()
    assert calls(model, lambda: model(x)) == 0


def test_a_copy_computes_with_its_own_factors() -> None:
    model, x = adapted("direct"), torch.randn(3, D_IN, dtype=torch.float64)
    other = copy.deepcopy(model)
    before = model(x)
    with torch.no_grad():
        for layer in lora_layers(other).values():
            weight_of(layer.lora_B).zero_()
    assert not torch.equal(other(x), before)
    assert torch.equal(model(x), before)


def test_one_operation_launches_less() -> None:
    """Neither an addition of two gradients of the input nor one of two results, in every layer."""
    from tests.lora.test_product import direct_model

    model = direct_model("llama", torch.bfloat16)
    for layer in lora_layers(model).values():
        layer.lora_A.to(torch.bfloat16)
        layer.lora_B.to(torch.bfloat16)
    layers = len(lora_layers(model))
    assert operations(model).total() + layers - 1 <= operations(separately(model)).total()


def test_a_weight_that_changed_since_the_forward_pass_is_refused() -> None:
    """As autograd refuses it, and unlike a wrong gradient of the input."""
    model, x = adapted("direct"), torch.randn(3, D_IN, dtype=torch.float64, requires_grad=True)
    loss = model(x).sum()
    with torch.no_grad():
        lora_layers(model)["first"].get_base_layer().weight.mul_(2)
    with pytest.raises(RuntimeError, match="a weight of the base changed"):
        loss.backward()
