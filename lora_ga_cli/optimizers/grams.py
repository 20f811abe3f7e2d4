"""Powers of the Gram matrices XᵀX (rank, rank) of LoRA's factors, and the polar factor, for many layers at once.

All functions take stacks of matrices (..., d, rank). A Gram matrix and its eigenvectors are computed in float64: it has
the squared condition number of X, and it is so small that this costs nothing. One call decomposes the matrices of all
layers of a stack, where a QR decomposition of each tall factor would launch its own kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CUTOFF = 1e-14
"""Eigenvalues of XᵀX at or below this share of the largest one count as zero. They are singular values of X below 1e-7
of the largest one, which is the rounding of float32."""


@dataclass(frozen=True)
class Gram:
    """The eigendecomposition of Gram matrices.

    Args:
        values: eigenvalues (..., rank), ascending, none below zero; float64.
        vectors: eigenvectors in columns (..., rank, rank); float64.
    """

    values: Tensor
    vectors: Tensor

    def power(self, exponent: float, damping: float = 0.0) -> Tensor:
        """``(XᵀX + δI)^exponent`` (..., rank, rank) in float64, with a pseudo-inverse where it is singular.

        Args:
            exponent: -1 and -1/2 invert; directions without an eigenvalue then stay zero.
            damping: δ relative to the mean eigenvalue, so that it does not depend on the size of X. If X is zero, the
                result is zero.
        """
        values = self.values + damping * self.values.mean(-1, keepdim=True)
        kept = values > CUTOFF * values.amax(-1, keepdim=True)
        powers = torch.where(kept, values, 1.0).pow(exponent) * kept
        return (self.vectors * powers.unsqueeze(-2)) @ self.vectors.mT

    def shifted(self, shift: float) -> Gram:
        """The decomposition of ``XᵀX + shift·I``."""
        return Gram(self.values + shift, self.vectors)


def gram(x: Tensor) -> Gram:
    """The Gram matrices ``XᵀX`` of the columns of X (..., d, rank), decomposed."""
    x = x.to(_wide(x))
    return of_symmetric(x.mT @ x)


def of_symmetric(matrix: Tensor) -> Gram:
    """The decomposition of symmetric matrices (..., rank, rank) without negative eigenvalues, up to rounding."""
    values, vectors = torch.linalg.eigh(matrix.to(_wide(matrix)))
    return Gram(values.clamp(min=0), vectors)


def polar(x: Tensor) -> Tensor:
    """The polar factor ``X (XᵀX)^-½`` (..., d, rank), which is ``U Vᵀ`` of the singular value decomposition of X.

    (Muon calls it the matrix sign.) Directions in which X is zero stay zero, so the factor of a zero matrix is zero.
    """
    return x @ gram(x).power(-0.5).to(x.dtype)


def sylvester(left: Gram, right: Gram, constant: Tensor) -> Tensor:
    """The X (..., rank, rank) that solves ``left·X + X·right = constant``; zero where both have no eigenvalue."""
    sums = left.values.unsqueeze(-1) + right.values.unsqueeze(-2)
    turned = left.vectors.mT @ constant.to(left.vectors.dtype) @ right.vectors
    solved = torch.where(sums > 0, turned / torch.where(sums > 0, sums, 1.0), 0.0)
    return left.vectors @ solved @ right.vectors.mT


def _wide(x: Tensor) -> torch.dtype:
    """float64, except on devices that do not have it."""
    return torch.float32 if x.device.type == "mps" else torch.float64
