"""Chains of low-rank updates on a problem: after each link, what it trained is added to the weights.

Every function returns an endless iterator of the weights after links 1, 2, …, for several chains that are computed
together: (chains, d_out, d_in) for each layer. The chains differ in what they draw. The rate is γ of the step
W - γ·∇f(W)·P: an adapter's scaling s and the learning rate η of its factor enter as γ = s·η (RAC-LoRA, arXiv
2410.08305), and here s = 1.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from lora_ga_cli.lora.sketches import Kind, draw_factor
from lora_ga_cli.theory.problems import Problem, Quadratic, Weights

Side = Literal["right", "left"]
"""Which factor is drawn and frozen: ``right`` is A (rank, d_in), so that B trains; ``left`` is B (d_out, rank)."""
TOO_LARGE = 1e6
"""A chain counts as divergent once its error is this many times the first one."""


@dataclass(frozen=True)
class Sketches:
    """The frozen factors of a link.

    Args:
        side: of all layers.
        factors: A (chains, rank, d_in) or B (chains, d_out, rank), one for each layer.
    """

    side: Side
    factors: Weights


@dataclass(frozen=True)
class Path:
    """What chains did.

    Args:
        errors: f - f*, (links + 1, chains). It is shorter where a chain diverged.
        squares: ‖∇f‖² of the same points.
    """

    errors: Tensor
    squares: Tensor

    @property
    def diverged(self) -> bool:
        """Whether the last error is `TOO_LARGE` times the first, or more, or no number."""
        return not bool(self.errors[-1].mean() < TOO_LARGE * self.errors[0].mean())

    def relative_errors(self) -> list[float]:
        """The mean error at the start and after each link, relative to the first, and at most `TOO_LARGE`."""
        means = self.errors.mean(1) / self.errors[0].mean()
        return means.nan_to_num(TOO_LARGE, TOO_LARGE).clamp(0, TOO_LARGE).tolist()


Solver = Callable[[Problem, Weights, Sketches, float], Weights]
"""Trains the free factors of one link from zero, and returns them: B (chains, d_out, rank) for a right sketch, A
(chains, rank, d_in) for a left one. The number is γ."""


def follow(
    problem: Problem,
    chain: Iterator[Weights],
    links: int,
    chains: int = 1,
    progress: Callable[[int], object] = lambda link: None,
) -> Path:
    """The errors along a chain; it ends early after a link whose mean error is `TOO_LARGE` times the first.

    Args:
        chain: the weights after each link.
        chains: how many are computed together.
        progress: gets the number of links done.
    """
    errors: list[Tensor] = []
    squares: list[Tensor] = []
    for link, weights in enumerate(itertools.chain([problem.copies(chains)], itertools.islice(chain, links))):
        progress(link)
        gradient = problem.gradient(weights)
        errors.append(problem.error(weights))
        squares.append(sum_of_squares(gradient))
        if Path(torch.stack([errors[0], errors[-1]]), squares[0]).diverged:
            break
    return Path(torch.stack(errors), torch.stack(squares))


def sum_of_squares(weights: Weights) -> Tensor:
    """The squared norm of all layers together, one number for each chain."""
    return torch.stack([(weight**2).sum((-2, -1)) for weight in weights]).sum(0)


def descend(problem: Problem, rate: float, *, chains: int = 1) -> Iterator[Weights]:
    """Gradient descent on the weights themselves: one step is a link."""
    weights = problem.copies(chains)
    while True:
        weights = plus(weights, problem.gradient(weights), -rate)
        yield weights


def draw_sketches(
    problem: Problem, side: Side, rank: int, kind: Kind, generator: Generator, *, chains: int = 1
) -> Sketches:
    """Frozen factors for all layers, each from its own draw."""
    factors = []
    for weight in problem.start:
        d_out, d_in = weight.shape
        shape = (rank, d_in) if side == "right" else (d_out, rank)
        factors.append(torch.stack([_drawn(shape, kind, generator) for _ in range(chains)]))
    return Sketches(side, tuple(factors))


def one_factor(
    problem: Problem, draw: Callable[[], Sequence[Sketches]], solver: Solver, rate: float, generator: Generator
) -> Iterator[Weights]:
    """Chains that freeze one factor of each link and train the other one from zero.

    With new sketches for each link this is RAC-LoRA (arXiv 2410.08305). With the same ones for all links it is
    asymmetric LoRA (arXiv 2402.16842), since adding B·A to the weights and training on changes nothing while A stays.

    Args:
        draw: the sketches of a link. Of two, on different sides, each chain takes one at random.
        solver: trains the free factors.
        generator: for the choice of the side.
    """
    weights: Weights | None = None
    while True:
        sketches = draw()
        chains = sketches[0].factors[0].shape[0]
        base = problem.copies(chains) if weights is None else weights
        moved = [plus(base, product(solver(problem, base, sketch, rate), sketch)) for sketch in sketches]
        weights = moved[0] if len(moved) == 1 else _either(moved[0], moved[1], generator)
        yield weights


def projected_step(problem: Problem, weights: Weights, sketches: Sketches, rate: float) -> Weights:
    """RAC-LoRA's theoretical step of the free factor: B = -γ·∇f Aᵀ(AAᵀ)⁺, or A = -γ·(BᵀB)⁺Bᵀ∇f.

    The weight moves by -γ·∇f·P_A, or -γ·P_B·∇f, with the projection P on the sketch's span.
    """
    gradients = problem.gradient(weights)
    pairs = zip(gradients, sketches.factors, strict=True)
    if sketches.side == "right":
        return tuple(-rate * (gradient @ torch.linalg.pinv(a)) for gradient, a in pairs)
    return tuple(-rate * (torch.linalg.pinv(b) @ gradient) for gradient, b in pairs)


def descent(steps: int) -> Solver:
    """A solver: ``steps`` steps of gradient descent on the free factors, which begin at zero.

    The rate of each factor is γ/λ_max(AAᵀ), or γ/λ_max(BᵀB). So a γ ≤ 1/L is safe for every draw, because f as a
    function of B has the smoothness L·λ_max(AAᵀ).
    """

    def solve(problem: Problem, weights: Weights, sketches: Sketches, rate: float) -> Weights:
        rates = [rate / torch.linalg.matrix_norm(factor, 2)[..., None, None].square() for factor in sketches.factors]
        is_right = sketches.side == "right"
        free = zero_factors(weights, sketches)
        for _ in range(steps):
            gradients = problem.gradient(plus(weights, product(free, sketches)))
            parts = zip(free, rates, gradients, sketches.factors, strict=True)
            free = tuple(
                factor - own * (gradient @ frozen.mT if is_right else frozen.mT @ gradient)
                for factor, own, gradient, frozen in parts
            )
        return free

    return solve


def both_factors(
    problem: Problem,
    rate: float,
    *,
    rank: int,
    steps: int,
    kind: Kind,
    generator: Generator,
    restarts: bool,
    size: float = 1.0,
    chains: int = 1,
) -> Iterator[Weights]:
    """Chains whose links train both factors by gradient descent with one fixed rate, from B = 0 and a drawn A.

    With restarts, each link's product is added to the weights and new factors are drawn: COLA (arXiv 2401.04151).
    Without, one pair trains all the time: LoRA (arXiv 2106.09685). Plain gradient descent stands for their AdamW.

    Args:
        rate: of both factors. It is not divided by anything: in (A, B) jointly f has no smoothness constant, because
            its curvature grows with ‖A‖² and ‖B‖².
        steps: in a link.
        size: a number that every drawn A is multiplied by.
    """
    weights = problem.copies(chains)
    sketches = None
    while True:
        if sketches is None or restarts:
            base = weights
            sketches = draw_sketches(problem, "right", rank, kind, generator, chains=chains)
            a: Weights = tuple(size * factor for factor in sketches.factors)
            b = zero_factors(base, sketches)
        for _ in range(steps):
            gradients = problem.gradient(plus(base, product(b, Sketches("right", a))))
            triples = list(zip(gradients, b, a, strict=True))
            b = tuple(left - rate * (gradient @ right.mT) for gradient, left, right in triples)
            a = tuple(right - rate * (left.mT @ gradient) for gradient, left, right in triples)
        weights = plus(base, product(b, Sketches("right", a)))
        yield weights


def best_links(problem: Quadratic, rank: int, *, chains: int = 1) -> Iterator[Weights]:
    """Chains whose every link is the best product B·A of the rank, which both factors trained to the end would give.

    For f = ½‖(W - W*) H^½‖² the best change is -[(W - W*) H^½]_rank H^-½, by Eckart and Young's theorem.
    """
    eigenvalues, vectors = torch.linalg.eigh(problem.curvature)
    root = (vectors * eigenvalues.sqrt()) @ vectors.T
    inverse_root = (vectors / eigenvalues.sqrt()) @ vectors.T
    (weight,) = problem.copies(chains)
    while True:
        left, singular, right = torch.linalg.svd((weight - problem.solution) @ root, full_matrices=False)
        best = (left[..., :rank] * singular[..., None, :rank]) @ right[..., :rank, :]
        weight = weight - best @ inverse_root
        yield (weight,)


def plus(weights: Weights, change: Weights, factor: float = 1.0) -> Weights:
    """W + factor·change, layer by layer."""
    return tuple(weight + factor * part for weight, part in zip(weights, change, strict=True))


def product(free: Weights, sketches: Sketches) -> Weights:
    """B·A of all layers, of which the sketches are one factor."""
    if sketches.side == "right":
        return tuple(b @ a for b, a in zip(free, sketches.factors, strict=True))
    return tuple(b @ a for b, a in zip(sketches.factors, free, strict=True))


def zero_factors(weights: Weights, sketches: Sketches) -> Weights:
    """The free factors at the start of a link."""
    zeros = []
    for weight, factor in zip(weights, sketches.factors, strict=True):
        is_right = sketches.side == "right"
        shape = (weight.shape[-2], factor.shape[-2]) if is_right else (factor.shape[-1], weight.shape[-1])
        zeros.append(weight.new_zeros(*weight.shape[:-2], *shape))
    return tuple(zeros)


def _drawn(shape: tuple[int, int], kind: Kind, generator: Generator) -> Tensor:
    return draw_factor(shape, kind, generator, dtype=torch.float64)


def _either(first: Weights, second: Weights, generator: Generator) -> Weights:
    """For each chain, the weights of one or the other, with equal probability."""
    takes_first = torch.rand(first[0].shape[0], generator=generator) < 0.5
    pairs = zip(first, second, strict=True)
    return tuple(torch.where(takes_first[:, None, None], one, other) for one, other in pairs)
