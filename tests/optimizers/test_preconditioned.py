"""Scaled AdamW and LoRA-FA: against PEFT's optimizers, and in closed form, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_lorafa_optimizer, create_riemannian_optimizer
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from lora_ga_cli.config.schema import Config
from lora_ga_cli.lora.layers import lora_pairs
from lora_ga_cli.optimizers.base import optimizer_of
from lora_ga_cli.optimizers.grams import grams
from lora_ga_cli.optimizers.lora_fa import LoraFa
from lora_ga_cli.optimizers.pairs import Side
from lora_ga_cli.optimizers.scaled_adamw import ScaledAdamW
from tests.conftest import build_model
from tests.helpers import configured, prepare
from tests.optimizers.layers import build, gradient_of, layer, tensor


class TwoLayers(nn.Module):
    """Two linear layers of different shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(9, 8, bias=False), nn.Linear(8, 7, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


def lora_model(dtype: torch.dtype) -> PeftModel:
    """PEFT's LoRA, whose layers have different ranks, with B not zero."""
    torch.manual_seed(0)
    described = LoraConfig(
        r=4, lora_alpha=6, target_modules=["first", "second"], rank_pattern={"second": 3}, init_lora_weights=False
    )
    model = get_peft_model(TwoLayers().to(dtype), described)  # type: ignore[arg-type]
    assert isinstance(model, PeftModel)
    return model.to(dtype)


def trained(model: PeftModel, optimizer: Optimizer, steps: int = 5) -> list[Tensor]:
    """What each layer adds after some steps."""
    dtype = next(model.parameters()).dtype
    inputs, right = tensor(20, 9, seed=1).to(dtype), tensor(20, 7, seed=2).to(dtype)
    for _ in range(steps):
        optimizer.zero_grad()
        ((model(inputs) - right) ** 2).mean().backward()
        optimizer.step()
    return [change_of for pair in lora_pairs(model) for change_of in [(pair.scaling * pair.b @ pair.a).detach()]]


def ours(config: Config, model: PeftModel, **settings: Any) -> Optimizer:
    parameters = [item for item in model.parameters() if item.requires_grad]
    return optimizer_of(config).build(AdamW(parameters, **settings), model)


def test_scaled_adamw_is_pefts_riemannian_optimizer_on_plain_lora() -> None:
    settings: dict[str, Any] = {"lr": 0.02, "weight_decay": 0.1, "betas": (0.8, 0.95)}
    of_peft = lora_model(torch.float64)
    right = trained(of_peft, create_riemannian_optimizer(of_peft, AdamW, reg=1e-2, **settings))
    model = lora_model(torch.float64)
    found = trained(model, ours(configured("scaled_adamw"), model, **settings))
    for one, other in zip(found, right, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-13)


def test_scaled_adamw_uses_the_factors_where_differences_train() -> None:
    """PEFT's optimizer would use B - B0, which is zero, and multiply A's gradient by 1/δ."""
    pair = layer()
    right = torch.linalg.inv(pair.b.T @ pair.b + 1e-2 * torch.eye(3)).detach()
    initial, zero = pair.b.detach(), nn.Parameter(torch.zeros_like(pair.b))
    offset = type(pair)(pair.name, pair.delta_a, zero, None, initial, pair.scaling)
    optimizer = build("scaled_adamw", [offset])
    gradient = tensor(*pair.delta_a.shape, seed=9)
    offset.delta_a.grad, offset.delta_b.grad = gradient.clone(), torch.zeros_like(zero)
    optimizer.step()
    assert torch.allclose(offset.delta_a.grad, right @ gradient, rtol=1e-10)


def side_of_b(seed: int = 0) -> tuple[Side, Tensor]:
    """The side B of a layer, and the gradient of its weight."""
    pair = layer(seed)
    gradient, a = gradient_of(pair, seed), pair.a.detach()
    of_b = pair.scaling * gradient @ a.T
    scaling = torch.tensor([[[pair.scaling]]], dtype=torch.float64)
    return Side((pair.delta_b,), of_b[None], a.T[None], scaling, is_a=False), gradient


def test_gradient_descent_with_lora_fas_gradient_is_full_fine_tunings_step_on_the_rows_of_a() -> None:
    pair = layer()
    optimizer = build("lora_fa", [pair])
    assert isinstance(optimizer, LoraFa)
    side, gradient = side_of_b()
    (direction,) = optimizer.precondition(side, *grams([side.other]), optimizer.param_groups[-1])
    a = pair.a.detach()
    onto_a = torch.linalg.pinv(a) @ a
    assert torch.allclose(pair.scaling * direction @ a, gradient @ onto_a, rtol=0, atol=1e-12)


def test_gradient_descent_with_scaled_gradients_projects_on_both_sides() -> None:
    """``P_B G + G P_A``, times s², without damping."""
    pair = layer()
    optimizer = build("scaled_adamw", [pair], damping=1e-300)
    assert isinstance(optimizer, ScaledAdamW)
    side, gradient = side_of_b()
    a, b, s = pair.a.detach(), pair.b.detach(), pair.scaling
    side_of_a = Side((pair.delta_a,), (s * b.T @ gradient).T[None], b[None], side.scaling, is_a=True)
    group = optimizer.param_groups[-1]
    (for_b,), (for_a,) = (optimizer.precondition(one, *grams([one.other]), group) for one in (side, side_of_a))
    both = b @ torch.linalg.pinv(b) @ gradient + gradient @ torch.linalg.pinv(a) @ a
    assert torch.allclose(s * (for_b @ a + b @ for_a.T), s**2 * both, rtol=0, atol=1e-11)


def test_lora_fa_is_pefts_up_to_its_bfloat16() -> None:
    """PEFT rounds the product to bfloat16 in a float32 run; ours does not."""
    of_peft = lora_model(torch.float32)
    right = trained(of_peft, create_lorafa_optimizer(of_peft, r=4, lora_alpha=6, lr=0.01))
    model = lora_model(torch.float32)
    for pair in lora_pairs(model):
        pair.delta_a.requires_grad_(False)
    config = configured("lora_fa")
    found = trained(model, ours(config, model, lr=0.01, eps=1e-6, weight_decay=0.0))
    begin = [(pair.scaling * pair.b @ pair.a).detach() for pair in lora_pairs(lora_model(torch.float32))]
    for one, other, at_first in zip(found, right, begin, strict=True):
        moved = float((other - at_first).norm())
        assert 1e-5 * moved < float((one - other).norm()) < 3e-2 * moved


@pytest.mark.parametrize("name", ["scaled_adamw", "lora_fa"])
def test_it_is_chosen_by_its_method_file(name: str) -> None:
    config = configured(name)
    assert config.trainer.optimizer == name
    model = prepare(build_model("llama"), config).model
    frozen = {pair.delta_a.requires_grad for pair in lora_pairs(model)}  # type: ignore[arg-type]
    assert frozen == {name != "lora_fa"}
