"""Compiled blocks compute what they computed before."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from torch import Tensor, nn

from lora_ga_cli.model import compilation
from lora_ga_cli.model.blocks import blocks
from lora_ga_cli.model.checkpointing import checkpoint_blocks
from lora_ga_cli.model.compilation import compile_blocks
from lora_ga_cli.model.unsupported import Unsupported
from tests.conftest import build_batch, build_model
from tests.helpers import configured, prepare

LENGTHS = (7, 12, 20)


def losses_and_gradients(model: nn.Module) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Of one batch of each length, in training; and the loss of the last one in evaluation."""
    results = []
    for tokens in LENGTHS:
        model.train().zero_grad()
        loss = model(**build_batch("llama", tokens=tokens)).loss
        loss.backward()
        grads = {name: item.grad.clone() for name, item in model.named_parameters() if item.grad is not None}
        results.append((loss.detach(), grads))
    with torch.no_grad():
        results.append((model.eval()(**build_batch("llama", tokens=LENGTHS[-1])).loss, {}))
    return results


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "checkpointing", "backend"),
    [("lora", True, "aot_eager"), ("lora_ga", False, "aot_eager"), ("lora_ga", True, "inductor")],
)
def test_compiled_blocks_compute_the_same(method: str, checkpointing: bool, backend: str) -> None:
    """``aot_eager`` traces forward and backward pass like ``inductor``, and generates no code."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    base = build_model("llama")
    if checkpointing:
        checkpoint_blocks(base)
    model = prepare(base, configured(method)).model
    for name, item in model.named_parameters():
        if "lora_B" in name and item.requires_grad:
            nn.init.normal_(item, std=0.02)
    expected = losses_and_gradients(model)
    names, saved = [name for name, _ in model.named_parameters()], list(model.state_dict())
    compile_blocks(model, backend)
    calls, breaks = (torch._dynamo.utils.counters[name] for name in ("frames", "graph_break"))
    before = calls["ok"]
    for (loss, gradients), (expected_loss, expected_gradients) in zip(
        losses_and_gradients(model), expected, strict=True
    ):
        torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-6)
        assert gradients.keys() == expected_gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-4, atol=1e-6)
    assert calls["ok"] > before  # it was really compiled
    assert not breaks
    assert [name for name, _ in model.named_parameters()] == names
    assert list(model.state_dict()) == saved


def test_only_blocks_are_compiled_and_copies_are_not() -> None:
    model = build_model("llama")
    compile_blocks(model)
    compiled = [module for module in model.modules() if module._compiled_call_impl is not None]
    assert compiled == list(blocks(model))
    assert all(module._compiled_call_impl is None for module in copy.deepcopy(model).modules())


def test_without_a_compiler_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    model = build_model("llama")
    with pytest.raises(Unsupported, match=r"needs a C\+\+ compiler"):
        compile_blocks(model)
    assert all(module._compiled_call_impl is None for module in model.modules())


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(Unsupported, match="Linear has no list of blocks"):
        compilation.compile_blocks(nn.Linear(2, 2))
