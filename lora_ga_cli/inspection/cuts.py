"""Cutting a change of a weight to a lower rank, as it is or as the inputs of its layer see it. In float64.

For a change ΔW (d_out, d_in) and the second moment ``C = E[x xᵀ]`` of the layer's inputs x, the mean squared error of
what the cut change X adds to the output is

    ``E ‖(ΔW - X) x‖² = ‖(ΔW - X) C^½‖²``.

Since ``X C^½`` has at most the rank of X, it is at least the sum of the squared singular values of ``ΔW C^½`` after the
first r (Eckart and Young), and the projection

    ``X = Y Yᵀ ΔW``, with Y (d_out, r) the first r left singular vectors of ``ΔW C^½``,

reaches this bound. It needs no inverse of C, which may be singular, in contrast to the whitening of SVD-LLM (arXiv
2403.07378) and CorDA (arXiv 2406.05223), which give the same X where C is invertible. With ``C = I`` it is the
truncated singular value decomposition.

With ``ΔW = U S Vᵀ``, Y is U times the left singular vectors of ``S (Vᵀ C V)^½``. So of C no more is needed
than the second moment ``Vᵀ C V`` (k, k) of the inputs' coordinates ``Vᵀ x``, for a rank k of ΔW.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lora_ga_cli.inspection.changes import NOISE, Decomposed
from lora_ga_cli.lora.links import LowRank


@dataclass(frozen=True)
class Cut:
    """A change of a lower rank, and what it lost.

    Args:
        change: at most of the wanted rank, float32.
        squared_error: ``‖ΔW - X‖²``.
        squared_norm: ``‖ΔW‖²``.
        output_error: ``E ‖(ΔW - X) x‖²``; None without inputs.
        output_norm: ``E ‖ΔW x‖²``; None without inputs.
    """

    change: LowRank
    squared_error: float
    squared_norm: float
    output_error: float | None = None
    output_norm: float | None = None


def cut(change: Decomposed, rank: int, moment: Tensor | None = None, *, by_outputs: bool = False) -> Cut:
    """The best change of a lower rank.

    Args:
        change: ``ΔW = U S Vᵀ`` of rank k.
        moment: ``Vᵀ C V`` (k, k), float64, with which the error of the outputs is computed.
        by_outputs: make this error the smallest, and not that of the weight.
    """
    size = min(rank, change.rank)
    turn = torch.eye(change.rank, size, dtype=torch.float64)
    if by_outputs:
        assert moment is not None
        turn = _leading(change, moment, size)
    coordinates = turn.T * change.singular  # (size, k), of X in the basis Vᵀ
    lost = torch.diag(change.singular) - turn @ coordinates  # (k, k)
    # the same length for both factors, as training would have it
    root = coordinates.norm(dim=1).sqrt().clamp(min=torch.finfo(torch.float64).tiny)
    left, right = (change.left @ turn) * root, coordinates / root[:, None] @ change.right.T
    found = Cut(
        LowRank(left.float().contiguous(), right.float().contiguous()),
        float(lost.square().sum()),
        float(change.singular.square().sum()),
    )
    if moment is None:
        return found
    whole = torch.diag(change.singular)
    return Cut(found.change, found.squared_error, found.squared_norm, _expected(lost, moment), _expected(whole, moment))


def _leading(change: Decomposed, moment: Tensor, size: int) -> Tensor:
    """The first left singular vectors (k, size) of ``S (Vᵀ C V)^½``.

    Where the inputs have fewer directions than that, the others are the best for the weight.
    """
    squares, vectors = torch.linalg.eigh(moment)
    weighted = change.singular[:, None] * (vectors * squares.clamp(min=0).sqrt())  # (k, k), up to a rotation of inputs
    u, singular, _ = torch.linalg.svd(weighted)
    seen = int((singular > NOISE * singular[0]).sum()) if change.rank else 0
    if seen >= size:
        return u[:, :size]
    first = u[:, :seen]
    rest = torch.diag(change.singular) - first @ (first.T * change.singular)
    return torch.cat([first, torch.linalg.svd(rest).U[:, : size - seen]], dim=1)


def _expected(coordinates: Tensor, moment: Tensor) -> float:
    """``E ‖M Vᵀ x‖²`` for M (n, k)."""
    return max(float(((coordinates @ moment) * coordinates).sum()), 0.0)
