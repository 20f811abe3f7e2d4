"""What an adapter changes of a weight: its singular values, ranks and norm, and which subspaces it lies in.

A change ``ΔW = left @ right`` of low rank is decomposed from its factors, by QR decompositions of both and an SVD of
the small product between them, so that ΔW itself (d_out, d_in) is never formed. Everything is in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_ga_cli.lora.links import LowRank

NOISE = 1e-7
"""Singular values below this share of the largest are rounding of float32 factors: such directions say nothing."""


@dataclass(frozen=True)
class Decomposed:
    """The singular value decomposition of a change, ``ΔW = left · diag(singular) · rightᵀ``, in float64.

    Args:
        left: (d_out, k), orthonormal columns.
        singular: (k,), descending and positive; k is the rank of ΔW.
        right: (d_in, k), orthonormal columns.
    """

    left: Tensor
    singular: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        return self.singular.numel()

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in)."""
        return self.left.shape[0], self.right.shape[0]

    @property
    def norm(self) -> float:
        """‖ΔW‖ (Frobenius)."""
        return float(self.singular.norm())

    @property
    def effective_rank(self) -> float:
        """The exponential of the entropy of the singular values over their sum (Roy and Vetterli 2007, "The effective
        rank"): between 1 and the rank; 0 for a change of zero."""
        if not self.rank:
            return 0.0
        shares = self.singular / self.singular.sum()
        return float((-(shares * shares.log()).sum()).exp())

    @property
    def stable_rank(self) -> float:
        """``‖ΔW‖² / σ_1²``: between 1 and the rank; 0 for a change of zero."""
        return float((self.singular / self.singular[0]).square().sum()) if self.rank else 0.0

    def cut_error(self, rank: int) -> float:
        """The relative error (Frobenius norm) of the best approximation of a lower rank (Eckart and Young)."""
        return float(self.singular[rank:].norm() / self.singular.norm()) if self.rank else 0.0


def decompose(change: LowRank) -> Decomposed:
    """The singular value decomposition of a change, without directions that are only rounding (`NOISE`)."""
    left_q, left_r = torch.linalg.qr(change.left.double())  # (d_out, k), (k, rank)
    right_q, right_r = torch.linalg.qr(change.right.double().T)  # (d_in, k), (k, rank)
    u, singular, vh = torch.linalg.svd(left_r @ right_r.T, full_matrices=False)
    kept = int((singular > NOISE * singular[:1]).sum())
    return Decomposed(left_q @ u[:, :kept], singular[:kept], right_q @ vh[:kept].T)


@dataclass(frozen=True)
class Shares:
    """The shares of ``‖ΔW‖²``, from 0 to 1, that lie in a column space with orthonormal basis L and a row space with
    orthonormal basis R.

    Args:
        left: ``‖L Lᵀ ΔW‖²``: outputs in the column space.
        right: ``‖ΔW R Rᵀ‖²``: inputs in the row space.
        both: ``‖L Lᵀ ΔW R Rᵀ‖²``.
        either: what lies in one of them or in both, ``left + right - both``. It is 1 for every sum
            ``L X + Y Rᵀ``, such as the first step of an adapter that begins with factors that span L and R.
    """

    left: float
    right: float
    both: float
    either: float


def shares_within(change: Decomposed, left: Tensor, right: Tensor) -> Shares | None:
    """How much of a change lies in two subspaces; None for a change of zero.

    Args:
        left: (d_out, m), whose columns span the column space; they need not be orthonormal.
        right: (d_in, n), whose columns span the row space.
    """
    if not change.rank:
        return None
    total = change.singular.square().sum()
    outputs = _orthonormal(left).T @ change.left  # (m, k)
    inputs = _orthonormal(right).T @ change.right  # (n, k)
    in_left = (outputs * change.singular).square().sum() / total
    in_right = (inputs * change.singular).square().sum() / total
    in_both = ((outputs * change.singular) @ inputs.T).square().sum() / total
    return Shares(float(in_left), float(in_right), float(in_both), float(in_left + in_right - in_both))


def cosine(first: LowRank, second: LowRank) -> float | None:
    """The cosine between two changes, ``⟨ΔW, ΔW'⟩ / (‖ΔW‖ ‖ΔW'‖)``, from their factors; None if one of them is zero.

    ``⟨L R, L' R'⟩ = Σ (Lᵀ L') ⊙ (R R'ᵀ)``.
    """
    norms = decompose(first).norm * decompose(second).norm
    if not norms:
        return None
    lefts = first.left.double().T @ second.left.double()
    rights = first.right.double() @ second.right.double().T
    return float((lefts * rights).sum()) / norms


def principal_angles(first: Tensor, second: Tensor) -> Tensor:
    """The principal angles between two subspaces in radians, ascending: as many as the smaller one has dimensions.

    An angle comes from its cosine or from its sine, whichever is determined better (Björck and Golub 1973).

    Args:
        first: (d, m), orthonormal columns.
        second: (d, n), orthonormal columns.
    """
    if first.shape[1] < second.shape[1]:
        first, second = second, first
    inner = first.T @ second
    cosines = torch.linalg.svdvals(inner).clamp(max=1.0)
    sines = torch.linalg.svdvals(second - first @ inner).flip(0).clamp(max=1.0)
    return torch.where(cosines.square() < 0.5, cosines.acos(), sines[: len(cosines)].asin())


def cut_errors(change: Decomposed, ranks: Sequence[int]) -> dict[str, float]:
    """`Decomposed.cut_error` by rank."""
    return {str(rank): change.cut_error(rank) for rank in ranks}


def _orthonormal(vectors: Tensor) -> Tensor:
    """An orthonormal basis (d, m) of the space that columns span, without directions that are only rounding."""
    u, singular, _ = torch.linalg.svd(vectors.double(), full_matrices=False)
    return u[:, singular > NOISE * singular[:1]]
