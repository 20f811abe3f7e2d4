"""What a cell of the measure ``convergence`` computes: its chain, and the prediction beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from lora_ga_cli.reproduce.theory_options import ConvergenceOptions
from lora_ga_cli.theory import chains, rates
from lora_ga_cli.theory.chains import Side, Sketches, Solver
from lora_ga_cli.theory.federated import averaged
from lora_ga_cli.theory.problems import Logistic, Problem, Quadratic, Weights, problem_named, split

SIDES: dict[str, tuple[Side, ...]] = {"right": ("right",), "left": ("left",), "either": ("right", "left")}


@dataclass(frozen=True)
class Prediction:
    """What theory says of a chain; None where it says nothing.

    Args:
        errors: relative to the first, at the start and after each link.
        factor: an upper bound of the factor by which a link reduces the error.
        squares: an upper bound of the mean squared norm of the gradient.
    """

    errors: list[float] | None = None
    factor: float | None = None
    squares: float | None = None


def measured(options: ConvergenceOptions, progress: Callable[[int], object]) -> dict[str, Any]:
    """The values of a cell; see `measures.convergence.Convergence`.

    Args:
        progress: gets the number of links done.
    """
    problem = problem_named(options.problem)
    rate = options.rate / problem.smoothness
    path = chains.follow(problem, chain(options, problem, rate), options.links, options.draws, progress)
    prediction = predict(options, problem, rate)
    errors, squares = path.relative_errors(), path.squares.mean(1)
    factor, factor_error = (None, None) if path.diverged else rates.measured_factor(path.errors)
    bound, last = prediction.squares, prediction.errors[-1] if prediction.errors is not None else None
    return {
        "log_error": _log(errors[-1]),
        "predicted_log_error": None if last is None else _log(last),
        "factor": factor,
        "factor_error": factor_error,
        "predicted_factor": prediction.factor,
        "squares": None if path.diverged else float(squares[:-1].mean() / squares[0]),
        "predicted_squares": None if bound is None else bound / float(squares[0]),
        "errors": errors,
        "predicted_errors": prediction.errors,
    }


def chain(options: ConvergenceOptions, problem: Problem, rate: float) -> Iterator[Weights]:
    """The weights of a cell after each link.

    Args:
        rate: γ.
    """
    return CHAINS[options.trains](options, problem, rate)


def predict(options: ConvergenceOptions, problem: Problem, rate: float) -> Prediction:
    """What theory says of a cell.

    Args:
        rate: γ.
    """
    if options.trains == "both_factors":
        return _of_both_factors(options, problem)
    if options.trains == "one_factor" and not options.restarts:
        return _of_a_subspace(options, problem)
    one_step = options.solver == "step" or options.steps == 1
    if options.trains == "one_factor" and not one_step and (options.clients > 1 or options.sketch != "orthonormal"):
        return Prediction()
    share = 1.0 if options.trains == "weight" else rates.share(problem, options.rank, SIDES[options.side])
    factor = rates.link_factor(problem, rate, share)
    errors = None if factor is None else [factor**link for link in range(options.links + 1)]
    return Prediction(errors, factor, rates.squares_bound(problem, rate, options.links, share))


def _of_both_factors(options: ConvergenceOptions, problem: Problem) -> Prediction:
    """Exact links follow Eckart and Young; one pair that trains all the time gets no further than one exact link."""
    if not isinstance(problem, Quadratic) or (options.restarts and options.solver != "exact"):
        return Prediction()
    errors = rates.best_link_errors(problem, options.rank, options.links)
    relative = (errors / errors[0]).tolist()
    return Prediction(relative if options.restarts else [relative[1]] * len(relative))


def _of_a_subspace(options: ConvergenceOptions, problem: Problem) -> Prediction:
    """The least error that is possible within the subspace of a frozen factor that is never drawn again."""
    (sketches,) = _draw(options, problem, _generator(options))
    if isinstance(problem, Quadratic):
        stalls = rates.subspace_error(problem, sketches)
    elif problem.convexity:
        stalls = rates.convex_subspace_error(problem, sketches)
    else:
        return Prediction()
    first = float(problem.error(problem.start))
    return Prediction([float(stalls.mean()) / first] * (options.links + 1))


def _weight(options: ConvergenceOptions, problem: Problem, rate: float) -> Iterator[Weights]:
    return chains.descend(problem, rate, chains=options.draws)


def _one_factor(options: ConvergenceOptions, problem: Problem, rate: float) -> Iterator[Weights]:
    generator = _generator(options)
    first = _draw(options, problem, generator)

    def draw() -> list[Sketches]:
        return _draw(options, problem, generator) if options.restarts else first

    return chains.one_factor(problem, draw, _solver(options, problem), rate, generator)


def _both_factors(options: ConvergenceOptions, problem: Problem, rate: float) -> Iterator[Weights]:
    if options.solver == "exact":
        assert isinstance(problem, Quadratic)
        return chains.best_links(problem, options.rank, chains=options.draws)
    return chains.both_factors(
        problem,
        rate,
        rank=options.rank,
        steps=options.steps,
        kind=options.sketch,
        generator=_generator(options),
        restarts=options.restarts,
        size=options.size,
        chains=options.draws,
    )


CHAINS: dict[str, Callable[[ConvergenceOptions, Problem, float], Iterator[Weights]]] = {
    "weight": _weight,
    "one_factor": _one_factor,
    "both_factors": _both_factors,
}


def _solver(options: ConvergenceOptions, problem: Problem) -> Solver:
    solver = chains.projected_step if options.solver == "step" else chains.descent(options.steps)
    if options.clients == 1:
        return solver
    assert isinstance(problem, Logistic)
    return averaged(solver, *split(problem, _sizes(len(problem.rows.labels), options.clients)))


def _sizes(rows: int, clients: int) -> list[int]:
    """Rows of each client, in proportion to 1, 2, 3, …; the last one has the rest."""
    sizes = [max(2 * rows * number // (clients * (clients + 1)), 1) for number in range(1, clients)]
    return [*sizes, rows - sum(sizes)]


def _draw(options: ConvergenceOptions, problem: Problem, generator: torch.Generator) -> list[Sketches]:
    return [
        chains.draw_sketches(problem, side, options.rank, options.sketch, generator, chains=options.draws)
        for side in SIDES[options.side]
    ]


def _generator(options: ConvergenceOptions) -> torch.Generator:
    return torch.Generator().manual_seed(options.seed)


def _log(relative_error: float) -> float:
    return math.log10(max(relative_error, rates.ROUNDING))
