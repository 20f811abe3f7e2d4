"""Problems whose constants are known: a quadratic, logistic regression, and a network of two layers.

The variable is a tuple of matrices W_l of shape (d_out, d_in), one for each layer. All tensors are float64, and may
have one more dimension in front, for several chains that are computed together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Weights = tuple[Tensor, ...]
"""One matrix (d_out, d_in) for each layer, or (chains, d_out, d_in)."""
NEWTON_STEPS = 50
TOLERANCE = 1e-13
"""The norm of a gradient at which Newton's method ends."""
HALVINGS = 20
"""How often a step of Newton's method is halved at most."""
PATH_STEPS, CURVATURE_EVERY = 200, 20
"""Steps of gradient descent along which the smoothness of the network is measured, and the distance of two measures."""


@dataclass(frozen=True)
class Problem:
    """A function f of the weights, to be minimized.

    Args:
        start: W_0, where every chain begins.
        loss: f. Of weights with a dimension in front it gives as many values.
        smoothness: L, a Lipschitz constant of ∇f.
        convexity: μ, for which ‖∇f‖² ≥ 2μ(f - f*), the Polyak-Łojasiewicz inequality; 0 if no μ is known.
        least: f*, the minimum, or a lower bound of f.
    """

    start: Weights
    loss: Callable[[Weights], Tensor]
    smoothness: float
    convexity: float
    least: float

    def error(self, weights: Weights) -> Tensor:
        """f(W) - f*."""
        return self.loss(weights) - self.least

    def gradient(self, weights: Weights) -> Weights:
        """∇f(W), one matrix for each layer."""
        leaves = tuple(weight.detach().requires_grad_() for weight in weights)
        return torch.autograd.grad(self.loss(leaves).sum(), leaves)

    def copies(self, count: int) -> Weights:
        """The start of ``count`` chains that are computed together, (count, d_out, d_in) for each layer."""
        return tuple(weight.expand(count, *weight.shape).clone() for weight in self.start)


@dataclass(frozen=True)
class Quadratic(Problem):
    """f(W) = ½⟨W - W*, (W - W*) H⟩.

    Args:
        solution: W* (d_out, d_in).
        curvature: H (d_in, d_in), symmetric and positive definite.
    """

    solution: Tensor
    curvature: Tensor


def quadratic(shape: tuple[int, int], *, condition: float = 1.0, seed: int = 0) -> Quadratic:
    """A quadratic with L = 1 and μ = 1/condition, whose W* is Gaussian and whose start is zero.

    H has eigenvalues from μ to 1, evenly spaced on a logarithmic scale, and random eigenvectors. With ``condition=1``,
    H = I, and f is half the squared distance to W*.

    Args:
        shape: (d_out, d_in).
    """
    generator = torch.Generator().manual_seed(seed)
    solution = torch.randn(shape, generator=generator, dtype=torch.float64)
    eigenvalues = condition ** torch.linspace(-1, 0, shape[1], dtype=torch.float64)
    vectors = torch.linalg.qr(torch.randn(shape[1], shape[1], generator=generator, dtype=torch.float64)).Q
    curvature = (vectors * eigenvalues) @ vectors.T if condition != 1 else torch.eye(shape[1], dtype=torch.float64)

    def loss(weights: Weights) -> Tensor:
        difference = weights[0] - solution
        return (difference * (difference @ curvature)).sum((-2, -1)) / 2

    return Quadratic((torch.zeros_like(solution),), loss, 1.0, 1 / condition, 0.0, solution, curvature)


@dataclass(frozen=True)
class Rows:
    """Rows of a classification task.

    Args:
        inputs: (rows, d_in).
        labels: (rows,), the number of a class each.
    """

    inputs: Tensor
    labels: Tensor


def classification_rows(rows: int, classes: int, width: int, *, seed: int = 0) -> Rows:
    """Gaussian inputs, with labels drawn from a random logistic model."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    true = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    labels = torch.multinomial((inputs @ true.T).softmax(-1), 1, generator=generator)[:, 0]
    return Rows(inputs, labels)


@dataclass(frozen=True)
class Logistic(Problem):
    """Multinomial logistic regression.

    Args:
        penalty: the weight of ½‖W‖².
    """

    rows: Rows
    penalty: float


def logistic(rows: Rows, classes: int, *, penalty: float, least: float | None = None) -> Logistic:
    """Multinomial logistic regression, f(W) = mean_i[log Σ_c exp(w_c·x_i) - w_{y_i}·x_i] + ½·penalty·‖W‖².

    The start is zero. μ is the penalty, and L = ½·λ_max(XᵀX)/rows + penalty, since the Hessian of log Σ exp is at most
    ½·I (Böhning 1992).

    Args:
        penalty: the weight of ½‖W‖².
        least: f*, or a lower bound of f; by default it is computed by Newton's method.
    """
    count, width = rows.inputs.shape

    def loss(weights: Weights) -> Tensor:
        scores = weights[0] @ rows.inputs.T
        chosen = scores.gather(-2, rows.labels.expand(*scores.shape[:-2], 1, count))[..., 0, :]
        return (scores.logsumexp(-2) - chosen).mean(-1) + penalty / 2 * (weights[0] ** 2).sum((-2, -1))

    start = torch.zeros(classes, width, dtype=torch.float64)
    smoothness = float(torch.linalg.eigvalsh(rows.inputs.T @ rows.inputs)[-1]) / (2 * count) + penalty
    if least is None:
        least = float(loss((minimum(loss, start[None]),))[0])
    return Logistic((start,), loss, smoothness, penalty, least, rows, penalty)


def split(problem: Logistic, sizes: Sequence[int]) -> tuple[list[Logistic], list[float]]:
    """The problem of every client, if they share its rows, and their shares p_k of the rows: f = Σ_k p_k·f_k.

    The minimum of a client's own problem is not computed; its ``least`` is 0.

    Args:
        sizes: how many rows each client has, together all.
    """
    inputs, labels = problem.rows.inputs.split(list(sizes)), problem.rows.labels.split(list(sizes))
    classes = len(problem.start[0])
    parts = [Rows(*part) for part in zip(inputs, labels, strict=True)]
    clients = [logistic(part, classes, penalty=problem.penalty, least=0.0) for part in parts]
    return clients, [size / sum(sizes) for size in sizes]


def network(widths: tuple[int, int, int], rows: int, *, seed: int = 0) -> Problem:
    """A regression with a network of two layers, f(W_1, W_2) = mean_i ‖W_2 tanh(W_1 x_i) - y_i‖² / 2; both train.

    The targets y_i are those of another network of the same shape. f is not convex, so μ is unknown; f* is at least 0.
    L is not known in closed form either. It is measured: twice the largest eigenvalue of the Hessian along 200 steps of
    gradient descent.

    Args:
        widths: of the input, of the hidden layer, and of the output.
    """
    generator = torch.Generator().manual_seed(seed)
    width, hidden, out = widths

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) / shape[-1] ** 0.5

    inputs = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    targets = (draw(out, hidden) @ (2 * draw(hidden, width) @ inputs.T).tanh()).T
    start = (draw(hidden, width), draw(out, hidden))

    def loss(weights: Weights) -> Tensor:
        first, second = weights
        return ((second @ (first @ inputs.T).tanh() - targets.T) ** 2).sum(-2).mean(-1) / 2

    return Problem(start, loss, 2 * _largest_curvature(loss, start), 0.0, 0.0)


def minimum(loss: Callable[[Weights], Tensor], start: Tensor) -> Tensor:
    """The minimizers of strongly convex functions of one matrix, by Newton's method with halved steps.

    Args:
        loss: of (chains, d_out, d_in) it gives one value for each chain, which depends on that chain's matrix alone.
        start: (chains, d_out, d_in).
    """
    weight = start.clone()
    for _ in range(NEWTON_STEPS):
        gradient, hessian = derivatives(loss, (weight,))
        if float(gradient.norm(dim=1).max()) < TOLERANCE:
            break
        step = torch.linalg.solve(hessian, gradient[..., None]).view_as(weight)
        before, length = loss((weight,)), torch.ones(len(weight), 1, 1, dtype=weight.dtype)
        for _ in range(HALVINGS):
            rises = (loss((weight - length * step,)) > before)[:, None, None]
            if not rises.any():
                break
            length = torch.where(rises, length / 2, length)
        weight = weight - length * step
    return weight


def derivatives(loss: Callable[[Weights], Tensor], weights: Weights) -> tuple[Tensor, Tensor]:
    """Gradient and Hessian of each chain with respect to the n entries of all layers, one layer after the other.

    Args:
        weights: (chains, d_out, d_in) for each layer.

    Returns:
        (chains, n) and (chains, n, n).
    """
    leaves = tuple(weight.detach().requires_grad_() for weight in weights)
    gradient = _flat(torch.autograd.grad(loss(leaves).sum(), leaves, create_graph=True))
    rows = [_flat(torch.autograd.grad(entry.sum(), leaves, retain_graph=True)) for entry in gradient.T]
    return gradient.detach(), torch.stack(rows, 1)


def _flat(weights: Weights) -> Tensor:
    """The entries of all layers, (chains, n)."""
    return torch.cat([weight.flatten(1) for weight in weights], 1)


def _largest_curvature(loss: Callable[[Weights], Tensor], start: Weights) -> float:
    """The largest eigenvalue of the Hessian along a path of gradient descent, each step as long as it allows."""
    largest, weights = 0.0, tuple(weight[None] for weight in start)
    for step in range(PATH_STEPS):
        if step % CURVATURE_EVERY == 0:
            largest = max(largest, float(torch.linalg.eigvalsh(derivatives(loss, weights)[1])[0, -1]))
        leaves = tuple(weight.detach().requires_grad_() for weight in weights)
        gradient = torch.autograd.grad(loss(leaves).sum(), leaves)
        weights = tuple(weight - part / largest for weight, part in zip(weights, gradient, strict=True))
    return largest


@functools.cache
def problem_named(name: str) -> Problem:
    """One of the `PROBLEMS` of the table."""
    return PROBLEMS[name]()


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "distance": lambda: quadratic((10, 20)),
    "quadratic": lambda: quadratic((10, 20), condition=5),
    "logistic": lambda: logistic(classification_rows(200, 5, 10), 5, penalty=0.1),
    "network": lambda: network((6, 8, 3), 50),
}
"""The problems of the table."""
