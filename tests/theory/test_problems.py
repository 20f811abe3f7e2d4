"""The problems' constants against closed forms, finite differences and scikit-learn, in float64."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from lora_ga_cli.theory.problems import (
    PROBLEMS,
    Weights,
    classification_rows,
    derivatives,
    logistic,
    minimum,
    problem_named,
    quadratic,
)


def near(weights: Weights, size: float, seed: int = 3) -> Weights:
    """Random weights around others, with one dimension in front for two chains."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, *weight.shape) for weight in weights]
    noise = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return tuple(weight + size * part for weight, part in zip(weights, noise, strict=True))


@pytest.mark.parametrize("name", sorted(PROBLEMS))
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    problem = problem_named(name)
    weights, step = near(problem.start, 0.3), 1e-6
    directions = near(tuple(torch.zeros_like(weight) for weight in problem.start), 1, seed=4)
    gradient = problem.gradient(weights)
    slope = sum(((part * way).sum((-2, -1)) for part, way in zip(gradient, directions, strict=True)), start=0)

    def moved(length: float) -> Tensor:
        return problem.loss(tuple(weight + length * way for weight, way in zip(weights, directions, strict=True)))

    torch.testing.assert_close((moved(step) - moved(-step)) / (2 * step), slope, rtol=1e-7, atol=1e-8)


def test_the_quadratics_gradient_and_curvature_are_the_closed_forms() -> None:
    problem = quadratic((3, 4), condition=7)
    weights = near(problem.start, 1)
    torch.testing.assert_close(problem.gradient(weights)[0], (weights[0] - problem.solution) @ problem.curvature)
    _, hessian = derivatives(problem.loss, weights)
    torch.testing.assert_close(hessian[0], torch.kron(torch.eye(3, dtype=torch.float64), problem.curvature))
    eigenvalues = torch.linalg.eigvalsh(problem.curvature)
    assert [problem.convexity, problem.smoothness] == pytest.approx([float(eigenvalues[0]), float(eigenvalues[-1])])
    assert float(problem.error((problem.solution,))) == 0


def test_curvatures_of_logistic_regression_lie_between_its_constants() -> None:
    problem = problem_named("logistic")
    for size in (0, 1, 10):
        eigenvalues = torch.linalg.eigvalsh(derivatives(problem.loss, near(problem.start, size))[1])
        assert eigenvalues.min() >= problem.convexity - 1e-12
        assert eigenvalues.max() <= problem.smoothness


def test_the_least_loss_of_logistic_regression_is_scikit_learns() -> None:
    rows, penalty = classification_rows(80, 3, 4, seed=2), 0.05
    problem = logistic(rows, 3, penalty=penalty)
    model = LogisticRegression(C=1 / (80 * penalty), fit_intercept=False, tol=1e-12, max_iter=10_000)
    model.fit(rows.inputs.numpy(), rows.labels.numpy())
    assert float(problem.loss((torch.tensor(model.coef_),))) == pytest.approx(problem.least, abs=1e-12)
    assert problem.least > 0


def test_newtons_method_finds_the_minimizers_of_several_chains() -> None:
    problem = quadratic((3, 4), condition=7)
    found = minimum(problem.loss, near(problem.start, 5)[0])
    torch.testing.assert_close(found, problem.solution.expand(2, 3, 4))


def test_the_networks_smoothness_holds_where_gradient_descent_goes_and_its_loss_is_never_negative() -> None:
    problem = problem_named("network")
    weights: Weights = tuple(weight[None] for weight in problem.start)
    for step in range(31):
        if step % 10 == 0:
            assert torch.linalg.eigvalsh(derivatives(problem.loss, weights)[1]).max() < problem.smoothness
        assert problem.error(weights) > 0
        gradient = problem.gradient(weights)
        weights = tuple(weight - part / problem.smoothness for weight, part in zip(weights, gradient, strict=True))
