"""Products in TF32 are allowed while a command runs, and not after it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from lora_ga_cli.model.probe import probe_logits
from lora_ga_cli.model.tf32 import float32_products, tf32_products
from lora_ga_cli.stages import inputs
from lora_ga_cli.stages import train as training
from tests.conftest import build_batch, build_model
from tests.helpers import Arguments, Loraga

MATMUL = torch.backends.cuda.matmul


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("allowed", [False, True])
def test_the_switch_is_put_back(before: bool, allowed: bool) -> None:
    MATMUL.allow_tf32 = before
    with tf32_products(allowed):
        assert MATMUL.allow_tf32 is (before or allowed)
        assert torch.get_float32_matmul_precision() == ("high" if before or allowed else "highest")
    assert MATMUL.allow_tf32 is before


def test_the_switch_is_put_back_after_an_error() -> None:
    with pytest.raises(RuntimeError, match="stopped"), tf32_products(True):
        raise RuntimeError("stopped")
    assert not MATMUL.allow_tf32


@pytest.mark.parametrize("before", ["highest", "high", "medium"])
def test_models_are_compared_by_products_in_float32(before: str) -> None:
    seen = []
    model, batch = build_model("llama"), build_batch("llama")
    model.register_forward_pre_hook(lambda *_: seen.append(torch.get_float32_matmul_precision()))
    torch.set_float32_matmul_precision(before)
    probe_logits(model, batch)
    assert seen == ["highest"]
    assert torch.get_float32_matmul_precision() == before
    with pytest.raises(RuntimeError, match="stopped"), float32_products():
        raise RuntimeError("stopped")
    assert torch.get_float32_matmul_precision() == before


_NEWER_SWITCH = """
import torch
from lora_ga_cli.model.tf32 import float32_products, tf32_allowed
assert tf32_allowed()  # by the variable of the environment
with float32_products():
    assert not tf32_allowed()
assert tf32_allowed()
torch.backends.cuda.matmul.fp32_precision = "tf32"
with float32_products():
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"
assert torch.backends.cuda.matmul.fp32_precision == "tf32" and tf32_allowed()
"""


@pytest.mark.skipif(not hasattr(MATMUL, "fp32_precision"), reason="this torch has the older switch only")
def test_products_are_in_float32_whichever_way_tf32_was_allowed() -> None:
    environment = {**os.environ, "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}  # torch reads it once, when it is imported
    subprocess.run([sys.executable, "-c", _NEWER_SWITCH], check=True, env=environment)


@pytest.mark.parametrize("allowed", [False, True])
def test_training_and_the_estimation_before_it_are_inside(
    loraga: Loraga, arguments: Arguments, monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    seen = []
    for module, name in ((training, "initialize_link"), (training, "fit")):
        original = getattr(module, name)

        def watched(*args: object, original=original, **options: object) -> object:  # type: ignore[no-untyped-def]
            seen.append(MATMUL.allow_tf32)
            return original(*args, **options)

        monkeypatch.setattr(module, name, watched)
    monkeypatch.setattr(inputs, "check_speed", lambda *_: None)  # which refuses it without a GPU
    loraga("train", *arguments("llama", f"trainer.tf32={str(allowed).lower()}", "trainer.max_steps=1"))
    assert seen == [allowed, allowed]
    assert not MATMUL.allow_tf32
