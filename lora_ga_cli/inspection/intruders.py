"""Intruder dimensions (Shuttleworth et al., "LoRA vs Full Fine-tuning: An Illusion of Equivalence", arXiv 2410.21228).

An intruder dimension is a leading singular vector of the tuned weight ``W + ΔW`` that resembles no singular vector of
the pre-trained W: its largest absolute cosine to any of them is below a threshold.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LEADING = 10
"""How many singular vectors of the tuned weight are looked at: k of the authors' code, and of PEFT's function."""
THRESHOLD = 0.5
"""ε: the cosine below which a vector is an intruder, as in PEFT's function `reduce_intruder_dimension`."""
RESOLVED = 1e-7
"""Singular values of W below this share of the largest are rounding, and so are their vectors."""


@dataclass(frozen=True)
class Intruders:
    """What was found in one layer.

    Args:
        largest_cosines: (k,), of each leading left singular vector of the tuned weight with the singular vector of W
            that it resembles most, in the order of the singular values.
        threshold: ε.
    """

    largest_cosines: Tensor
    threshold: float

    @property
    def count(self) -> int:
        """How many of them are intruders."""
        return int((self.largest_cosines < self.threshold).sum())

    @property
    def of(self) -> int:
        """How many were looked at."""
        return self.largest_cosines.numel()


def intruders(left: Tensor, tuned: Tensor, leading: int = LEADING, threshold: float = THRESHOLD) -> Intruders:
    """The intruder dimensions of a layer.

    Args:
        left: (d_out, k), all left singular vectors of W, float64.
        tuned: W + ΔW (d_out, d_in), float64, on the same device.
    """
    leading = min(leading, *tuned.shape)
    vectors, _ = left_vectors(tuned)
    cosines = (vectors[:, :leading].T @ left).abs().amax(1).clamp(max=1.0)
    return Intruders(cosines.cpu(), threshold)


def left_vectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """All left singular vectors of a matrix, and all its singular values, both exact in float64.

    They come from the eigenvectors of ``M Mᵀ`` or ``Mᵀ M``, whichever is smaller, which takes a third of the time of a
    singular value decomposition on a CPU, and less on a GPU. Vectors whose singular value is not `RESOLVED` are left
    out.

    Args:
        matrix: M (d_out, d_in), float64.

    Returns:
        (d_out, k), orthonormal columns, and (min(d_out, d_in),), descending.
    """
    d_out, d_in = matrix.shape
    squares, vectors = torch.linalg.eigh(matrix @ matrix.T if d_out <= d_in else matrix.T @ matrix)
    singular = squares.clamp(min=0).sqrt().flip(0)
    kept = int((singular > RESOLVED * singular[:1]).sum())
    vectors = vectors.flip(1)[:, :kept]
    return (vectors if d_out <= d_in else matrix @ vectors / singular[:kept]), singular
