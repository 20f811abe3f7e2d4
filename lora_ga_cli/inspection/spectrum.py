"""The spectrum of a gradient, and how much of it ranks can follow. Pure functions on the kept singular triplets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lora_ga_cli.gradient.factors import Factors

SHOWN_VALUES = 64
"""Singular values of a layer that are reported."""


def captured(factors: Factors, vectors: int) -> list[float]:
    """``Σ_{i ≤ vectors·r} σ_i²`` for r = 0, 1, 2, … as long as the kept singular values suffice, in units of ``‖G‖²``.

    Entry r is the square of the Frobenius norm of what r ranks follow, each of them ``vectors`` singular directions.
    The square of the whole gradient bounds it, since rounding could lead above.

    Args:
        vectors: 2 for LoRA-GA, whose first step is along the first 2·rank directions; 1 for the best approximation of
            the gradient by a matrix of this rank.
    """
    squares = factors.singular.double().square().cumsum(0).tolist()
    whole = factors.norm**2
    return [0.0, *(min(value, whole) for value in squares[vectors - 1 :: vectors])]


def energy(factors: Factors, vectors: int, rank: int) -> float:
    """The share of ``‖G‖²`` in the first ``vectors · rank`` singular directions that are kept, from 0 to 1; 0 for a
    gradient of zero."""
    values = captured(factors, vectors)
    return values[min(rank, len(values) - 1)] / factors.norm**2 if factors.norm else 0.0


def shown_ranks(largest: int) -> list[int]:
    """Powers of two up to a rank, and this rank."""
    powers = [2**exponent for exponent in range(largest.bit_length()) if 2**exponent < largest]
    return [*powers, largest] if largest else []


def described(layers: Mapping[str, Factors], vectors: int, ranks: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Each layer's shape, norm, leading singular values, captured energy and alignment by rank, as plain data."""
    return {
        name: {
            "shape": list(factors.shape),
            "norm": factors.norm,
            "singular": factors.singular[:SHOWN_VALUES].double().tolist(),
            "energy": {str(rank): energy(factors, vectors, rank) for rank in ranks},
            "alignment": {str(rank): factors.alignment(vectors * rank) for rank in ranks},
        }
        for name, factors in layers.items()
    }
