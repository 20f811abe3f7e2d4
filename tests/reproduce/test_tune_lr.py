"""The search for each row's own learning rate."""

from __future__ import annotations

import math

import pytest

from lora_ga_cli.reproduce.tune_lr import at_an_edge, best_rate, next_rates

GRID = [1e-4, 3e-4, 9e-4]


def searched(optimum: float, most: int = 8) -> dict[float, float]:
    """All rates that a loss with one valley is tried at."""
    known: dict[float, float] = {}
    while rates := next_rates(known, GRID, most):
        known |= {rate: abs(math.log(rate / optimum)) for rate in rates}
    return known


@pytest.mark.parametrize("optimum", [4e-6, 1e-4, 3e-4, 2e-3, 2e-2])
def test_the_grid_widens_until_the_best_rate_lies_inside(optimum: float) -> None:
    known = searched(optimum)
    assert set(GRID) <= set(known)
    assert not at_an_edge(known)
    nearest = min(known, key=lambda rate: abs(math.log(rate / optimum)))
    assert best_rate(known) == nearest
    assert abs(math.log(nearest / optimum)) <= math.log(3) / 2 + 0.01
    ratios = [later / earlier for earlier, later in zip(sorted(known), sorted(known)[1:], strict=False)]
    assert ratios == pytest.approx([3.0] * len(ratios), rel=0.02)


def test_it_stops_at_the_most_rates_and_says_that_the_best_is_at_an_edge() -> None:
    known = searched(1e3, most=5)
    assert len(known) == 5
    assert at_an_edge(known)


def test_a_rate_that_failed_is_never_the_best() -> None:
    assert best_rate({1e-4: 2.0, 3e-4: math.inf, 9e-4: 3.0}) == 1e-4
    assert best_rate({1e-4: 2.0, 3e-4: 2.0, 9e-4: 3.0}) == 1e-4
