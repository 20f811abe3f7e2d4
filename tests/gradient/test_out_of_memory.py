"""When memory runs out, the batches are halved and the same gradient comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lora_ga_cli.gradient.estimate import estimate_gradients
from lora_ga_cli.gradient.estimator import Estimator
from lora_ga_cli.gradient.estimators import sketch
from lora_ga_cli.gradient.sketch_batch import LayerCall
from tests.conftest import FAMILIES, build_batch, build_model
from tests.gradient import (
    ESTIMATORS,
    FULL_CAPACITY,
    HALF,
    Batch,
    assert_singular_values_close,
    multiplied,
    relative,
    split_batch,
)

both_estimators = pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
EstimatorType = Callable[[], Estimator]
LossFunction = Callable[[nn.Module, Batch], Tensor]
FULL = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB"


class Full(torch.autograd.Function):
    """The identity, for whose gradient there is no memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        raise torch.OutOfMemoryError(FULL)


@contextmanager
def full_in_backpropagation(layer: nn.Module) -> Iterator[None]:
    hook = layer.register_forward_hook(lambda _, __, output: Full.apply(output))
    try:
        yield
    finally:
        hook.remove()


def forward(max_rows: int) -> LossFunction:
    """A loss function that has memory for so many rows, and notices it at once."""

    def loss_function(model: nn.Module, batch: Batch) -> Tensor:
        if len(batch["labels"]) > max_rows:
            raise torch.OutOfMemoryError(FULL)
        return model(**batch).loss

    return loss_function


def backward(max_rows: int) -> LossFunction:
    """A loss function that has memory for so many rows, and notices it when half of the layers are done."""

    def loss_function(model: nn.Module, batch: Batch) -> Tensor:
        if len(batch["labels"]) <= max_rows:
            return model(**batch).loss
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        with full_in_backpropagation(linear[len(linear) // 2]):
            return model(**batch).loss

    return loss_function


@pytest.mark.parametrize("limited", [forward, backward])
@both_estimators
def test_the_gradient_is_that_of_full_batches(estimator: EstimatorType, limited: Callable[[int], LossFunction]) -> None:
    """Batches of 6 and 4 rows, and memory for 2: 6 are split into 3 and 3, and those into 1 and 2."""
    model, batches = build_model("llama").eval(), [build_batch("llama", rows=6), build_batch("llama", rows=4, seed=5)]
    expected = estimate_gradients(model, batches, capacity=FULL_CAPACITY, estimator=estimator())
    reported: list[int] = []
    found = estimate_gradients(
        model,
        batches,
        capacity=FULL_CAPACITY,
        estimator=estimator(),
        loss_function=limited(2),
        on_retry=reported.append,
    )
    assert reported == [3, 2]
    for name, factors in expected.factors.items():
        ours = found.factors[name]
        assert_singular_values_close(ours, factors)
        assert relative(multiplied(ours), multiplied(factors)) < (1e-5 if found.info["estimator"] == "exact" else HALF)
        assert ours.norm == pytest.approx(factors.norm, rel=1e-5)
    assert found.info["items"] == expected.info["items"]
    assert found.info["loss"] == pytest.approx(expected.info["loss"], rel=1e-6)
    assert found.info["micro_batches"] == 8


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_of_every_family_can_be_halved(family: str) -> None:
    model, batch = build_model(family).eval(), build_batch(family)
    expected = estimate_gradients(model, [batch], capacity=FULL_CAPACITY)
    found = estimate_gradients(model, [batch], capacity=FULL_CAPACITY, loss_function=forward(2))
    assert found.info["micro_batches"] == 2
    for name, factors in expected.factors.items():
        assert relative(multiplied(found.factors[name]), multiplied(factors)) < HALF, name


def test_entries_that_are_not_rows_are_not_split() -> None:
    """A batch may hold numbers, texts and tables for all of its rows."""
    model, batch = build_model("llama").eval(), build_batch("llama")
    seen: list[Any] = []

    def loss_function(model: nn.Module, batch: Batch) -> Tensor:
        seen.append({name: batch.pop(name) for name in ("weights", "scale", "name")})
        return forward(2)(model, batch)

    others = {"weights": torch.ones(7), "scale": 0.5, "name": "rows"}
    estimate_gradients(model, [batch | others], capacity=8, loss_function=loss_function)
    assert len(seen) == 3
    for found in seen:
        assert torch.equal(found.pop("weights"), torch.ones(7))
        assert found == {"scale": 0.5, "name": "rows"}


def test_memory_that_runs_out_in_a_later_pass_begins_again_with_the_first() -> None:
    model, batch = build_model("llama").eval(), build_batch("llama")
    estimator = ESTIMATORS["sketch"]
    reported, calls = [], []

    def loss_function(model: nn.Module, batch: Batch) -> Tensor:
        calls.append(len(batch["labels"]))
        return (forward(4) if len(calls) == 1 else forward(2))(model, batch)

    first, again = estimator(), estimator()
    first.passes = again.passes = 2
    found = estimate_gradients(
        model, [batch], capacity=FULL_CAPACITY, estimator=first, loss_function=loss_function, on_retry=reported.append
    )
    assert reported == [2]
    assert calls == [4, 4, 2, 2, 2, 2]
    expected = estimate_gradients(model, split_batch(batch, 2), capacity=FULL_CAPACITY, estimator=again)
    for name, factors in expected.factors.items():
        assert torch.equal(found.factors[name].singular, factors.singular)
        assert found.factors[name].norm == factors.norm


@pytest.mark.parametrize("limited", [forward, backward])
@both_estimators
def test_a_row_that_does_not_fit_alone_is_an_error(
    estimator: EstimatorType, limited: Callable[[int], LossFunction]
) -> None:
    """The error itself, by which commands know what to say, and with the model as it was."""
    model, batch = build_model("llama"), build_batch("llama")
    model.train()
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    kept = model.model.embed_tokens.weight.grad = torch.ones_like(model.model.embed_tokens.weight)
    flags = [item.requires_grad for item in model.parameters()]
    reported: list[int] = []
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        estimate_gradients(model, [batch], estimator=estimator(), loss_function=limited(0), on_retry=reported.append)
    assert reported == [2, 1]
    assert [item.requires_grad for item in model.parameters()] == flags
    assert [item.grad for item in model.parameters()] == [kept] + [None] * (len(flags) - 1)
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert not any(item._post_accumulate_grad_hooks for item in model.parameters())


def test_other_failures_are_not_tried_again() -> None:
    reported: list[int] = []

    def broken(_: nn.Module, __: Batch) -> Tensor:
        raise RuntimeError("out of patience")

    with pytest.raises(RuntimeError, match="patience"):
        estimate_gradients(build_model("llama"), [build_batch("llama")], loss_function=broken, on_retry=reported.append)
    assert reported == []


def test_memory_that_runs_out_in_condensing_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue is condensed at the end of a micro-batch, and its stacked copies take memory too."""
    original, reported = sketch.condense, []

    def condense(calls: list[LayerCall], weight: float) -> None:
        if any(len(call.x) > 24 for call in calls):  # two rows of 12 tokens
            raise torch.OutOfMemoryError(FULL)
        original(calls, weight)

    monkeypatch.setattr(sketch, "condense", condense)
    found = estimate_gradients(build_model("llama").eval(), [build_batch("llama")], on_retry=reported.append)
    assert reported == [2]
    assert found.info["micro_batches"] == 2


def test_a_half_may_be_without_labels() -> None:
    """As long as the full batch has some: a row without labels does not count, alone or with others."""
    model, batch = build_model("llama").eval(), build_batch("llama")
    batch["labels"][:2] = -100
    expected = estimate_gradients(model, [batch], capacity=FULL_CAPACITY)
    found = estimate_gradients(model, [batch], capacity=FULL_CAPACITY, loss_function=forward(2))
    for name, factors in expected.factors.items():
        assert relative(multiplied(found.factors[name]), multiplied(factors)) < HALF, name


def test_a_scalar_tensor_is_not_split() -> None:
    def loss_function(model: nn.Module, batch: Batch) -> Tensor:
        assert float(batch.pop("scale")) == 0.5
        return forward(2)(model, batch)

    batch = build_batch("llama") | {"scale": torch.tensor(0.5)}
    estimate_gradients(build_model("llama").eval(), [batch], capacity=8, loss_function=loss_function)
