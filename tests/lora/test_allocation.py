"""Ranks at a budget of parameters, against brute force and closed forms."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from lora_ga_cli.errors import TargetError
from lora_ga_cli.lora.allocation import (
    allocate_by_energy,
    factor_parameters,
    least_ranks,
    select_layers,
    snip,
    spread_evenly,
)

SHAPES = {"q": (6, 10), "k": (4, 10), "up": (14, 10)}  # a rank costs 16, 14, 24


def spectra_of(seed: int) -> dict[str, Tensor]:
    """Singular values of random gradients, whose layers differ in size."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(len(SHAPES), generator=generator) * 4
    return {
        name: torch.linalg.svdvals(size * torch.randn(shape, generator=generator, dtype=torch.float64))
        for size, (name, shape) in zip(sizes, SHAPES.items(), strict=True)
    }


def energy(ranks: Mapping[str, int], spectra: Mapping[str, Tensor]) -> float:
    return sum(float(spectra[name][:rank].square().sum()) for name, rank in ranks.items())


def best_energy(spectra: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]], budget: int, limit: int) -> float:
    """The largest energy of all allocations, by trying every one."""
    names = list(spectra)
    choices = itertools.product(*(range(min(limit, len(spectra[name])) + 1) for name in names))
    every = (dict(zip(names, ranks, strict=True)) for ranks in choices)
    return max(energy(ranks, spectra) for ranks in every if factor_parameters(ranks, shapes) <= budget)


def fractional_bound(spectra: Mapping[str, Tensor], budget: int, limit: int) -> tuple[float, float]:
    """The energy of the fractional knapsack problem, and the energy of the rank that it divides."""
    items = [(float(value.square()), sum(SHAPES[name])) for name, values in spectra.items() for value in values[:limit]]
    total = 0.0
    for gain, cost in sorted(items, key=lambda item: -item[0] / item[1]):
        if cost > budget:
            return total + gain * budget / cost, gain
        total, budget = total + gain, budget - cost
    return total, 0.0


@pytest.mark.parametrize("seed", range(12))
def test_the_energy_is_the_best_possible_up_to_one_rank(seed: int) -> None:
    spectra = spectra_of(seed)
    for budget in range(24, 230, 7):
        ranks = allocate_by_energy(spectra, SHAPES, budget, 4)
        best = best_energy(spectra, SHAPES, budget, 4)
        bound, divided = fractional_bound(spectra, budget, 4)
        found = energy(ranks, spectra)
        assert factor_parameters(ranks, SHAPES) <= budget
        assert found <= best * (1 + 1e-12)
        assert best <= bound * (1 + 1e-12)
        assert found >= bound - divided - 1e-12
        if divided == 0:
            assert found == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_the_energy_is_the_best_possible_where_all_layers_cost_the_same(seed: int) -> None:
    spectra, shapes = spectra_of(seed), {"q": (6, 10), "k": (4, 12), "up": (8, 8)}
    for budget in range(16, 200, 11):
        ranks = allocate_by_energy(spectra, shapes, budget, 4)
        assert energy(ranks, spectra) == pytest.approx(best_energy(spectra, shapes, budget, 4), rel=1e-12)


def test_what_is_left_of_the_budget_pays_for_no_further_rank() -> None:
    spectra = spectra_of(0)
    for budget in range(14, 400, 3):
        ranks = allocate_by_energy(spectra, SHAPES, budget, 3)
        left = budget - factor_parameters(ranks, SHAPES)
        assert all(left < sum(SHAPES[name]) for name in SHAPES if ranks.get(name, 0) < 3)


@pytest.mark.parametrize("values", [[4.0, 2.0, 1.0, 0.5], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
def test_equal_spectra_get_equal_ranks(values: list[float]) -> None:
    shapes = dict.fromkeys(("a", "b", "c"), (5, 7))
    spectra = dict.fromkeys(shapes, torch.tensor(values))
    for rank in (1, 2, 3):
        assert allocate_by_energy(spectra, shapes, 3 * rank * 12, 4) == dict.fromkeys(shapes, rank)


def test_ties_are_decided_by_rank_and_then_by_the_order_of_layers() -> None:
    shapes = dict.fromkeys(("a", "b", "c"), (5, 7))
    spectra = dict.fromkeys(shapes, torch.ones(4))
    assert allocate_by_energy(spectra, shapes, 4 * 12, 4) == {"a": 2, "b": 1, "c": 1}
    assert allocate_by_energy(spectra, shapes, 2 * 12, 4) == {"a": 1, "b": 1}


def test_the_scale_of_the_gradient_changes_nothing() -> None:
    spectra = spectra_of(3)
    scaled = {name: 1024 * values for name, values in spectra.items()}
    assert allocate_by_energy(spectra, SHAPES, 150, 4) == allocate_by_energy(scaled, SHAPES, 150, 4)


def test_a_layer_has_at_most_the_largest_rank_and_as_many_ranks_as_singular_values() -> None:
    spectra = {"q": torch.tensor([100.0, 90.0, 80.0, 70.0]), "k": torch.tensor([2.0, 1.0]), "up": torch.ones(4)}
    assert allocate_by_energy(spectra, SHAPES, 10**6, 3) == {"q": 3, "k": 2, "up": 3}


def test_the_smallest_rank_is_given_before_the_choice_begins() -> None:
    spectra = {"q": torch.tensor([100.0, 90.0, 80.0]), "k": torch.tensor([1e-3] * 3), "up": torch.tensor([1e-3] * 3)}
    assert allocate_by_energy(spectra, SHAPES, 90, 3) == {"q": 3, "k": 3}
    assert allocate_by_energy(spectra, SHAPES, 90, 3, min_rank=1) == {"q": 3, "k": 1, "up": 1}
    with pytest.raises(TargetError, match=r"53 parameters do not pay for rank 1 in every layer \(54 do\)"):
        allocate_by_energy(spectra, SHAPES, 53, 3, min_rank=1)


def test_ranks_without_a_gradient_are_as_equal_as_the_budget_allows() -> None:
    limits = dict.fromkeys(SHAPES, 4)
    assert spread_evenly(limits, SHAPES, 2 * (16 + 14 + 24)) == dict.fromkeys(SHAPES, 2)
    assert spread_evenly({**limits, "q": 1}, SHAPES, 16 + 2 * (14 + 24)) == {"q": 1, "k": 2, "up": 2}


def test_the_layers_of_the_largest_saliency_are_kept() -> None:
    saliency = {"q": 1.0, "k": 3.0, "up": 2.0}
    assert select_layers(saliency, SHAPES, 2, 2 * (14 + 24)) == {"k": 2, "up": 2}
    assert select_layers(saliency, SHAPES, 2, 2 * (14 + 16)) == {"q": 2, "k": 2}  # up costs more than what is left
    assert select_layers(dict.fromkeys(SHAPES, 0.0), SHAPES, 2, 2 * 16) == {"q": 2}


def test_a_budget_below_the_cheapest_layer_is_refused() -> None:
    with pytest.raises(TargetError, match=r"13 parameters pays for no layer: the cheapest one costs 14"):
        allocate_by_energy(spectra_of(0), SHAPES, 13, 4)
    with pytest.raises(TargetError, match=r"27 parameters pays for no layer: the cheapest one costs 28"):
        select_layers(dict.fromkeys(SHAPES, 1.0), SHAPES, 2, 27)


def test_snip_is_the_sum_of_sizes_of_weight_times_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    weight, grad = torch.randn(2, 6, 10, generator=generator)
    left, singular, right = torch.linalg.svd(grad, full_matrices=False)
    expected = float((weight.double() * grad.double()).abs().sum())
    assert snip(weight, left, singular, right.T) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("min_rank", [0, 1])
def test_the_least_ranks_are_near_the_best_choice(seed: int, min_rank: int) -> None:
    spectra, costs = spectra_of(seed), {name: sum(shape) for name, shape in SHAPES.items()}
    gains = {name: values.square().tolist() for name, values in spectra.items()}
    wanted = 0.8 * sum(map(sum, gains.values()))
    found = least_ranks(gains, costs, wanted, min_rank)
    assert found is not None
    assert energy(found, spectra) >= wanted
    assert min(found.values()) >= min_rank
    choices = itertools.product(*(range(min_rank, len(values) + 1) for values in gains.values()))
    every = [dict(zip(gains, ranks, strict=True)) for ranks in choices]
    enough = [factor_parameters(ranks, SHAPES) for ranks in every if energy(ranks, spectra) >= wanted]
    assert min(enough) <= factor_parameters(found, SHAPES) < min(enough) + max(costs.values())
    equal = least_ranks(gains, dict.fromkeys(gains, 1), wanted, min_rank)
    assert equal is not None
    assert sum(equal.values()) == min(sum(ranks.values()) for ranks in every if energy(ranks, spectra) >= wanted)


def test_the_least_ranks_drop_what_a_later_rank_makes_needless() -> None:
    """The cheap rank is taken first, for its density, and the expensive one alone is enough."""
    gains, costs = {"cheap": [1.0], "dear": [9.0]}, {"cheap": 1, "dear": 10}
    assert least_ranks(gains, costs, 9.0) == {"cheap": 0, "dear": 1}
    assert least_ranks(gains, costs, 10.0) == {"cheap": 1, "dear": 1}
    assert least_ranks(gains, costs, 10.5) is None
