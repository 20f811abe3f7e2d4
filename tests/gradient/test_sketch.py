"""The sketch: it is exact if its capacity suffices; if not, it keeps what the first step needs."""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.gradient.estimate import estimate_gradients
from lora_ga_cli.gradient.estimators.exact import ExactEstimator
from lora_ga_cli.gradient.estimators.sketch import SketchEstimator
from tests.conftest import FAMILIES, build_batch, build_model
from tests.gradient import (
    FULL_CAPACITY,
    HALF,
    ROUNDING,
    Batch,
    assert_singular_values_close,
    autograd_in_float64,
    cosine,
    multiplied,
    relative,
    split_batch,
)
from tests.gradient.conftest import Quickstart


def assert_same(found: GradientArtifact, expected: GradientArtifact, rounding: float = ROUNDING) -> None:
    """The same gradients: singular values as near as float32 gives them, directions as near as float16."""
    assert list(found.factors) == list(expected.factors)
    for name, factors in expected.factors.items():
        ours = found.factors[name]
        assert_singular_values_close(ours, factors, rounding)
        assert relative(multiplied(ours), multiplied(factors)) < HALF, name
        assert ours.norm == pytest.approx(factors.norm, rel=ROUNDING)


@pytest.mark.parametrize("passes", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_with_full_capacity_the_sketch_is_exact(family: str, passes: int) -> None:
    """Tall, wide and square layers, and GPT-2's, which store their weights transposed."""
    model, batches = build_model(family).eval(), split_batch(build_batch(family, rows=6), 2)
    sketched = estimate_gradients(model, batches, capacity=FULL_CAPACITY, estimator=SketchEstimator(passes))
    exact = estimate_gradients(model, batches, capacity=FULL_CAPACITY, estimator=ExactEstimator())
    assert_same(sketched, exact)
    for name, grad in autograd_in_float64(model, build_batch(family, rows=6)).items():
        factors = sketched.factors[name]
        assert factors.left.dtype == factors.right.dtype == torch.float16
        assert factors.shape == grad.shape
        assert relative(multiplied(factors), grad) < 1e-3, name


@pytest.mark.parametrize("family", FAMILIES)
def test_with_full_capacity_the_sketch_does_not_depend_on_how_rows_are_split(family: str) -> None:
    """Rows carry different numbers of labels, so a mean of micro-batch means would differ.

    Within a micro-batch, directions below some 3e-4 of the leading one are lost: the power iteration squares them away.
    """
    model, batch = build_model(family).eval(), build_batch(family, rows=6)
    if family != "bert":
        batch["labels"][0, :-2] = -100
    at_once, *others = [
        estimate_gradients(model, split_batch(batch, rows), capacity=FULL_CAPACITY) for rows in (6, 4, 1)
    ]
    for other in others:
        assert_same(other, at_once, rounding=1e-4)


def test_the_sketch_does_not_depend_on_when_the_queue_is_condensed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long inputs are condensed layer by layer while backpropagation goes on, short ones together at its end."""
    model, batches = build_model("llama").eval(), split_batch(build_batch("llama"), 2)
    together = estimate_gradients(model, batches, capacity=8)
    monkeypatch.setattr("lora_ga_cli.gradient.estimators.sketch.QUEUE_BYTES", 0)
    one_by_one = estimate_gradients(model, batches, capacity=8)
    assert_same(one_by_one, together)


def test_the_gradient_of_a_bfloat16_model_is_right_up_to_its_rounding() -> None:
    """Against the gradient of the same rounded weights in float64."""
    model, batches = build_model("llama").to(torch.bfloat16).eval(), split_batch(build_batch("llama", rows=6), 2)
    artifact = estimate_gradients(model, batches, capacity=FULL_CAPACITY)
    for name, grad in autograd_in_float64(model, build_batch("llama", rows=6)).items():
        assert cosine(multiplied(artifact.factors[name]), grad) > 0.99, name


@pytest.mark.parametrize("capacity", [32, 16])
def test_one_pass_aligns_with_real_gradients_and_more_align_better(quickstart: Quickstart, capacity: int) -> None:
    """Rank 8 needs 16 directions: a capacity of 16 leaves nothing to spare but what the sketch adds itself."""
    found = []
    for passes in (1, 2, 3):
        artifact = estimate_gradients(
            quickstart.model, quickstart.batches(4), capacity=capacity, estimator=SketchEstimator(passes)
        )
        found.append(quickstart.alignments(artifact))
    least, mean = (0.998, 0.9995) if capacity == 32 else (0.99, 0.998)
    assert min(found[0].values()) > least
    assert statistics.mean(found[0].values()) > mean
    for fewer, more in itertools.pairwise(found):
        assert all(more[name] > fewer[name] - 1e-3 for name in fewer)
    assert min(found[2].values()) > 0.999


def test_many_micro_batches_lose_little(quickstart: Quickstart) -> None:
    """16 merges, each of which truncates the sum."""
    artifact = estimate_gradients(quickstart.model, quickstart.batches(1), capacity=16)
    alignments = quickstart.alignments(artifact)
    assert min(alignments.values()) > 0.99
    assert statistics.mean(alignments.values()) > 0.997


def test_a_seed_gives_the_same_factors_to_the_bit(quickstart: Quickstart) -> None:
    """Whatever the state of torch's global generator. Another seed gives other factors, so the test can fail."""
    artifacts = []
    for seed in (0, 0, 1):
        torch.rand(seed + 1)
        estimator = SketchEstimator(seed=seed)
        artifacts.append(estimate_gradients(quickstart.model, quickstart.batches(4), estimator=estimator))
    one, again, other = (artifact.factors for artifact in artifacts)
    for name, factors in one.items():
        for part in ("left", "singular", "right", "missed"):
            assert torch.equal(getattr(again[name], part), getattr(factors, part)), name
        assert again[name].norm == factors.norm
    assert not all(torch.equal(other[name].left, factors.left) for name, factors in one.items())


def test_one_estimator_serves_one_model_after_another() -> None:
    """The estimator keeps nothing of the first model."""
    estimator = SketchEstimator(passes=2)
    batch = build_batch("llama")
    estimate_gradients(build_model("llama", seed=1).eval(), [batch], estimator=estimator)
    model = build_model("llama").eval()
    again = estimate_gradients(model, [batch], estimator=estimator)
    assert_same(again, estimate_gradients(model, [batch], estimator=SketchEstimator(passes=2)))


def test_an_artifact_keeps_every_bit(tmp_path: Path) -> None:
    artifact = estimate_gradients(build_model("llama").eval(), [build_batch("llama")], capacity=8)
    artifact.save(tmp_path / "artifact")
    loaded = GradientArtifact.load(tmp_path / "artifact")
    assert list(loaded.factors) == list(artifact.factors)
    for name, factors in artifact.factors.items():
        for part, kind in {"left": torch.float16, "right": torch.float16, "singular": None, "missed": None}.items():
            ours, theirs = getattr(factors, part), getattr(loaded.factors[name], part)
            assert theirs.dtype == ours.dtype == (kind or torch.float32)
            assert torch.equal(theirs, ours)
        assert loaded.factors[name].norm == factors.norm
    assert loaded.alignment(4) == artifact.alignment(4)
    assert min(loaded.alignment(4).values()) < 1  # the small model's gradients have more than 8 directions


def test_frozen_weights_stay_frozen_and_get_no_gradient() -> None:
    model, batches = build_model("llama").eval(), split_batch(build_batch("llama"), 2)
    expected = estimate_gradients(model, batches, capacity=FULL_CAPACITY)
    model.requires_grad_(False)
    asked, received = [], []

    def loss_function(model: nn.Module, batch: Batch) -> Tensor:
        asked.append(any(item.requires_grad for item in model.parameters()))
        received.append(any(item.grad is not None for item in model.parameters()))
        return model(**batch).loss

    found = estimate_gradients(model, batches, capacity=FULL_CAPACITY, loss_function=loss_function)
    assert_same(found, expected)
    assert not any([*asked, *received])
    assert all(item.grad is None and not item.requires_grad for item in model.parameters())


class Custom(nn.Module):
    """A layer that is called twice in a pass, and two of which one or both take part, by the batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.again = nn.Linear(8, 8)
        self.left = nn.Linear(8, 12)
        self.right = nn.Linear(8, 12)

    def forward(self, x: Tensor, labels: Tensor, to_left: int = 2, checkpoints: bool | None = None) -> Any:
        """``to_left`` tokens of each row go to the left layer, the others to the right one.

        Args:
            checkpoints: whether the doubled layer's activations are computed again reentrantly; None for not at all.
        """
        if checkpoints is None:
            x = self.twice(x)
        else:
            x = checkpoint(self.twice, x.clone().requires_grad_(True), use_reentrant=checkpoints)
        left, right = self.left(x[:, :to_left]), self.right(x[:, to_left:])
        y = torch.cat([left, right], dim=1).tanh()
        return SimpleNamespace(loss=((y.sum(-1) - labels) ** 2).mean())

    def twice(self, x: Tensor) -> Tensor:
        return self.again(torch.tanh(self.again(x)))


def custom_batch(seed: int = 0, **options: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(3, 5, 8, generator=generator), "labels": torch.ones(3, 5), **options}


def mean_of_gradients(model: nn.Module, batches: list[dict[str, Any]]) -> dict[str, Tensor]:
    """By plain autograd, without checkpoints; a layer that took no part counts with zero."""
    names = [name for name, _ in model.named_modules() if name]
    weights = [model.get_submodule(name).weight for name in names]
    sums = [torch.zeros_like(weight, dtype=torch.float64) for weight in weights]
    for batch in batches:
        grads = torch.autograd.grad(model(**batch | {"checkpoints": None}).loss, weights, allow_unused=True)
        for total, grad in zip(sums, grads, strict=True):
            if grad is not None:
                total += grad.double() / len(batches)
    return dict(zip(names, sums, strict=True))


CASES: dict[str, list[dict[str, Any]]] = {
    "a layer called twice": [custom_batch(0), custom_batch(1)],
    "no tokens at first": [custom_batch(0, to_left=0), custom_batch(1), custom_batch(2)],
    "no tokens later": [custom_batch(0), custom_batch(1, to_left=5), custom_batch(2, to_left=0)],
    "never both": [custom_batch(0, to_left=5), custom_batch(1, to_left=0)],
    "checkpointed reentrantly": [custom_batch(0, checkpoints=True), custom_batch(1, checkpoints=True)],
    "checkpointed": [custom_batch(0, checkpoints=False), custom_batch(1, checkpoints=False)],
}


@pytest.mark.parametrize("passes", [1, 2, 3])
@pytest.mark.parametrize("batches", CASES.values(), ids=CASES)
def test_every_token_counts_once_for_every_call(batches: list[dict[str, Any]], passes: int) -> None:
    model = Custom()
    artifact = estimate_gradients(model, batches, capacity=12, estimator=SketchEstimator(passes))
    expected = mean_of_gradients(model, batches)
    assert set(artifact.factors) == set(expected) == {"again", "left", "right"}
    for name, grad in expected.items():
        assert relative(multiplied(artifact.factors[name]), grad) < HALF, name


def test_a_layer_that_is_not_called_in_some_micro_batches() -> None:
    """The layer is not called at all, not even with no tokens."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(6, 6), "b": nn.Linear(6, 6)})
    batches = [{"x": torch.randn(4, 6), "labels": torch.ones(4), "names": names} for names in ("b", "ab", "a")]

    def loss_function(model: nn.ModuleDict, batch: dict[str, Any]) -> Tensor:
        return sum(model[name](batch["x"]).tanh().sum(1) for name in batch["names"]).square().mean()

    artifact = estimate_gradients(model, batches, capacity=6, loss_function=loss_function)
    for name in "ab":
        taking_part = [batch for batch in batches if name in batch["names"]]
        grads = [torch.autograd.grad(loss_function(model, batch), model[name].weight)[0] for batch in taking_part]
        assert relative(multiplied(artifact.factors[name]), sum(grads) / 3) < HALF


def test_an_activation_may_overwrite_the_output_of_a_layer() -> None:
    """Plain autograd allows this too, frozen or not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 8))
    x = torch.randn(10, 8)

    def loss_function(model: nn.Module, batch: Batch) -> Tensor:
        return model(x).square().mean()

    artifact = estimate_gradients(model, [{"labels": torch.ones(10)}], capacity=8, loss_function=loss_function)
    for name in ("0", "2"):
        (grad,) = torch.autograd.grad(loss_function(model, {}), model.get_submodule(name).weight)
        assert relative(multiplied(artifact.factors[name]), grad) < HALF, name


def test_a_gradient_of_low_rank_still_gives_every_direction_asked_for() -> None:
    """One row of a classifier has a gradient of rank 1 at its last layer; a start of rank 4 takes 8 directions."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30))
    x = torch.randn(1, 20)
    batch = {"labels": torch.ones(1)}
    artifact = estimate_gradients(model, [batch], capacity=8, loss_function=lambda model, _: model(x).tanh().sum())
    factors = artifact.factors["0"]
    for vectors in (factors.left.float(), factors.right.float()):
        torch.testing.assert_close(vectors.T @ vectors, torch.eye(8), rtol=0, atol=2e-3)
    grad = torch.autograd.grad(model(x).tanh().sum(), model[0].weight)[0]
    assert relative(multiplied(factors), grad) < HALF
    assert not factors.singular[1:].any()
