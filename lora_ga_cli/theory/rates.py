"""What theory says about a chain: the factor by which a link reduces the error, and where a chain ends."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lora_ga_cli.theory.chains import Side, Sketches, plus, product, zero_factors
from lora_ga_cli.theory.problems import Problem, Quadratic, Weights, minimum

ROUNDING = 1e-16
"""The relative error of float64, below which errors are not told apart."""


def share(problem: Problem, rank: int, sides: Sequence[Side]) -> float:
    """λ, the smallest eigenvalue of the expected projection (arXiv 2410.08305).

    It is rank/d_in for a right sketch, rank/d_out for a left one, their mean if the side is drawn, and of several
    layers the smallest.

    It holds for every sketch whose span has no preferred direction, as all of `lora_ga_cli.lora.sketches` have.
    """
    widths = {"right": -1, "left": -2}
    shares = [[min(rank / weight.shape[widths[side]], 1.0) for side in sides] for weight in problem.start]
    return min(sum(layer) / len(layer) for layer in shares)


def link_factor(problem: Problem, rate: float, projected_share: float = 1.0) -> float | None:
    """At most this times the expected error is left after a link: 1 - γμλ(2 - γL), which is 1 - γμλ at γ = 1/L.

    From f(W - γ∇f·P) ≤ f - γ(1 - γL/2)‖∇f·P‖², the expectation E‖∇f·P‖² ≥ λ‖∇f‖², and ‖∇f‖² ≥ 2μ(f - f*). RAC-LoRA's
    paper (arXiv 2410.08305) states 1 - γμλ for γ ≤ 1/L (not verified against the paper). On ½‖W - W*‖², where L = μ = 1
    and λ is the same in all directions, it is exact. Further steps within a link only reduce the error more.

    Args:
        rate: γ.
        projected_share: λ, or 1 for gradient descent.

    Returns:
        None: no μ is known.
    """
    if not problem.convexity:
        return None
    return 1 - rate * problem.convexity * projected_share * (2 - rate * problem.smoothness)


def squares_bound(problem: Problem, rate: float, links: int, projected_share: float = 1.0) -> float:
    """A bound of the mean of E‖∇f‖² over the points in which the links begin: 2(f(W_0) - f*) / (λγ(2 - γL)·links).

    It needs no convexity. At γ = 1/L it is the 2(f(W_0) - f*)/(λγT) that is attributed to RAC-LoRA's paper (arXiv
    2410.08305; not verified against the paper).
    """
    first = float(problem.error(problem.start))
    return 2 * first / (projected_share * rate * (2 - rate * problem.smoothness) * links)


def subspace_error(problem: Quadratic, sketches: Sketches) -> Tensor:
    """The error at which a chain stalls that never draws its sketch anew, on a quadratic; one number for each chain.

    With E = (W_0 - W*) H^½ it is ½‖E(I - P)‖², where P projects on the rows of A·H^½; for a frozen B it is
    ½‖(I - P_B)E‖². For H = I this is ½‖(W* - W_0)(I - P_A)‖².
    """
    eigenvalues, vectors = torch.linalg.eigh(problem.curvature)
    root = (vectors * eigenvalues.sqrt()) @ vectors.T
    error, (factor,) = (problem.start[0] - problem.solution) @ root, sketches.factors
    if sketches.side == "right":
        rows = torch.linalg.qr((factor @ root).mT).Q
        left = error - error @ rows @ rows.mT
    else:
        columns = torch.linalg.qr(factor).Q
        left = error - columns @ (columns.mT @ error)
    return (left**2).sum((-2, -1)) / 2


def convex_subspace_error(problem: Problem, sketches: Sketches) -> Tensor:
    """The same for a strongly convex problem of one layer, by Newton's method on the free factors."""
    start = problem.copies(len(sketches.factors[0]))

    def loss(free: Weights) -> Tensor:
        return problem.error(plus(start, product(free, sketches)))

    return loss((minimum(loss, *zero_factors(start, sketches)),))


def best_link_errors(problem: Quadratic, rank: int, links: int) -> Tensor:
    """The errors of `chains.best_links` by Eckart and Young's theorem: ½·Σ_{i > rank·q} σ_i² after q links, with the
    singular values of (W_0 - W*) H^½; (links + 1,)."""
    eigenvalues, vectors = torch.linalg.eigh(problem.curvature)
    squares = torch.linalg.svdvals((problem.start[0] - problem.solution) @ (vectors * eigenvalues.sqrt())) ** 2
    return torch.stack([squares[rank * link :].sum() / 2 for link in range(links + 1)])


def measured_factor(errors: Tensor) -> tuple[float, float]:
    """The mean over links and chains of e_{t+1}/e_t, the factor by which a link reduces the error of its chain.

    `link_factor` bounds the expectation of this ratio for every W_t. A mean of errors after many links would say less:
    it depends on the few chains with the largest error, and is mostly below its expectation. Links that begin with an
    error near rounding are left out.

    Args:
        errors: (links + 1, chains).

    Returns:
        The mean, and its standard error over chains; 0 for one chain.
    """
    counts = errors[:-1] > 1e4 * ROUNDING * errors[0]
    ratios = torch.where(counts, errors[1:].clamp(min=0) / errors[:-1], 0)
    of_chains = ratios.sum(0) / counts.sum(0)
    chains = len(of_chains)
    return float(of_chains.mean()), float(of_chains.std() / chains**0.5) if chains > 1 else 0.0
