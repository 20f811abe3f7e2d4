"""The search for the best learning rate of every row."""

from __future__ import annotations

import math

import pytest

from lora_ga_cli.reproduce.tune_lr import best_is_at_edge, best_rate, next_rates

GRID = [1e-4, 3e-4, 9e-4]


def search(optimum: float, max_rates: int = 8) -> dict[float, float]:
    """Searches with a loss that has one minimum; returns the losses of all rates that were tried."""
    losses: dict[float, float] = {}
    while rates := next_rates(losses, GRID, max_rates):
        losses |= {rate: abs(math.log(rate / optimum)) for rate in rates}
    return losses


@pytest.mark.parametrize("optimum", [4e-6, 1e-4, 3e-4, 2e-3, 2e-2])
def test_the_grid_grows_until_the_best_rate_lies_inside(optimum: float) -> None:
    losses = search(optimum)
    assert set(GRID) <= set(losses)
    assert not best_is_at_edge(losses)
    nearest = min(losses, key=lambda rate: abs(math.log(rate / optimum)))
    assert best_rate(losses) == nearest
    assert abs(math.log(nearest / optimum)) <= math.log(3) / 2 + 0.01
    ratios = [later / earlier for earlier, later in zip(sorted(losses), sorted(losses)[1:], strict=False)]
    assert ratios == pytest.approx([3.0] * len(ratios), rel=0.02)


def test_the_search_stops_at_the_maximum_number_of_rates_even_if_the_best_is_at_the_edge() -> None:
    losses = search(1e3, max_rates=5)
    assert len(losses) == 5
    assert best_is_at_edge(losses)


def test_a_rate_that_failed_is_never_the_best() -> None:
    assert best_rate({1e-4: 2.0, 3e-4: math.inf, 9e-4: 3.0}) == 1e-4
    assert best_rate({1e-4: 2.0, 3e-4: 2.0, 9e-4: 3.0}) == 1e-4
