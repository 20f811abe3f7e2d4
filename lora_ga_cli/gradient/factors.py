"""Truncated singular value decompositions of gradients, with fixed signs. Pure functions on tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DIRECT_SIDE = 1024
"""Matrices whose smaller side is at most this are decomposed directly, larger ones by subspace iteration."""
OVERSAMPLING = 32
POWER_ITERATIONS = 8
CAUTION = 2.0
"""Factor on the first-order estimate of what a direction misses, which ignores how close the next singular values are.
Real losses were between 1 and 2.2 times the first-order estimate (MiniLM on CoLA, the bundled base)."""


@dataclass(frozen=True)
class Factors:
    """The leading part of a gradient G of shape (d_out, d_in): ``G ≈ left · diag(singular) · rightᵀ``.

    Args:
        left: (d_out, k), orthonormal columns.
        singular: (k,), descending.
        right: (d_in, k), orthonormal columns.
        norm: Frobenius norm of the full G, in units of loss per unit of weight.
        missed: (k,), an estimate of the part of ``‖G‖²`` that a step along each direction misses (`probe_errors`);
            None for an exact decomposition.
    """

    left: Tensor
    singular: Tensor
    right: Tensor
    norm: float
    missed: Tensor | None = None

    @property
    def capacity(self) -> int:
        return self.singular.numel()

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in)."""
        return self.left.shape[0], self.right.shape[0]

    def transposed(self) -> Factors:
        """The factors of the transpose of G."""
        left, right = fix_signs(self.right, self.left)
        return Factors(left, self.singular, right, self.norm, self.missed)

    def alignment(self, k: int) -> float:
        """How well a step along the first ``k`` directions follows the best step of that rank, from 0 to 1.

        This is the cosine between step and gradient, over that of the best step. It is 1 for an exact decomposition,
        else a cautious estimate (`CAUTION`).
        """
        if self.missed is None:
            return 1.0
        followed = float(self.singular[:k].double().square().sum())
        missed = CAUTION * float(self.missed[:k].double().sum())
        return (followed / (followed + missed)) ** 0.5 if followed else 0.0

    def energy(self, k: int) -> float:
        """The share of ``‖G‖²`` in the first ``k`` singular values, from 0 to 1."""
        return min(float(self.singular[:k].double().square().sum()) / self.norm**2, 1.0)


def truncated_svd(grad: Tensor, k: int) -> Factors:
    """The ``k`` leading singular triplets of a gradient, on the CPU in float32.

    Small matrices are decomposed in float64 by LAPACK or cuSOLVER. Large ones are decomposed by subspace iteration from
    a seeded Gaussian matrix (Halko, Martinsson, Tropp 2011, arXiv 0909.4061, algorithm 4.4). `POWER_ITERATIONS`
    iterations are enough for the captured energy to agree with the full decomposition to about 1e-6.

    Args:
        grad: (d_out, d_in), float32 or float64.
        k: singular triplets wanted; at most the smaller side of ``grad``.
    """
    k = min(k, *grad.shape)
    if grad.device.type == "mps":
        grad = grad.cpu()  # which has float64
    if min(grad.shape) <= DIRECT_SIDE:
        left, singular, right_t = torch.linalg.svd(grad.double(), full_matrices=False)
    else:
        basis = _leading_range(grad, k + OVERSAMPLING)
        inner, singular, right_t = torch.linalg.svd(basis.T @ grad, full_matrices=False)
        left = basis @ inner
    left, right = fix_signs(left[:, :k], right_t[:k].T)
    return Factors(
        left=left.float().cpu().contiguous(),
        singular=singular[:k].float().cpu(),
        right=right.float().cpu().contiguous(),
        norm=float(torch.linalg.vector_norm(grad, dtype=torch.float64)),
    )


def fix_signs(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Flips pairs of singular vectors so that the entry of largest size in each left vector is positive.

    A decomposition does not determine the sign of each pair, and libraries and devices choose differently. With fixed
    signs, the same gradient gives the same factors.

    Args:
        left: (…, d_out, k).
        right: (…, d_in, k).
    """
    largest = left.abs().argmax(dim=-2, keepdim=True)
    signs = torch.where(left.gather(-2, largest) < 0, -1.0, 1.0).to(left.dtype)
    return left * signs, right * signs


def complete(vectors: Tensor) -> Tensor:
    """Replaces columns of zeros, which a gradient of low rank leaves, by directions orthogonal to all others.

    The initialization needs directions. The gradient is zero along these, so any of them will do; a full decomposition
    gives arbitrary ones too.

    Args:
        vectors: (L, d, k), columns orthonormal or zero, k ≤ d.
    """
    empty = (vectors == 0).all(1)  # (L, k)
    for layer in empty.any(1).nonzero().flatten().tolist():
        columns, missing = vectors[layer], empty[layer]
        generator = torch.Generator().manual_seed(0)
        fresh = torch.randn(len(columns), int(missing.sum()), generator=generator).to(columns)
        for _ in range(2):  # the second time removes what rounding left
            fresh, _ = torch.linalg.qr(fresh - columns @ (columns.T @ fresh))
        columns[:, missing] = fresh
    return vectors


def _leading_range(grad: Tensor, size: int) -> Tensor:
    """An orthonormal basis (d_out, size) of the dominant column space of ``grad`` (d_out, d_in)."""
    size = min(size, *grad.shape)
    generator = torch.Generator().manual_seed(0)
    gaussian = torch.randn(grad.shape[1], size, generator=generator).to(grad)
    basis, _ = torch.linalg.qr(grad @ gaussian)
    for _ in range(POWER_ITERATIONS):
        other, _ = torch.linalg.qr(grad.T @ basis)
        basis, _ = torch.linalg.qr(grad @ other)
    return basis
