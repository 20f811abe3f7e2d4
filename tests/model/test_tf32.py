"""Products in TF32 are allowed while a command runs, and not after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from lora_ga_cli.model.tf32 import tf32_products
from lora_ga_cli.stages import inputs
from lora_ga_cli.stages import train as training
from tests.helpers import Arguments, Loraga

MATMUL = torch.backends.cuda.matmul


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = MATMUL.allow_tf32
    yield
    MATMUL.allow_tf32 = before


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


@pytest.mark.parametrize("allowed", [False, True])
def test_training_and_the_estimation_before_it_are_inside(
    loraga: Loraga, arguments: Arguments, monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    seen = []
    for module, name in ((training, "initialize_link"), (training, "_fit")):
        original = getattr(module, name)

        def watched(*args: object, original=original, **options: object) -> object:  # type: ignore[no-untyped-def]
            seen.append(MATMUL.allow_tf32)
            return original(*args, **options)

        monkeypatch.setattr(module, name, watched)
    monkeypatch.setattr(inputs, "check_speed", lambda *_: None)  # which refuses it without a GPU
    loraga("train", *arguments("llama", f"trainer.tf32={str(allowed).lower()}", "trainer.max_steps=1"))
    assert seen == [allowed, allowed]
    assert not MATMUL.allow_tf32
