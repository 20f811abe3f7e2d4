"""The exact estimator against plain autograd, and what it leaves behind: nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from lora_ga_cli.errors import GradientError, TargetError
from lora_ga_cli.gradient.estimate import estimate_gradients
from lora_ga_cli.gradient.exact import ExactEstimator
from lora_ga_cli.gradient.factors import Factors
from lora_ga_cli.model.targets import find_targets
from tests.conftest import FAMILIES, build_batch, build_model


class Remembering(ExactEstimator):
    """Keeps the averaged gradients themselves, (d_out, d_in), to be compared."""

    grads: dict[str, torch.Tensor]

    def factors(self, total: float, capacity: int) -> Iterator[tuple[str, Factors]]:
        self.grads = {name: grad / total for name, grad in self._sums.items()}
        return super().factors(total, capacity)


def autograd(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gradients (d_out, d_in) of one batch's loss, by plain autograd."""
    targets = find_targets(model)
    weights = [target.weight for target in targets.values()]
    grads = torch.autograd.grad(model(**batch).loss, weights)
    return {name: target.oriented(grad) for (name, target), grad in zip(targets.items(), grads, strict=True)}


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def cut(batch: dict[str, torch.Tensor], size: int) -> list[dict[str, torch.Tensor]]:
    rows = len(batch["labels"])
    return [{name: value[i : i + size] for name, value in batch.items()} for i in range(0, rows, size)]


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_gradient_of_the_training_loss(family: str) -> None:
    model, batch = build_model(family).eval(), build_batch(family)
    estimator = Remembering()
    estimate_gradients(model, [batch], estimator=estimator)
    expected = autograd(model, batch)
    assert set(estimator.grads) == set(expected)
    assert max(relative(estimator.grads[name], expected[name]) for name in expected) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_it_does_not_depend_on_how_rows_are_cut(family: str) -> None:
    """Rows carry different numbers of labels, so a mean of micro-batch means would differ."""
    model, batch = build_model(family).eval(), build_batch(family, rows=6)
    if family != "bert":
        batch["labels"][0, :-2] = -100
    whole, parts = Remembering(), Remembering()
    one = estimate_gradients(model, [batch], estimator=whole)
    other = estimate_gradients(model, cut(batch, 1), estimator=parts)
    assert max(relative(parts.grads[name], grad) for name, grad in whole.grads.items()) < 1e-5
    assert one.info["loss"] == pytest.approx(other.info["loss"], rel=1e-6)
    assert one.info["items"] == other.info["items"]


def test_bfloat16_gradients_add_up_in_float32() -> None:
    """256 micro-batches of a bfloat16 model: within 1e-5 of their float64 sum; a bfloat16 sum errs by a percent."""
    model = build_model("llama").to(torch.bfloat16).eval()
    batches = cut(build_batch("llama", rows=256, tokens=10), 1)
    estimator = Remembering()
    estimate_gradients(model, batches, estimator=estimator)
    items = torch.tensor([int((batch["labels"][:, 1:] != -100).sum()) for batch in batches])
    name = "model.layers.0.mlp.down_proj"
    micro = [autograd(model, batch)[name] for batch in batches]
    exact = sum(grad.double() * count for grad, count in zip(micro, items, strict=True)) / items.sum()
    naive = torch.zeros_like(micro[0])
    for grad, count in zip(micro, items, strict=True):
        naive += grad * count
    assert relative(estimator.grads[name], exact) < 1e-5
    assert relative(naive / items.sum(), exact) > 5e-3


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_gradient_checkpointing_changes_nothing(family: str) -> None:
    """Dropout stays off although transformers only checkpoints in training mode."""
    model, batch = build_model(family).eval(), build_batch(family)
    plain, checkpointed = Remembering(), Remembering()
    estimate_gradients(model, [batch], estimator=plain)
    forwards = []
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    layer = next(module for name, module in model.named_modules() if name.endswith(("mlp", "DenseReluDense")))
    hook = layer.register_forward_pre_hook(lambda *_: forwards.append(1))
    estimate_gradients(model, [batch], estimator=checkpointed)
    hook.remove()
    assert len(forwards) == 2  # once forward, and once more for the backward pass: it was really checkpointed
    assert max(relative(checkpointed.grads[name], grad) for name, grad in plain.grads.items()) < 1e-5


def test_dropout_is_off_unless_asked_for() -> None:
    model, batch = build_model("gpt2").train(), build_batch("gpt2")
    losses = [estimate_gradients(model, [batch], dropout=asked).info["loss"] for asked in (False, False, True)]
    assert losses[0] == losses[1] != losses[2]
    assert model.training


@pytest.mark.parametrize("fails", [False, True], ids=["after success", "after failure"])
def test_the_model_comes_back_as_it_was(fails: bool) -> None:
    model, batch = build_model("llama"), build_batch("llama")
    model.train()
    model.model.layers[0].eval()
    weight = model.model.layers[0].mlp.up_proj.weight
    weight.requires_grad_(False)
    embedding = model.model.embed_tokens.weight
    embedding.grad = torch.ones_like(embedding)
    before = {name: (item.requires_grad, item.clone()) for name, item in model.named_parameters()}
    modes = [module.training for module in model.modules()]

    def broken(_: nn.Module, __: object) -> torch.Tensor:
        raise RuntimeError("broken")

    if fails:
        with pytest.raises(RuntimeError, match="broken"):
            estimate_gradients(model, [batch], loss_function=broken)
    else:
        estimate_gradients(model, [batch])
    assert [module.training for module in model.modules()] == modes
    for name, item in model.named_parameters():
        assert (item.requires_grad, torch.equal(item, before[name][1])) == (before[name][0], True), name
        assert not item._post_accumulate_grad_hooks
        assert (item.grad is not None) == (item is embedding)
    assert model.config.use_cache


def test_offloaded_sums_are_the_same() -> None:
    model, batch = build_model("llama").eval(), build_batch("llama")
    one, other = Remembering(), Remembering(offload=True)
    estimate_gradients(model, [batch], estimator=one)
    estimate_gradients(model, [batch], estimator=other)
    assert all(torch.equal(one.grads[name], other.grads[name]) for name in one.grads)


def test_a_layer_that_the_loss_does_not_reach_is_named() -> None:
    model, batch = build_model("llama").eval(), build_batch("llama")
    model.model.layers[1].mlp.forward = lambda x: torch.zeros_like(x)  # type: ignore[method-assign]
    with pytest.raises(GradientError, match=r"no gradient reached model\.layers\.1\.mlp\.gate_proj.*target_modules"):
        estimate_gradients(model, [batch])


def test_a_layer_with_a_zero_gradient_is_named() -> None:
    model, batch = build_model("llama").eval(), build_batch("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.zero_()
    with pytest.raises(
        GradientError, match=r"model\.layers\.0\.mlp\.gate_proj, model\.layers\.0\.mlp\.up_proj is zero on all"
    ):
        estimate_gradients(model, [batch])


def test_a_gradient_that_is_not_finite_names_layer_and_batch() -> None:
    model, batch = build_model("llama").eval(), build_batch("llama")

    def poisoned(model: nn.Module, batch: object) -> torch.Tensor:
        loss = model(**batch).loss  # type: ignore[arg-type]
        calls.append(1)
        return loss + (model.model.layers[1].mlp.up_proj.weight[0, 0] * 0).sqrt() if len(calls) == 2 else loss

    calls: list[int] = []
    with pytest.raises(GradientError, match=r"model\.layers\.1\.mlp\.up_proj is not finite in micro-batch 2"):
        estimate_gradients(model, [batch, batch], loss_function=poisoned)


def test_a_loss_that_is_not_finite_names_the_batch() -> None:
    model, batch = build_model("llama").eval(), build_batch("llama")
    with pytest.raises(GradientError, match="loss of micro-batch 1 is nan"):
        estimate_gradients(model, [batch], loss_function=lambda m, b: m(**b).loss * float("nan"))


def test_batches_without_anything_to_learn_are_errors() -> None:
    model, batch = build_model("llama").eval(), build_batch("llama")
    with pytest.raises(GradientError, match="no batch"):
        estimate_gradients(model, [])
    with pytest.raises(GradientError, match="micro-batch 1 has no label"):
        estimate_gradients(model, [batch | {"labels": torch.full_like(batch["labels"], -100)}])
    with pytest.raises(GradientError, match="no tensor named labels"):
        estimate_gradients(model, [{"input_ids": batch["input_ids"]}])


def test_float16_gradients_do_not_vanish() -> None:
    """Gradients of 1e-9 round to zero in float16; they are taken of a larger loss, and divided again."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16)).to(torch.float16)
    x = torch.randn(4, 16).half()

    def tiny(model: nn.Module, batch: object) -> torch.Tensor:
        return (model(x).float() * 2e-8).sum()

    batch = {"labels": torch.zeros(4)}
    artifact = estimate_gradients(model, [batch], loss_function=tiny)
    expected = 2e-8 * x.float().sum(0).norm() * 16**0.5
    assert artifact.factors["0"].norm == pytest.approx(float(expected), rel=2e-2)


def test_targets_are_checked_before_anything_runs() -> None:
    with pytest.raises(TargetError, match="q_prj"):
        estimate_gradients(build_model("llama"), iter(()), target_modules=["q_prj"])
