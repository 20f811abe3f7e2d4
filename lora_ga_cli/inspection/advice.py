"""Which ranks follow a wanted share of the gradient at the least parameters. Pure functions on kept singular triplets.

Everything is about the gradient before the first step, and about all layers together: the share is of ``Σ ‖G‖²`` over
the layers.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lora_ga_cli.gradient.factors import Factors
from lora_ga_cli.inspection.spectrum import captured
from lora_ga_cli.lora.allocation import factor_parameters, least_ranks
from lora_ga_cli.model.targets import configured_ranks

Layers = Mapping[str, Factors]


@dataclass(frozen=True)
class Advice:
    """The ranks that follow at least a share of ``Σ ‖G‖²``.

    Args:
        share: what was wanted.
        uniform: the least rank that does it if all layers have it; None if the kept singular values do not suffice.
        ranks: ranks by layer (or by what has one rank, see `advise`) that do it with few parameters (`least_ranks`),
            at least 1; None likewise.
        uniform_parameters: of the factors A and B of all layers.
        parameters: likewise, of ``ranks``.
        kept: the share that all kept singular values follow.
        at_least: a rank below which no uniform rank can do it, whatever was not kept.
    """

    share: float
    uniform: int | None
    ranks: dict[str, int] | None
    uniform_parameters: int | None
    parameters: int | None
    kept: float
    at_least: int


def advise(layers: Layers, share: float, vectors: int, together: Mapping[str, str] | None = None) -> Advice:
    """The ranks that follow ``share`` of ``Σ ‖G‖²``.

    Args:
        vectors: singular directions for each rank, see `spectrum.captured`.
        together: for layers that can only have one rank with others, such as the experts of one parameter, the name
            under which they get it.
    """
    groups: dict[str, list[str]] = {}
    for name in layers:
        groups.setdefault((together or {}).get(name, name), []).append(name)
    squares = {name: captured(factors, vectors) for name, factors in layers.items()}
    shapes = {name: factors.shape for name, factors in layers.items()}
    wanted = share * math.fsum(factors.norm**2 for factors in layers.values())
    uniform = next((rank for rank in range(1, _longest(squares)) if _at(squares, rank) >= wanted), None)
    gains = {group: _gains([squares[name] for name in names]) for group, names in groups.items()}
    costs = {group: sum(sum(shapes[name]) for name in names) for group, names in groups.items()}
    ranks = least_ranks(gains, costs, wanted, min_rank=1)
    return Advice(
        share=share,
        uniform=uniform,
        ranks=ranks,
        uniform_parameters=None if uniform is None else factor_parameters(dict.fromkeys(shapes, uniform), shapes),
        parameters=None if ranks is None else sum(rank * costs[group] for group, rank in ranks.items()),
        kept=_share(layers, _at(squares, _longest(squares))),
        at_least=_least_rank(layers, wanted, vectors),
    )


def followed(layers: Layers, ranks: Mapping[str, int], vectors: int) -> float:
    """The share of ``Σ ‖G‖²`` that ranks by layer follow, as far as singular values are kept."""
    squares = {name: captured(factors, vectors) for name, factors in layers.items()}
    return _share(layers, math.fsum(_value(squares[name], rank) for name, rank in ranks.items() if name in squares))


def as_pattern(ranks: Mapping[str, int], before: Mapping[str, int] | None = None) -> tuple[int, dict[str, int]]:
    """``rank`` and ``rank_pattern`` that give layers these ranks, with endings of names where they suffice.

    Args:
        before: entries of ``rank_pattern`` that may stand in the configuration already, to which these are added.

    Returns:
        The most frequent rank, and the entries for the other layers: the rank that most layers of a kind have by the
        end of their names behind the number of the block, others by their full name.

    Raises:
        TargetError: an entry of ``before`` matches none of the layers.
    """
    rank = _most_frequent(ranks.values())
    kinds: dict[str, dict[str, int]] = {}
    for name, value in ranks.items():
        kinds.setdefault(_ending(name), {})[name] = value
    pattern: dict[str, int] = {}
    for kind in sorted(kinds, key=len):
        usual = _most_frequent(kinds[kind].values())
        if configured_ranks(ranks, rank, pattern)[next(iter(kinds[kind]))] != usual:
            pattern[kind] = usual
    for present in ({}, before or {}):
        resolved = configured_ranks(ranks, rank, {**present, **pattern})
        pattern |= {name: value for name, value in ranks.items() if resolved[name] != value}
    return rank, pattern


def _ending(name: str) -> str:
    """The part of a name behind its last number: ``self_attn.q_proj``; the whole name if it ends with a number."""
    parts = name.split(".")
    behind = max((index for index, part in enumerate(parts) if part.isdigit()), default=-1) + 1
    return ".".join(parts[behind:]) or name


def _most_frequent(ranks: Iterable[int]) -> int:
    """The most frequent of some ranks, the smallest of them if there are several."""
    counts = Counter(ranks)
    return min(counts, key=lambda rank: (-counts[rank], rank))


def _gains(squares: Sequence[list[float]]) -> list[float]:
    """What each further rank follows of some layers that have one rank."""
    longest = max(map(len, squares))
    totals = [math.fsum(_value(values, rank) for values in squares) for rank in range(longest)]
    return [after - before for before, after in itertools.pairwise(totals)]


def _longest(squares: Mapping[str, list[float]]) -> int:
    return max((len(values) for values in squares.values()), default=1)


def _value(values: list[float], rank: int) -> float:
    return values[min(rank, len(values) - 1)]


def _at(squares: Mapping[str, list[float]], rank: int) -> float:
    """What a uniform rank follows; a layer that has too few singular directions for it follows what it has."""
    return math.fsum(_value(values, rank) for values in squares.values())


def _share(layers: Layers, square: float) -> float:
    whole = math.fsum(factors.norm**2 for factors in layers.values())
    return square / whole if whole else 0.0


def _least_rank(layers: Layers, wanted: float, vectors: int) -> int:
    """The least uniform rank that could follow ``wanted``: no singular value that was not kept is above the last one
    that was, and together their squares are what is left of ``‖G‖²``."""

    def bound(factors: Factors, rank: int) -> float:
        squares = factors.singular.double().square()
        count = min(vectors * rank, min(factors.shape))
        known = float(squares[:count].sum())
        further = max(count - squares.numel(), 0)
        last = float(squares[-1]) if squares.numel() else 0.0
        return min(known + further * last, factors.norm**2)

    largest = max((-(-min(factors.shape) // vectors) for factors in layers.values()), default=1)
    low, high = 1, largest
    while low < high:
        middle = (low + high) // 2
        if math.fsum(bound(factors, middle) for factors in layers.values()) >= wanted:
            high = middle
        else:
            low = middle + 1
    return low
