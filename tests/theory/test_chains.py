"""Chains against what is proved about them: closed forms to the precision of float64, expectations to their error."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn

from lora_ga_cli.lora.sketches import Kind
from lora_ga_cli.theory import rates
from lora_ga_cli.theory.chains import (
    Path,
    Side,
    Sketches,
    Solver,
    best_links,
    both_factors,
    descend,
    descent,
    draw_sketches,
    follow,
    one_factor,
    product,
    projected_step,
)
from lora_ga_cli.theory.problems import Problem, Quadratic, Weights, problem_named, quadratic

RIGHT: tuple[Side, ...] = ("right",)
DISTANCE, QUADRATIC = quadratic((10, 20)), quadratic((10, 20), condition=5)


def followed(
    problem: Problem,
    *,
    rank: int,
    sides: Sequence[Side] = RIGHT,
    kind: Kind = "orthonormal",
    solver: Solver = projected_step,
    rate: float = 1.0,
    links: int = 10,
    chains: int = 200,
) -> Path:
    """RAC-LoRA at a rate that is a multiple of 1/L."""
    generator = Generator().manual_seed(7)

    def draw() -> list[Sketches]:
        return [draw_sketches(problem, side, rank, kind, generator, chains=chains) for side in sides]

    chain = one_factor(problem, draw, solver, rate / problem.smoothness, generator)
    return follow(problem, chain, links, chains)


def after(chain: Iterator[Weights], links: int) -> Weights:
    return next(itertools.islice(chain, links - 1, None))


def frozen(sketches: Sketches) -> Iterator[list[Sketches]]:
    return itertools.repeat([sketches])


@pytest.mark.parametrize(
    ("rank", "sides", "factor"),
    [
        (1, ("right",), 1 - 1 / 20),
        (2, ("right",), 1 - 2 / 20),
        (2, ("left",), 1 - 2 / 10),
        (2, ("right", "left"), 1 - (2 / 20 + 2 / 10) / 2),
    ],
)
@pytest.mark.parametrize("kind", ["orthonormal", "kaiming"])
def test_the_squared_distance_falls_at_the_predicted_rate(
    rank: int, sides: tuple[Side, ...], factor: float, kind: Kind
) -> None:
    """E‖W_t - W*‖² = (1 - λ)^t·‖W_0 - W*‖², within four standard errors of the mean over draws."""
    assert rates.link_factor(DISTANCE, 1.0, rates.share(DISTANCE, rank, sides)) == pytest.approx(factor)
    errors = followed(DISTANCE, rank=rank, sides=sides, kind=kind).errors
    for links in (1, 5, 10):
        standard_error = float(errors[links].std()) / errors.shape[1] ** 0.5
        difference = float(errors[links].mean()) - factor**links * float(errors[0].mean())
        assert abs(difference) <= 4 * standard_error + 1e-12
    mean, standard_error = rates.measured_factor(errors)
    assert abs(mean - factor) <= 4 * standard_error + 1e-12


def test_the_rate_is_exact_for_other_step_sizes_too() -> None:
    """1 - γ(2 - γ)λ."""
    errors = followed(DISTANCE, rank=4, rate=0.3).errors
    mean, standard_error = rates.measured_factor(errors)
    assert rates.link_factor(DISTANCE, 0.3, 4 / 20) == pytest.approx(1 - 0.3 * 1.7 * 0.2)
    assert abs(mean - (1 - 0.3 * 1.7 * 0.2)) < 4 * standard_error


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_mean_over_a_balanced_set_of_sketches_is_the_rate_exactly(side: Side) -> None:
    """Sketches that choose rank coordinates, each coordinate equally often: Σ P/count = (rank/n)·I without chance."""
    size = DISTANCE.solution.shape[1 if side == "right" else 0]
    eye = torch.eye(size, dtype=torch.float64)
    rows = torch.stack([eye.roll(shift, 0)[:3] for shift in range(size)])
    sketches = Sketches(side, (rows if side == "right" else rows.mT,))
    chain = one_factor(DISTANCE, frozen(sketches).__next__, projected_step, 1.0, Generator())
    errors = follow(DISTANCE, chain, 1, size).errors
    assert float(errors[1].mean() / errors[0].mean()) == pytest.approx(1 - 3 / size, abs=1e-14)


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("solver", [projected_step, descent(5)], ids=["step", "descent"])
@pytest.mark.parametrize("name", ["quadratic", "logistic"])
def test_the_error_of_convex_problems_falls_linearly_and_not_slower_than_the_bound(
    name: str, solver: Solver, rank: int
) -> None:
    problem = problem_named(name)
    path = followed(problem, rank=rank, solver=solver, links=30, chains=10)
    bound = rates.link_factor(problem, 1 / problem.smoothness, rates.share(problem, rank, RIGHT))
    assert bound is not None
    assert 0.5 < bound < 1
    assert rates.measured_factor(path.errors)[0] <= bound
    means = path.errors.mean(1)
    assert bool((means <= means[0] * bound ** torch.arange(31)).all())
    logs = means.log().numpy()
    fitted = np.polyval(np.polyfit(range(31), logs, 1), range(31))
    assert np.corrcoef(logs, fitted)[0, 1] > 0.99


@pytest.mark.parametrize("kind", ["orthonormal", "gaussian"])
@pytest.mark.parametrize("solver", [projected_step, descent(5)], ids=["step", "descent"])
@pytest.mark.parametrize("name", ["quadratic", "logistic", "network"])
def test_no_draw_raises_the_error_at_the_rate_of_the_smoothness(name: str, solver: Solver, kind: Kind) -> None:
    errors = followed(problem_named(name), rank=2, kind=kind, solver=solver, links=5, chains=4).errors
    assert bool((errors.diff(dim=0) <= 1e-14).all())


@pytest.mark.parametrize("sides", [("right",), ("left",), ("right", "left")])
def test_gradients_of_the_network_stay_below_the_bound(sides: tuple[Side, ...]) -> None:
    problem = problem_named("network")
    path = followed(problem, rank=1, sides=sides, links=40, chains=16)
    bound = rates.squares_bound(problem, 1 / problem.smoothness, 40, rates.share(problem, 1, sides))
    assert 0 < float(path.squares[:-1].mean()) < bound
    assert rates.link_factor(problem, 1 / problem.smoothness) is None


@pytest.mark.parametrize("kind", ["orthonormal", "gaussian"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_the_step_of_the_theory_is_a_projected_step(side: Side, kind: Kind) -> None:
    """W - γ·∇f·P, with numpy's pseudo-inverse for P."""
    sketches = draw_sketches(QUADRATIC, side, 3, kind, Generator().manual_seed(1), chains=2)
    weights = QUADRATIC.copies(2)
    moved = product(projected_step(QUADRATIC, weights, sketches, 0.7), sketches)[0].numpy()
    gradient, factors = QUADRATIC.gradient(weights)[0].numpy(), sketches.factors[0].numpy()
    inverse = np.linalg.pinv(factors)
    expected = gradient @ (inverse @ factors) if side == "right" else (factors @ inverse) @ gradient
    np.testing.assert_allclose(moved, -0.7 * expected, atol=1e-13)


@pytest.mark.parametrize("side", ["right", "left"])
def test_steps_on_a_factor_are_projected_steps_on_the_weight(side: Side) -> None:
    """K steps on the free factor, with an orthonormal frozen one, are K steps W ← W - γ·∇f(W)·P."""
    problem = problem_named("logistic")
    sketches = draw_sketches(problem, side, 2, "orthonormal", Generator().manual_seed(1), chains=3)
    (factor,) = sketches.factors
    projection = factor.mT @ factor if side == "right" else factor @ factor.mT
    (weight,) = problem.copies(3)
    for _ in range(7):
        (gradient,) = problem.gradient((weight,))
        weight = weight - 0.9 * (gradient @ projection if side == "right" else projection @ gradient)
    moved = product(descent(7)(problem, problem.copies(3), sketches, 0.9), sketches)[0]
    torch.testing.assert_close(moved, weight - problem.start[0], rtol=0, atol=1e-14)


def trained_by_torch(problem: Problem, a: Tensor, steps: int, rate: float, *, trains_a: bool) -> Tensor:
    """W + B·A after steps of `torch.optim.SGD` on B, and on A, from B = 0."""
    a_parameter = nn.Parameter(a.clone(), requires_grad=trains_a)
    b_parameter = nn.Parameter(a.new_zeros(problem.start[0].shape[0], len(a)))
    optimizer = torch.optim.SGD([a_parameter, b_parameter], lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        problem.loss((problem.start[0] + b_parameter @ a_parameter,)).backward()
        optimizer.step()
    return (problem.start[0] + b_parameter @ a_parameter).detach()


def test_a_link_is_what_torchs_optimizer_trains() -> None:
    problem = problem_named("logistic")
    (a,) = draw_sketches(problem, "right", 2, "orthonormal", Generator().manual_seed(1)).factors
    of_b = after(one_factor(problem, frozen(Sketches("right", (a,))).__next__, descent(6), 0.5, Generator()), 1)
    torch.testing.assert_close(of_b[0][0], trained_by_torch(problem, a[0], 6, 0.5, trains_a=False), atol=1e-14, rtol=0)
    for restarts, links in ((True, 1), (False, 3)):
        chain = both_factors(
            problem, 0.5, rank=2, steps=6, kind="orthonormal", generator=Generator().manual_seed(1), restarts=restarts
        )
        expected = trained_by_torch(problem, a[0], 6 * links, 0.5, trains_a=True)
        torch.testing.assert_close(after(chain, links)[0][0], expected, atol=1e-14, rtol=0)


@pytest.mark.parametrize("kind", ["orthonormal", "gaussian"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_sketch_that_is_never_drawn_again_stalls_at_the_closed_form(side: Side, kind: Kind) -> None:
    """½‖(W* - W_0)(I - P_A)‖² for the distance, and its form in the norm of H for a quadratic."""
    for problem, links in ((DISTANCE, 1), (QUADRATIC, 150)):
        sketches = draw_sketches(problem, side, 4, kind, Generator().manual_seed(2), chains=3)
        chain = one_factor(problem, frozen(sketches).__next__, projected_step, 1.0, Generator())
        errors = follow(problem, chain, links, 3).errors[-1]
        torch.testing.assert_close(errors, rates.subspace_error(problem, sketches), rtol=1e-12, atol=0)
        torch.testing.assert_close(rates.convex_subspace_error(problem, sketches), errors, rtol=1e-12, atol=0)
    factor = sketches.factors[0][0].numpy()
    difference = DISTANCE.solution.numpy()
    if side == "right":
        left = difference - difference @ np.linalg.pinv(factor) @ factor
    else:
        left = difference - factor @ np.linalg.pinv(factor) @ difference
    assert float(rates.subspace_error(DISTANCE, sketches)[0]) == pytest.approx((left**2).sum() / 2, rel=1e-13)


def test_logistic_regression_stalls_at_the_optimum_of_the_subspace() -> None:
    problem = problem_named("logistic")
    sketches = draw_sketches(problem, "right", 2, "orthonormal", Generator().manual_seed(2), chains=3)
    chain = one_factor(problem, frozen(sketches).__next__, descent(50), 1 / problem.smoothness, Generator())
    errors = follow(problem, chain, 5, 3).errors[-1]
    torch.testing.assert_close(errors, rates.convex_subspace_error(problem, sketches), rtol=1e-9, atol=0)
    assert float(errors.min()) > 0.1 * float(problem.error(problem.start))


@pytest.mark.parametrize("rank", [1, 3])
def test_exact_links_follow_eckart_and_young(rank: int) -> None:
    """‖W_q - W*‖² = Σ_{i > rank·q} σ_i² after q links, zero from ceil(10/rank) on."""
    singular = np.linalg.svd(DISTANCE.solution.numpy(), compute_uv=False)
    errors = follow(DISTANCE, best_links(DISTANCE, rank), 10).errors[:, 0].numpy()
    np.testing.assert_allclose(errors, [(singular[rank * link :] ** 2).sum() / 2 for link in range(11)], atol=1e-12)
    for problem in (DISTANCE, QUADRATIC):
        followed_errors = follow(problem, best_links(problem, rank), 10).errors[:, 0]
        torch.testing.assert_close(followed_errors, rates.best_link_errors(problem, rank, 10), rtol=0, atol=1e-12)


def test_an_exact_link_of_a_quadratic_is_where_both_factors_end_when_they_train() -> None:
    """No stationary point but the best product is stable, so gradient descent from a random A ends there."""
    problem: Quadratic = quadratic((4, 6), condition=3, seed=1)
    chain = both_factors(
        problem, 0.15, rank=2, steps=1000, kind="orthonormal", generator=Generator().manual_seed(1), restarts=False
    )
    (best,) = after(best_links(problem, 2), 1)
    torch.testing.assert_close(after(chain, 1)[0], best, rtol=0, atol=1e-9)


def test_a_chain_of_trained_pairs_passes_the_rank_at_which_one_pair_ends() -> None:
    def of(restarts: bool) -> Iterator[Weights]:
        source = Generator().manual_seed(1)
        return both_factors(DISTANCE, 0.1, rank=2, steps=60, kind="orthonormal", generator=source, restarts=restarts)

    one_pair = follow(DISTANCE, of(False), 12).errors[-1]
    assert float(one_pair) == pytest.approx(float(rates.best_link_errors(DISTANCE, 2, 1)[1]), rel=1e-6)
    assert float(follow(DISTANCE, of(True), 12).errors[-1]) < 0.01 * float(one_pair)


def test_training_both_factors_diverges_at_a_rate_that_is_safe_for_one() -> None:
    """½(b·a - w)² has the curvature a² + b² in (a, b), and no bound of it. With a frozen it is a quadratic, whose size
    RAC-LoRA divides out."""
    problem, source = quadratic((1, 1), seed=1), Generator().manual_seed(1)
    for restarts in (True, False):
        chain = both_factors(
            problem, 1.0, rank=1, steps=20, kind="orthonormal", generator=source, restarts=restarts, size=4
        )
        assert follow(problem, chain, 30).diverged
    sketches = Sketches("right", (torch.full((1, 1, 1), 4.0, dtype=torch.float64),))
    for solver in (projected_step, descent(20)):
        path = follow(problem, one_factor(problem, frozen(sketches).__next__, solver, 1.0, source), 30)
        assert not path.diverged
        assert float(path.errors[-1]) < 1e-30
    for restarts in (True, False):  # also with an A of unit rows, where W* is large
        chain = both_factors(DISTANCE, 1.0, rank=4, steps=10, kind="orthonormal", generator=source, restarts=restarts)
        assert follow(DISTANCE, chain, 30).diverged


def test_errors_of_a_chain_that_diverged_are_finite() -> None:
    chain = both_factors(
        DISTANCE, 1.0, rank=4, steps=1000, kind="orthonormal", generator=Generator(), restarts=True, size=100
    )
    path = follow(DISTANCE, chain, 30)
    assert path.relative_errors() == [1, 1e6]


def test_a_sketch_of_full_rank_makes_gradient_descent() -> None:
    problem = problem_named("network")
    rate = 1 / problem.smoothness
    sketches = draw_sketches(problem, "right", 8, "gaussian", Generator().manual_seed(1))
    of_sketch = after(one_factor(problem, frozen(sketches).__next__, projected_step, rate, Generator()), 5)
    for one, other in zip(of_sketch, after(descend(problem, rate), 5), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_a_zero_gradient_makes_no_step() -> None:
    problem = Quadratic((DISTANCE.solution,), DISTANCE.loss, 1, 1, 0, DISTANCE.solution, DISTANCE.curvature)
    sketches = draw_sketches(problem, "left", 3, "gaussian", Generator().manual_seed(1))
    for solver in (projected_step, descent(5)):
        (weight,) = after(one_factor(problem, frozen(sketches).__next__, solver, 1.0, Generator()), 3)
        assert torch.equal(weight[0], DISTANCE.solution)
