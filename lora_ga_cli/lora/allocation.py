"""Ranks of layers at a budget of parameters: every layer by its spectrum, or whole layers by a number for each.

One more rank of a layer of shape (d_out, d_in) costs ``d_out + d_in`` parameters: a row of A and a column of B. All
functions are pure and deterministic: equal values are decided by the order of the layers.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lora_ga_cli.errors import TargetError

Shapes = Mapping[str, tuple[int, int]]
"""(d_out, d_in) by layer."""


def factor_parameters(ranks: Mapping[str, int], shapes: Shapes) -> int:
    """How many numbers the factors A and B of layers with these ranks hold."""
    return sum(rank * sum(shapes[name]) for name, rank in ranks.items())


def allocate_by_energy(
    spectra: Mapping[str, Tensor], shapes: Shapes, budget: int, max_rank: int, min_rank: int = 0
) -> dict[str, int]:
    """Gives ranks one by one, each to the layer in which a parameter captures most of the gradient's square.

    The i-th rank of a layer captures σ_i² of ``‖G‖²`` and costs ``d_out + d_in`` parameters. The next rank always goes
    to the largest ``σ_i² / (d_out + d_in)``, as long as the budget pays for it. A layer that costs too much for the
    rest of the budget gets no more, and cheaper layers go on. So what is left in the end does not pay for another rank
    of any layer that is below its largest rank.

    How good it is: let σ_k² belong to the first rank that the budget did not pay for. The best possible choice captures
    at most what the ranks before k capture, plus the part of σ_k² that the rest of the budget could pay for (the bound
    of the fractional knapsack problem). The result therefore captures at least the best possible energy minus σ_k². It
    is the best possible choice where nothing of the budget was left at k, and where all layers have the same cost.

    Args:
        spectra: singular values of the gradient of each layer, descending. A layer gets at most as many ranks.
        shapes: (d_out, d_in) of the same layers.
        budget: how many parameters the factors of all layers may have together.
        max_rank: the largest rank of a layer.
        min_rank: the rank that every layer has before the greedy choice begins (less in a layer with fewer singular
            values).

    Returns:
        The rank of every layer that has one, in the order of ``spectra``; other layers get no adapter.

    Raises:
        TargetError: the budget does not pay for the smallest ranks, or for a single rank.
    """
    densities = {
        name: (values.double().square() / sum(shapes[name])).tolist()[:max_rank] for name, values in spectra.items()
    }
    return _greedy(densities, shapes, budget, min_rank)


def least_ranks(
    gains: Mapping[str, Sequence[float]], costs: Mapping[str, int], wanted: float, min_rank: int = 0
) -> dict[str, int] | None:
    """Ranks that together gain at least ``wanted``, with few parameters; None if all ranks there are do not.

    Ranks are added one by one, each where a parameter gains most. Then the top ranks that are not needed are removed,
    the most expensive ones first.

    How good it is: without the last rank that was added, ``wanted`` is not reached, and these ranks are the cheapest
    ones for what they gain (the bound of the fractional knapsack problem). So the result has fewer parameters than the
    best possible choice and the most expensive rank together. It is the best possible choice where all layers have the
    same cost.

    Args:
        gains: what each further rank of a layer gains, descending. A layer gets at most as many ranks.
        costs: parameters of one rank of the same layers.
        wanted: in the unit of ``gains``.
        min_rank: the rank that every layer has at least (less in a layer with fewer gains).

    Returns:
        The rank of every layer, in the order of ``gains``; 0 in layers that are not needed.
    """
    least = {name: min(min_rank, len(values)) for name, values in gains.items()}
    ranks = dict(least)
    gained = math.fsum(value for name, values in gains.items() for value in values[: ranks[name]])
    further = [
        (-value / costs[name], index, order, name)
        for order, (name, values) in enumerate(gains.items())
        for index, value in enumerate(values)
        if index >= ranks[name]
    ]
    for _, index, _, name in sorted(further):
        if gained >= wanted:
            break
        ranks[name] += 1
        gained += gains[name][index]
    if gained < wanted:
        return None
    for name in sorted(gains, key=lambda item: -costs[item]):
        while ranks[name] > least[name] and gained - gains[name][ranks[name] - 1] >= wanted:
            ranks[name] -= 1
            gained -= gains[name][ranks[name]]
    return ranks


def spread_evenly(limits: Mapping[str, int], shapes: Shapes, budget: int, min_rank: int = 0) -> dict[str, int]:
    """Ranks that are as equal as a budget allows: what `allocate_by_energy` gives if no layer is preferred.

    Args:
        limits: the largest rank of each layer.

    Returns:
        The rank of every layer that has one.

    Raises:
        TargetError: as `allocate_by_energy`.
    """
    return _greedy({name: [1.0] * limit for name, limit in limits.items()}, shapes, budget, min_rank)


def select_layers(saliency: Mapping[str, float], shapes: Shapes, rank: int, budget: int) -> dict[str, int]:
    """Gives the full rank to the layers of the largest saliency, and none to the others (HeteroLoRA, arXiv 2406.14956).

    Layers are taken in the order of their saliency, each if the rest of the budget pays for it.

    Args:
        saliency: a number for each layer; larger ones come first.
        shapes: (d_out, d_in) of the same layers.
        rank: the rank of every layer that is kept.
        budget: how many parameters the factors of all layers may have together.

    Returns:
        The rank of every layer that is kept, in the order of ``saliency``'s keys.

    Raises:
        TargetError: the budget does not pay for a single layer.
    """
    costs = {name: rank * sum(shapes[name]) for name in saliency}
    kept, left = set[str](), budget
    for name in sorted(saliency, key=lambda item: -saliency[item]):  # the sort is stable
        if costs[name] <= left:
            kept.add(name)
            left -= costs[name]
    return _adapted({name: rank if name in kept else 0 for name in saliency}, costs, budget)


def snip(weight: Tensor, left: Tensor, singular: Tensor, right: Tensor) -> float:
    """``Σ |W ⊙ G|``: the sum of what removing each weight would change the loss by, to first order.

    Args:
        weight: W (d_out, d_in).
        left: (d_out, k), of ``G ≈ left · diag(singular) · rightᵀ``.
        singular: (k,).
        right: (d_in, k).
    """
    device = weight.device
    grad = (left.to(device).float() * singular.to(device).float()) @ right.to(device).float().T
    return float((weight.float() * grad).abs().sum(dtype=torch.float64 if device.type != "mps" else torch.float32))


def _greedy(densities: Mapping[str, list[float]], shapes: Shapes, budget: int, min_rank: int) -> dict[str, int]:
    """Ranks one by one, always to the largest density that the rest of the budget pays for.

    Args:
        densities: what each further rank of a layer brings for each parameter, descending; equal ones go to the layer
            of the lower rank, and then to the earlier one.
    """
    costs = {name: sum(shapes[name]) for name in densities}
    ranks = {name: min(min_rank, len(values)) for name, values in densities.items()}
    left = budget - factor_parameters(ranks, shapes)
    if left < 0:
        raise TargetError(
            f"{budget} parameters do not pay for rank {min_rank} in every layer ({budget - left} do): use a larger "
            "budget or a smaller method.min_rank"
        )
    order = {name: index for index, name in enumerate(densities)}

    def candidate(name: str) -> tuple[float, int, int, str]:
        return -densities[name][ranks[name]], ranks[name], order[name], name

    queue = [candidate(name) for name in densities if ranks[name] < len(densities[name])]
    heapq.heapify(queue)
    while queue:
        *_, name = heapq.heappop(queue)
        if costs[name] > left:
            continue  # no later rank of this layer is cheaper
        ranks[name] += 1
        left -= costs[name]
        if ranks[name] < len(densities[name]):
            heapq.heappush(queue, candidate(name))
    return _adapted(ranks, costs, budget)


def _adapted(ranks: Mapping[str, int], costs: Mapping[str, int], budget: int) -> dict[str, int]:
    """The layers that have a rank."""
    adapted = {name: rank for name, rank in ranks.items() if rank > 0}
    if not adapted:
        cheapest = min(costs.values(), default=0)
        raise TargetError(
            f"a budget of {budget} parameters pays for no layer: the cheapest one costs {cheapest}, so raise "
            "method.rank_budget or method.budget_share"
        )
    return adapted
