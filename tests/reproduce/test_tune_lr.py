"""The search for the best learning rate of every row."""

from __future__ import annotations

import math

import pytest

from lora_ga_cli.reproduce.table import TuneLr
from lora_ga_cli.reproduce.tune_lr import best_is_at_edge, best_rate, missing_neighbors, next_rates

GRID = [1e-4, 3e-4, 9e-4]


def search(optimum: float, max_rates: int = 8, refine: float | None = None) -> dict[float, float]:
    """Searches with a loss that has one minimum; returns the losses of all rates that were tried."""
    losses: dict[float, float] = {}
    options = TuneLr(rates=GRID, max_rates=max_rates, refine=refine, held_out=["dataset.validation_fraction=0.1"])
    while rates := next_rates(losses, options):
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


@pytest.mark.parametrize("optimum", [4e-6, 1e-4, 2e-4, 3.4e-4, 5e-4, 2e-3, 8e-3])
@pytest.mark.parametrize("factor", [math.sqrt(3), 1.3])
def test_a_refined_search_ends_when_the_best_rate_has_near_neighbors(optimum: float, factor: float) -> None:
    """No rate is tried twice, and none is farther from the optimum than half a factor, up to rounding."""
    losses = search(optimum, max_rates=40, refine=factor)
    assert set(GRID) <= set(losses)
    assert missing_neighbors(losses, factor) == []
    assert abs(math.log(best_rate(losses) / optimum)) <= math.log(factor) / 2 * 1.25
    ratios = [later / earlier for earlier, later in zip(sorted(losses), sorted(losses)[1:], strict=False)]
    assert min(ratios) > factor**0.25


def test_a_search_by_the_square_root_of_three_tries_two_rates_more() -> None:
    assert sorted(search(3e-4, refine=math.sqrt(3))) == [1e-4, 1.73e-4, 3e-4, 5.2e-4, 9e-4]
    assert sorted(search(5e-4, refine=math.sqrt(3))) == [1e-4, 1.73e-4, 3e-4, 5.2e-4, 9e-4]  # 9e-4 is a neighbor


def test_a_refined_search_stops_at_the_maximum_number_of_rates() -> None:
    losses = search(3e-4, max_rates=4, refine=math.sqrt(3))
    assert len(losses) == 4
    assert missing_neighbors(losses, math.sqrt(3)) == [5.2e-4]


def test_a_neighbor_that_failed_counts_as_tried() -> None:
    losses = {1e-4: 3.0, 1.73e-4: 2.0, 3e-4: 1.0, 5.2e-4: math.inf, 9e-4: math.inf}
    assert missing_neighbors(losses, math.sqrt(3)) == []


def test_a_rate_that_failed_is_never_the_best() -> None:
    assert best_rate({1e-4: 2.0, 3e-4: math.inf, 9e-4: 3.0}) == 1e-4
    assert best_rate({1e-4: 2.0, 3e-4: 2.0, 9e-4: 3.0}) == 1e-4
