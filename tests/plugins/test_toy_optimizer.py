"""An optimizer in a user's file is chosen by its name, trains the factors, and is listed with its options."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lora_ga_cli.registry import CODE_VARIABLE, OPTIMIZERS
from tests.helpers import Arguments, Loraga
from tests.optimizers.layers import build, layer, run

FILE = Path(__file__).with_name("toy_optimizer.py")


@pytest.fixture(autouse=True)
def forget_code(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After a test the optimizer is not registered any more."""
    OPTIMIZERS.names()
    monkeypatch.setattr(OPTIMIZERS, "_classes", dict(OPTIMIZERS._classes))
    monkeypatch.setenv(CODE_VARIABLE, "")
    yield
    sys.modules.pop(f"loraga_code_{FILE.stem}", None)


def test_it_is_listed_with_its_options_and_moves_every_entry_by_the_learning_rate(loraga: Loraga) -> None:
    listed = loraga("recipes", "optimizers", "--code", str(FILE)).split()
    assert {"sign_momentum", "Signs", "decay", "Decay"} <= set(listed)
    pair = layer()
    before = pair.a.detach().clone()
    run(build("sign_momentum", [pair], lr=0.25))
    assert torch.allclose((pair.a - before).abs(), torch.full_like(before, 0.25))


def test_a_run_trains_with_it(loraga: Loraga, arguments: Arguments) -> None:
    options = ["method=rslora", "trainer.optimizer=sign_momentum", "trainer.optimizer_options={decay: 0.5}"]
    printed = loraga("train", *arguments("llama", *options, "trainer.max_steps=2", "--code", str(FILE)))
    assert "step 2" in printed or "2/2" in printed
