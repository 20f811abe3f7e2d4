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
"""By how much the first-order estimate of what a direction misses is raised: it leaves out how close the next singular
values are. Real losses were between 1 and 2.2 times the first-order estimate (MiniLM on CoLA, the bundled base)."""


@dataclass(frozen=True)
class Factors:
    """The leading part of a gradient G of shape (d_out, d_in): ``G ≈ left · diag(singular) · rightᵀ``.

    Args:
        left: (d_out, k), orthonormal columns.
        singular: (k,), descending.
        right: (d_in, k), orthonormal columns.
        norm: Frobenius norm of the whole G, in units of loss per unit of weight.
        missed: (k,), the part of ``‖G‖²`` that a step along each direction misses, as far as it is known
            (`probe_errors`); None for an exact decomposition.
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
        """Of the transpose."""
        left, right = fix_signs(self.right, self.left)
        return Factors(left, self.singular, right, self.norm, self.missed)

    def alignment(self, k: int) -> float:
        """How much of the best step along ``k`` directions these ``k`` follow, from 0 to 1; 1 for exact ones.

        The cosine between step and gradient, over the cosine of the best step of that rank; a cautious estimate, as
        `CAUTION` says.
        """
        if self.missed is None:
            return 1.0
        followed = float(self.singular[:k].double().square().sum())
        missed = CAUTION * float(self.missed[:k].double().sum())
        return (followed / (followed + missed)) ** 0.5 if followed else 0.0

    def energy(self, k: int) -> float:
        """Share of ``‖G‖²`` that the first ``k`` singular values hold, from 0 to 1."""
        return min(float(self.singular[:k].double().square().sum()) / self.norm**2, 1.0)


def truncated_svd(grad: Tensor, k: int) -> Factors:
    """The ``k`` leading singular triplets of a gradient, on the CPU in float32.

    Small matrices are decomposed in float64 by LAPACK or cuSOLVER. Large ones by subspace iteration from a seeded
    Gaussian start (Halko, Martinsson, Tropp 2011, arXiv 0909.4061, algorithm 4.4) with `POWER_ITERATIONS` rounds,
    enough for the captured energy to agree with the full decomposition to about 1e-6.

    Args:
        grad: (d_out, d_in), float32 or float64.
        k: how many; reduced to the smaller side of ``grad``.
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

    A decomposition leaves the sign of each pair open; a library or a device may choose either. With the sign fixed,
    the same gradient gives the same factors.

    Args:
        left: (…, d_out, k).
        right: (…, d_in, k).
    """
    largest = left.abs().argmax(dim=-2, keepdim=True)
    signs = torch.where(left.gather(-2, largest) < 0, -1.0, 1.0).to(left.dtype)
    return left * signs, right * signs


def complete(vectors: Tensor) -> Tensor:
    """Replaces columns of zeros, which a gradient of low rank leaves, by directions orthogonal to all others.

    A start needs directions, and along these the gradient is zero, so any do; a full decomposition gives some too.

    Args:
        vectors: (L, d, k), columns orthonormal or zero, k ≤ d.
    """
    empty = (vectors == 0).all(1)  # (L, k)
    for place in empty.any(1).nonzero().flatten().tolist():
        known, missing = vectors[place], empty[place]
        generator = torch.Generator().manual_seed(0)
        fresh = torch.randn(len(known), int(missing.sum()), generator=generator).to(known)
        for _ in range(2):  # once more, for what rounding leaves
            fresh, _ = torch.linalg.qr(fresh - known @ (known.T @ fresh))
        known[:, missing] = fresh
    return vectors


def _leading_range(grad: Tensor, size: int) -> Tensor:
    """An orthonormal basis (d_out, size) of the dominant column space of ``grad`` (d_out, d_in)."""
    size = min(size, *grad.shape)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(grad.shape[1], size, generator=generator).to(grad)
    basis, _ = torch.linalg.qr(grad @ start)
    for _ in range(POWER_ITERATIONS):
        other, _ = torch.linalg.qr(grad.T @ basis)
        basis, _ = torch.linalg.qr(grad @ other)
    return basis
