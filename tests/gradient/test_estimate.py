"""The exact estimator against plain autograd; and for all estimators, their errors, and that they leave no trace."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as torch_checkpoint
from transformers import PreTrainedModel

from lora_ga_cli.errors import GradientError, TargetError
from lora_ga_cli.gradient.estimate import estimate_gradients
from lora_ga_cli.gradient.estimator import Estimator
from lora_ga_cli.gradient.estimators.exact import ExactEstimator
from lora_ga_cli.gradient.estimators.sketch import SketchEstimator
from lora_ga_cli.gradient.factors import Factors
from lora_ga_cli.model.checkpointing import checkpoint_blocks, checkpointed_layers
from tests.conftest import FAMILIES, build_batch, build_model
from tests.gradient import (
    ESTIMATORS,
    FULL_CAPACITY,
    HALF,
    Batch,
    assert_singular_values_close,
    autograd,
    multiplied,
    relative,
    split_batch,
)

both_estimators = pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
EstimatorType = Callable[[], Estimator]


class KeepsGradients(ExactEstimator):
    """Keeps the averaged gradients, (d_out, d_in), so that tests can compare them."""

    grads: dict[str, Tensor]

    def factors(self, total: float) -> Iterator[tuple[str, Factors]]:
        self.grads = dict(self.means(total))
        return iter(())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_estimate_is_the_gradient_of_the_training_loss(family: str) -> None:
    model, batch = build_model(family).eval(), build_batch(family)
    estimator = KeepsGradients()
    estimate_gradients(model, [batch], estimator=estimator)
    expected = autograd(model, batch)
    assert set(estimator.grads) == set(expected)
    assert max(relative(estimator.grads[name], expected[name]) for name in expected) < 1e-5


def test_means_are_handed_over_layer_by_layer() -> None:
    """A caller that keeps the means does not also hold the sums in memory."""

    class Counting(ExactEstimator):
        left: tuple[int, ...] = ()

        def factors(self, total: float) -> Iterator[tuple[str, Factors]]:
            self.left = tuple(len(self._sums) for _ in self.means(total))
            return iter(())

    estimator = Counting()
    estimate_gradients(build_model("llama"), [build_batch("llama")], estimator=estimator)
    assert estimator.left == tuple(range(13, -1, -1))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_does_not_depend_on_how_rows_are_split(family: str) -> None:
    """Rows carry different numbers of labels, so a mean of micro-batch means would differ."""
    model, batch = build_model(family).eval(), build_batch(family, rows=6)
    if family != "bert":
        batch["labels"][0, :-2] = -100
    full, parts = KeepsGradients(), KeepsGradients()
    one = estimate_gradients(model, [batch], estimator=full)
    other = estimate_gradients(model, split_batch(batch, 1), estimator=parts)
    assert max(relative(parts.grads[name], grad) for name, grad in full.grads.items()) < 1e-5
    assert one.info["loss"] == pytest.approx(other.info["loss"], rel=1e-6)
    assert one.info["items"] == other.info["items"]


def test_bfloat16_gradients_add_up_in_float32() -> None:
    """256 micro-batches of a bfloat16 model: within 1e-5 of their float64 sum; a bfloat16 sum errs by a percent."""
    model = build_model("llama").to(torch.bfloat16).eval()
    batches = split_batch(build_batch("llama", rows=256, tokens=10), 1)
    estimator = KeepsGradients()
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


def checkpoint(model: PreTrainedModel, *, reentrant: bool) -> None:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})


def checkpoint_without_input_gradients(model: PreTrainedModel) -> None:
    """Checkpoints as those versions of transformers do that do not make embeddings need a gradient."""
    checkpoint(model, reentrant=True)
    if hasattr(model, "_require_grads_hook"):
        model.disable_input_require_grads()
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_checkpoints_of_every_second_block_change_nothing(family: str, reentrant: bool) -> None:
    model, batch = build_model(family).eval(), build_batch(family)
    plain, checkpointed = KeepsGradients(), KeepsGradients()
    estimate_gradients(model, [batch], estimator=plain)
    checkpoint_blocks(model, every=2)
    for layer in checkpointed_layers(model):
        layer._gradient_checkpointing_func = functools.partial(torch_checkpoint, use_reentrant=reentrant)
    estimate_gradients(model, [batch], estimator=checkpointed)
    assert checkpointed.grads.keys() == plain.grads.keys()
    assert max(relative(checkpointed.grads[name], grad) for name, grad in plain.grads.items()) < 1e-5


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_gradient_checkpointing_changes_nothing(family: str, reentrant: bool) -> None:
    """Every token counts once, though each passes its layer twice forward.

    Dropout stays off although transformers only checkpoints in training mode.
    """
    model, batch = build_model(family).eval(), build_batch(family)
    plain, checkpointed = KeepsGradients(), KeepsGradients()
    estimate_gradients(model, [batch], estimator=plain)
    sketched = estimate_gradients(model, [batch], capacity=FULL_CAPACITY, estimator=SketchEstimator())
    forwards = []
    checkpoint(model, reentrant=reentrant)
    layer = next(module for name, module in model.named_modules() if name.endswith(("mlp", "DenseReluDense")))
    hook = layer.register_forward_pre_hook(lambda *_: forwards.append(1))
    estimate_gradients(model, [batch], estimator=checkpointed)
    assert len(forwards) == 2  # once forward, and once more for the backward pass: it was really checkpointed
    again = estimate_gradients(model, [batch], capacity=FULL_CAPACITY, estimator=SketchEstimator())
    assert len(forwards) == 4
    hook.remove()
    assert max(relative(checkpointed.grads[name], grad) for name, grad in plain.grads.items()) < 1e-5
    for name, factors in sketched.factors.items():
        assert_singular_values_close(again.factors[name], factors)
        assert relative(multiplied(again.factors[name]), multiplied(factors)) < HALF, name
        assert again.factors[name].norm == pytest.approx(factors.norm, rel=1e-5)


@both_estimators
@pytest.mark.parametrize(
    "family",
    [
        "llama",
        "gpt2",
        "t5",
    ],
)
def test_reentrant_checkpoints_are_reached(family: str, estimator: EstimatorType) -> None:
    """They pass a gradient on only to inputs that need one, and with a frozen base model no input needs one."""
    model, batch = build_model(family).eval(), build_batch(family)
    plain = estimate_gradients(model, [batch], capacity=FULL_CAPACITY, estimator=estimator())
    checkpoint_without_input_gradients(model)
    found = estimate_gradients(model, [batch], capacity=FULL_CAPACITY, estimator=estimator())
    for name, factors in plain.factors.items():
        assert relative(multiplied(found.factors[name]), multiplied(factors)) < HALF, name


def test_dropout_is_off_unless_asked_for() -> None:
    model, batch = build_model("gpt2").train(), build_batch("gpt2")
    losses = [estimate_gradients(model, [batch], dropout=asked).info["loss"] for asked in (False, False, True)]
    assert losses[0] == losses[1] != losses[2]
    assert model.training


def broken(_: nn.Module, __: Any) -> Tensor:
    raise RuntimeError("broken")


def broken_after_backpropagation(model: nn.Module, batch: Any) -> Tensor:
    return model(**batch).loss * float("inf")


@pytest.mark.parametrize("checkpoints", [False, True], ids=["plain", "checkpointed"])
@pytest.mark.parametrize(
    ("loss_function", "error"),
    [(None, None), (broken, "broken"), (broken_after_backpropagation, "loss of micro-batch 1 is inf")],
    ids=["after success", "after failure", "after failing late"],
)
@both_estimators
def test_the_model_comes_back_as_it_was(
    estimator: EstimatorType, loss_function: Any, error: str | None, checkpoints: bool
) -> None:
    model, batch = build_model("llama"), build_batch("llama")
    model.train()
    model.model.layers[0].eval()
    weight = model.model.layers[0].mlp.up_proj.weight
    weight.requires_grad_(False)
    embedding = model.model.embed_tokens.weight
    kept = embedding.grad = torch.ones_like(embedding)
    if checkpoints:
        checkpoint_without_input_gradients(model)
    before = {name: (item.requires_grad, item.clone()) for name, item in model.named_parameters()}
    modes = [module.training for module in model.modules()]

    if error is not None:
        with pytest.raises((RuntimeError, GradientError), match=error):
            estimate_gradients(model, [batch], loss_function=loss_function, estimator=estimator())
    else:
        estimate_gradients(model, [batch], estimator=estimator())
    assert [module.training for module in model.modules()] == modes
    for module in model.modules():
        assert not module._forward_hooks, module
        assert not module._forward_pre_hooks, module
    for name, item in model.named_parameters():
        assert (item.requires_grad, torch.equal(item, before[name][1])) == (before[name][0], True), name
        assert not item._post_accumulate_grad_hooks
        assert not item._backward_hooks
        assert item.grad is (kept if item is embedding else None), name
    assert torch.equal(kept, torch.ones_like(embedding))
    assert model.config.use_cache


@both_estimators
def test_progress_is_told_over_all_passes(estimator: EstimatorType) -> None:
    model, batches = build_model("llama").eval(), split_batch(build_batch("llama"), 2)
    chosen, reported = estimator(), []
    chosen.passes = 3 if chosen.name == "sketch" else 1
    artifact = estimate_gradients(
        model, batches, estimator=chosen, on_batch=lambda done, loss: reported.append((done, loss))
    )
    assert [done for done, _ in reported] == list(range(1, 2 * chosen.passes + 1))
    assert reported[-1][1] == pytest.approx(artifact.info["loss"], rel=1e-6)
    counted = {name: artifact.info[name] for name in ("estimator", "passes", "micro_batches", "items")}
    labels = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
    assert counted == {"estimator": chosen.name, "passes": chosen.passes, "micro_batches": 2, "items": labels}


def test_offloaded_sums_are_the_same() -> None:
    model, batch = build_model("llama").eval(), build_batch("llama")
    one, other = KeepsGradients(), KeepsGradients(offload=True)
    estimate_gradients(model, [batch], estimator=one)
    estimate_gradients(model, [batch], estimator=other)
    assert all(torch.equal(one.grads[name], other.grads[name]) for name in one.grads)


@both_estimators
def test_a_layer_that_the_loss_does_not_reach_is_named(estimator: EstimatorType) -> None:
    model, batch = build_model("llama").eval(), build_batch("llama")
    model.model.layers[1].mlp.forward = lambda x: torch.zeros_like(x)  # type: ignore[method-assign]
    with torch.no_grad():  # whose gradients are zero, which is reported after this
        model.model.layers[0].mlp.down_proj.weight.zero_()
    with pytest.raises(GradientError, match=r"no gradient reached model\.layers\.1\.mlp\.gate_proj.*target_modules"):
        estimate_gradients(model, [batch], estimator=estimator())


class Experts(nn.Module):
    """Blocks with a list of experts, each token of which goes to the experts of some numbers."""

    def __init__(self, used: Sequence[int]):
        super().__init__()
        self.used = used
        self.layers = nn.ModuleList(nn.ModuleList(nn.Linear(6, 6, bias=False) for _ in range(3)) for _ in range(2))

    def forward(self, inputs: Tensor, labels: Tensor) -> Any:
        for experts in self.layers:
            inputs = inputs + sum(experts[number](inputs) for number in self.used)  # type: ignore[index]
        return SimpleNamespace(loss=(inputs - labels).square().mean())


@both_estimators
def test_an_expert_that_no_token_is_routed_to_is_listed(estimator: EstimatorType) -> None:
    torch.manual_seed(0)
    batch = {"inputs": torch.randn(4, 6), "labels": torch.randn(4, 6)}
    some, all_used = Experts([0, 2]), Experts([0, 1, 2])
    artifact = estimate_gradients(some, [batch], estimator=estimator())
    assert artifact.unreached == {"layers.0.1", "layers.1.1"}
    assert set(artifact.factors) == {"layers.0.0", "layers.0.2", "layers.1.0", "layers.1.2"}
    expected = torch.autograd.grad(some(**batch).loss, some.layers[1][2].weight)[0]
    torch.testing.assert_close(multiplied(artifact.factors["layers.1.2"]), expected.double(), rtol=0.01, atol=1e-4)
    assert not estimate_gradients(all_used, [batch], estimator=estimator()).unreached
    artifact.check_serves({"layers.0.1"}, 3)
    with pytest.raises(GradientError, match=r"no gradient for layers\.2\.0"):
        artifact.check_serves({"layers.2.0"}, 3)


@both_estimators
def test_a_layer_with_a_zero_gradient_is_named(estimator: EstimatorType) -> None:
    model, batch = build_model("llama").eval(), build_batch("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.zero_()
    with pytest.raises(
        GradientError, match=r"of model\.layers\.0\.mlp\.gate_proj, model\.layers\.0\.mlp\.up_proj is zero on all"
    ):
        estimate_gradients(model, [batch], estimator=estimator())


class Exploding(torch.autograd.Function):
    """The identity, whose gradient is infinite."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * float("inf")


def exploding(layer: str, call: int) -> Callable[[nn.Module, Batch], Tensor]:
    """A loss function with which a layer's gradient, and none above it, is infinite at one call."""
    calls = 0

    def loss_function(model: nn.Module, batch: Batch) -> Tensor:
        nonlocal calls
        calls += 1
        if calls != call:
            return model(**batch).loss
        hook = model.get_submodule(layer).register_forward_hook(lambda _, __, output: Exploding.apply(output))
        loss = model(**batch).loss
        hook.remove()
        return loss

    return loss_function


@pytest.mark.parametrize(
    ("estimator", "call"),
    [(ExactEstimator, 2), (SketchEstimator, 2), (lambda: SketchEstimator(passes=2), 5)],
    ids=["exact", "sketch", "sketch, second pass"],
)
def test_a_gradient_that_is_not_finite_names_layer_and_batch(estimator: EstimatorType, call: int) -> None:
    """The loss itself is finite, and the other layers' gradients are."""
    model, batches = build_model("llama").eval(), split_batch(build_batch("llama", rows=3), 1)
    layer = "model.layers.0.self_attn.v_proj"
    with pytest.raises(GradientError, match=rf"^the gradient of {layer} is not finite in micro-batch 2$"):
        estimate_gradients(model, batches, loss_function=exploding(layer, call), estimator=estimator())


@both_estimators
def test_a_loss_that_is_not_finite_names_the_batch(estimator: EstimatorType) -> None:
    model, batch = build_model("llama").eval(), build_batch("llama")
    with pytest.raises(GradientError, match="loss of micro-batch 1 is nan"):
        estimate_gradients(model, [batch], loss_function=lambda m, b: m(**b).loss * float("nan"), estimator=estimator())


@both_estimators
def test_batches_without_anything_to_learn_are_errors(estimator: EstimatorType) -> None:
    model, batch = build_model("llama").eval(), build_batch("llama")
    with pytest.raises(GradientError, match="no batch"):
        estimate_gradients(model, [], estimator=estimator())
    masked = batch | {"labels": torch.full_like(batch["labels"], -100)}
    with pytest.raises(GradientError, match="micro-batch 1 has no label"):
        estimate_gradients(model, [masked], estimator=estimator())
    with pytest.raises(GradientError, match="no tensor named labels"):
        estimate_gradients(model, [{"input_ids": batch["input_ids"]}], estimator=estimator())


@both_estimators
def test_float16_gradients_do_not_vanish(estimator: EstimatorType) -> None:
    """Gradients of 1e-9 round to zero in float16, so the loss is scaled up and the gradients are divided again."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16)).to(torch.float16)
    x = torch.randn(4, 16).half()

    def tiny(model: nn.Module, batch: object) -> Tensor:
        return (model(x).float() * 2e-8).sum()

    batch = {"labels": torch.zeros(4)}
    artifact = estimate_gradients(model, [batch], loss_function=tiny, estimator=estimator())
    expected = 2e-8 * x.float().sum(0).norm() * 16**0.5
    assert artifact.factors["0"].norm == pytest.approx(float(expected), rel=2e-2)
    assert float(artifact.factors["0"].singular[0]) == pytest.approx(float(expected), rel=2e-2)


def test_targets_are_checked_before_anything_runs() -> None:
    with pytest.raises(TargetError, match="q_prj"):
        estimate_gradients(build_model("llama"), iter(()), target_modules=["q_prj"])
