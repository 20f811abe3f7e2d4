"""AdamW in its kinds: what it keeps, that it resumes to the bit, and that 8 bits are close to 32."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from lora_ga_cli.errors import InvalidInput
from lora_ga_cli.optimizers.base import optimizer_of
from tests.helpers import configured

EIGHT_BITS = ["adamw_8bit", "paged_adamw_8bit"]
KINDS = ["adamw", "paged_adamw", *EIGHT_BITS]
pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")


def model() -> nn.Module:
    """A large and a small parameter: the moments of small ones stay in float32."""
    torch.manual_seed(0)
    return nn.Linear(130, 64)


def built(name: str, trained: nn.Module, folder: Path) -> torch.optim.Optimizer:
    """The optimizer that the Trainer makes for a name."""
    chosen = optimizer_of(configured("lora", f"trainer.optimizer={name}")).arguments()
    arguments = TrainingArguments(str(folder), learning_rate=1e-2, use_cpu=True, report_to="none", **chosen)
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(arguments)
    return kind(trained.parameters(), **settings)


def train(trained: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(8, 130, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        trained(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", KINDS)
def test_the_forecast_knows_what_is_kept(name: str, tmp_path: Path) -> None:
    trained = model()
    optimizer = built(name, trained, tmp_path)
    train(trained, optimizer, range(1))
    moments = ("exp_avg", "exp_avg_sq", "state1", "state2", "absmax1", "absmax2")
    kept = sum(state[key].nbytes for state in optimizer.state.values() for key in moments if key in state)
    gradients = sum(item.grad.nbytes for item in trained.parameters() if item.grad is not None)
    configured_optimizer = optimizer_of(configured("lora", f"trainer.optimizer={name}"))
    assert configured_optimizer.state_bytes(trained) == gradients + kept


@pytest.mark.parametrize("name", KINDS)
def test_it_resumes_to_the_bit(name: str, tmp_path: Path) -> None:
    uninterrupted, stopped = model(), model()
    train(uninterrupted, built(name, uninterrupted, tmp_path), range(6))
    first = built(name, stopped, tmp_path)
    train(stopped, first, range(3))
    torch.save(first.state_dict(), tmp_path / "optimizer.pt")
    second = built(name, stopped, tmp_path)
    second.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    train(stopped, second, range(3, 6))
    for one, other in zip(uninterrupted.parameters(), stopped.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", KINDS)
def test_it_steps_as_torchs_plain_adamw_does(name: str, tmp_path: Path) -> None:
    reference, trained = model(), model()
    train(reference, torch.optim.AdamW(reference.parameters(), lr=1e-2, foreach=False), range(10))
    train(trained, built(name, trained, tmp_path), range(10))
    start, expected, actual = (next(item.parameters()).detach() for item in (model(), reference, trained))
    off = float((actual - expected).norm() / (expected - start).norm())
    assert off < (0.1 if name in EIGHT_BITS else 1e-5)
    if name in EIGHT_BITS:
        assert off > 1e-5  # its moments are rounded


def test_torchs_own_makes_fused_steps(tmp_path: Path) -> None:
    assert built("adamw", model(), tmp_path).param_groups[0]["fused"]


@pytest.mark.parametrize("name", ["paged_adamw", *EIGHT_BITS])
def test_without_bitsandbytes_it_says_how_to_install_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    without: Any = lambda module, *rest: None if module == "bitsandbytes" else find(module, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(InvalidInput, match=rf"{name} needs bitsandbytes: pip install 'loraga\[quantized\]'"):
        configured("lora", f"trainer.optimizer={name}")
