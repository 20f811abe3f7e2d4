"""Helpers of the gradient's tests: plain autograd, and measures of how close two gradients are."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lora_ga_cli.gradient.estimator import Estimator
from lora_ga_cli.gradient.estimators.exact import ExactEstimator
from lora_ga_cli.gradient.estimators.sketch import SketchEstimator
from lora_ga_cli.gradient.factors import Factors
from lora_ga_cli.model.targets import find_targets

Batch = dict[str, Tensor]
ESTIMATORS: dict[str, Callable[[], Estimator]] = {"exact": ExactEstimator, "sketch": SketchEstimator}
FULL_CAPACITY = 64
"""A capacity that is at least the smaller side of every layer of the small models: their sketches lose nothing."""
HALF = 2.0**-10
"""A step of float16, in which the sketch gives its factors, relative to the number."""
ROUNDING = 1e-5
"""The rounding errors of a gradient that is added up in float32, relative to its Frobenius norm."""


def autograd(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Gradients (d_out, d_in) of one batch's loss, by plain autograd."""
    targets = find_targets(model)
    weights = [target.weight for target in targets.values()]
    grads = torch.autograd.grad(model(**batch).loss, weights)
    return {name: target.oriented(grad) for (name, target), grad in zip(targets.items(), grads, strict=True)}


def autograd_in_float64(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Gradients (d_out, d_in) of one batch's loss, by plain autograd on a copy of the model in float64."""
    return autograd(copy.deepcopy(model).requires_grad_(True).double(), batch)


def relative(actual: Tensor, expected: Tensor) -> float:
    """``‖actual - expected‖ / ‖expected‖``."""
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).norm() / expected.norm())


def cosine(actual: Tensor, expected: Tensor) -> float:
    """The cosine of the angle between two matrices."""
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual * expected).sum() / actual.norm() / expected.norm())


def assert_singular_values_close(actual: Factors, expected: Factors, rounding: float = ROUNDING) -> None:
    """Checks that two estimates of one gradient have the same singular values up to rounding.

    By Weyl's inequality, an error E of a gradient G moves each singular value by at most ``‖E‖``, and rounding gives an
    E of size ``rounding · ‖G‖``. So small singular values cannot be compared relative to themselves or to the largest.
    """
    torch.testing.assert_close(actual.singular, expected.singular, rtol=0, atol=rounding * expected.norm)


def multiplied(factors: Factors) -> Tensor:
    """``U S Vᵀ`` in float64."""
    return (factors.left.double() * factors.singular.double()) @ factors.right.double().T


def split_batch(batch: Batch, size: int) -> list[Batch]:
    """Batches of at most ``size`` rows each."""
    rows = len(batch["labels"])
    return [{name: value[i : i + size] for name, value in batch.items()} for i in range(0, rows, size)]
