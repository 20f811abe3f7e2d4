"""An optimizer's state in a file by the names of parameters: training goes on with it as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from lora_ga_cli.errors import RunError
from lora_ga_cli.training.optimizer_state import install_state, load_state, save_state, state_of


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def optimizer_of(model: nn.Module, *, fused: bool = False) -> torch.optim.AdamW:
    """The order of parameters differs from the model's, and one of them does not train."""
    names = dict(model.named_parameters())
    return torch.optim.AdamW([names["1.weight"], names["0.bias"], names["0.weight"]], lr=1e-2, fused=fused)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("fused", [False, True])
def test_training_goes_on_to_the_bit(tmp_path: Path, fused: bool) -> None:
    one = model()
    uninterrupted = optimizer_of(one, fused=fused)
    train(one, uninterrupted, range(6))
    other = model()
    first = optimizer_of(other, fused=fused)
    train(other, first, range(3))
    save_state(state_of(first, other), tmp_path / "state.safetensors")
    second = optimizer_of(other, fused=fused)
    install_state(second, other, load_state(tmp_path / "state.safetensors"))
    train(other, second, range(3, 6))
    for name, item in one.state_dict().items():
        assert torch.equal(item, other.state_dict()[name]), name


def test_the_file_names_parameters_and_entries(tmp_path: Path) -> None:
    trained = model()
    optimizer = optimizer_of(trained)
    train(trained, optimizer, range(2))
    save_state(state_of(optimizer, trained), tmp_path / "state.safetensors")
    state = load_state(tmp_path / "state.safetensors")
    assert set(state) == {"0.weight", "0.bias", "1.weight"}
    assert set(state["0.bias"]) == {"step", "exp_avg", "exp_avg_sq"}
    assert state["0.bias"]["step"] == 2


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"gone\.safetensors is missing"):
        load_state(tmp_path / "gone.safetensors")
