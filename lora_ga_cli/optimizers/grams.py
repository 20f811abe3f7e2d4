"""Powers of the Gram matrices XᵀX (rank, rank) of LoRA's factors, and the polar factor, for many layers at once.

A Gram matrix and its eigenvectors are computed in float64: it has the squared condition number of X, and it is so small
that this costs little. `grams` and `decompose` take the matrices of all layers, and decompose those of one rank in one
call; a QR decomposition of every tall factor would launch kernels for each.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CUTOFF = 1e-14
"""Eigenvalues of XᵀX at or below this share of the largest one count as zero. They are singular values of X below 1e-7
of the largest one, which is the rounding of float32."""
LARGEST_IN_BATCHES = 32
"""The largest rank of which torch decomposes many matrices at once on a GPU. It takes larger ones one after another, so
they are decomposed on the CPU."""


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


def of_symmetric(matrix: Tensor) -> Gram:
    """The decomposition of symmetric matrices (..., rank, rank) without negative eigenvalues, up to rounding."""
    matrix = matrix.to(_wide(matrix))
    one_by_one = matrix.is_cuda and matrix.shape[-1] > LARGEST_IN_BATCHES
    values, vectors = torch.linalg.eigh(matrix.cpu() if one_by_one else matrix)
    return Gram(values.clamp(min=0).to(matrix.device), vectors.to(matrix.device))


def grams(stacks: Sequence[Tensor]) -> list[Gram]:
    """The Gram matrices of the columns of several stacks X (layers, d, rank), decomposed."""
    wide = [x.to(_wide(x)) for x in stacks]
    return decompose([x.mT @ x for x in wide])


def decompose(stacks: Sequence[Tensor]) -> list[Gram]:
    """As `of_symmetric`, for several stacks (layers, rank, rank) at once."""
    together: defaultdict[tuple[int, torch.device], list[int]] = defaultdict(list)
    for index, matrices in enumerate(stacks):
        together[matrices.shape[-1], matrices.device].append(index)
    found: dict[int, Gram] = {}
    for indices in together.values():
        of_rank = of_symmetric(torch.cat([stacks[index] for index in indices]))
        sizes = [len(stacks[index]) for index in indices]
        parts = zip(indices, of_rank.values.split(sizes), of_rank.vectors.split(sizes), strict=True)
        found |= {index: Gram(values, vectors) for index, values, vectors in parts}
    return [found[index] for index in range(len(stacks))]


def polars(stacks: Sequence[Tensor]) -> list[Tensor]:
    """The polar factors ``X (XᵀX)^-½`` (layers, d, rank), which are ``U Vᵀ`` of the singular value decomposition of X.

    (Muon calls it the matrix sign.) Directions in which X is zero stay zero, so the factor of a zero matrix is zero.
    """
    return [x @ of_x.power(-0.5).to(x.dtype) for x, of_x in zip(stacks, grams(stacks), strict=True)]


def sylvester(left: Gram, right: Gram, constant: Tensor) -> Tensor:
    """The X (..., rank, rank) that solves ``left·X + X·right = constant``; zero where both have no eigenvalue."""
    sums = left.values.unsqueeze(-1) + right.values.unsqueeze(-2)
    turned = left.vectors.mT @ constant.to(left.vectors.dtype) @ right.vectors
    solved = torch.where(sums > 0, turned / torch.where(sums > 0, sums, 1.0), 0.0)
    return left.vectors @ solved @ right.vectors.mT


def _wide(x: Tensor) -> torch.dtype:
    """float64, except on devices that do not have it."""
    return torch.float32 if x.device.type == "mps" else torch.float64
