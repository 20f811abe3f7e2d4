"""What the tests of gradients compare with: plain autograd, and the matrix that factors stand for."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lora_ga_cli.gradient.estimator import Estimator
from lora_ga_cli.gradient.exact import ExactEstimator
from lora_ga_cli.gradient.factors import Factors
from lora_ga_cli.gradient.sketch import SketchEstimator
from lora_ga_cli.model.targets import find_targets

Batch = dict[str, Tensor]
ESTIMATORS: dict[str, Callable[[], Estimator]] = {"exact": ExactEstimator, "sketch": SketchEstimator}
WHOLE = 64
"""A capacity that the smaller side of no layer of the small models exceeds: their sketches leave nothing out."""
HALF = 2.0**-10
"""A step of float16, in which the sketch gives its factors, relative to the number."""


def autograd(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Gradients (d_out, d_in) of one batch's loss, by plain autograd."""
    targets = find_targets(model)
    weights = [target.weight for target in targets.values()]
    grads = torch.autograd.grad(model(**batch).loss, weights)
    return {name: target.oriented(grad) for (name, target), grad in zip(targets.items(), grads, strict=True)}


def autograd_in_float64(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The same, of a copy of the model in float64."""
    return autograd(copy.deepcopy(model).requires_grad_(True).double(), batch)


def relative(found: Tensor, expected: Tensor) -> float:
    """The distance of one from the other, over the length of the other."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


def cosine(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found * expected).sum() / found.norm() / expected.norm())


def multiplied(factors: Factors) -> Tensor:
    """``U S Vᵀ`` in float64."""
    return (factors.left.double() * factors.singular.double()) @ factors.right.double().T


def cut(batch: Batch, size: int) -> list[Batch]:
    rows = len(batch["labels"])
    return [{name: value[i : i + size] for name, value in batch.items()} for i in range(0, rows, size)]
