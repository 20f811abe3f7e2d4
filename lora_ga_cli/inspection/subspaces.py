"""How far the subspaces of two adapters, and of an adapter and its base, agree (LoRA, arXiv 2106.09685, section 7).

All in float64, from orthonormal bases whose columns are ordered by their singular values.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lora_ga_cli.inspection.changes import Decomposed


def similarities(first: Tensor, second: Tensor) -> Tensor:
    """LoRA's normalized similarity of subspaces for every pair of dimensions (equation 4),

        ``φ(i, j) = ‖U_iᵀ U'_j‖² / min(i, j)``,

    where U_i are the first i columns of one basis and U'_j the first j of the other. It is 1 where one subspace
    contains the other and 0 where they are orthogonal.

    Args:
        first: (d, m), orthonormal columns.
        second: (d, n), orthonormal columns.

    Returns:
        (m, n): φ(i, j) at [i - 1, j - 1].
    """
    squares = (first.double().T @ second.double()).square()
    sums = squares.cumsum(0).cumsum(1)
    i = torch.arange(1, sums.shape[0] + 1, device=sums.device)
    j = torch.arange(1, sums.shape[1] + 1, device=sums.device)
    return sums / torch.minimum(i[:, None], j[None, :])


def expected_by_chance(i: int, j: int, dimension: int) -> float:
    """The expected φ(i, j) of two subspaces that are drawn at random: ``max(i, j) / d``."""
    return max(i, j) / dimension


def random_basis(dimension: int, columns: int, seed: int) -> Tensor:
    """An orthonormal basis (dimension, columns) of a subspace that is drawn at random, all equally likely."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(dimension, columns, generator=generator, dtype=torch.float64))
    return basis


@dataclass(frozen=True)
class Amplification:
    """What a change amplifies of the weight that it changes (LoRA, section 7.3, table 7).

    ``‖Uᵀ W V‖`` is how much of W lies in a pair of subspaces, with the first r left and right singular vectors U and V
    of three matrices.

    Args:
        along_change: with the singular vectors of ΔW.
        along_weight: with those of W itself: ``sqrt(σ_1² + … + σ_r²)``.
        along_random: with bases drawn at random.
        weight: ‖W‖ (Frobenius).
        change: ‖ΔW‖ (Frobenius).
    """

    along_change: float
    along_weight: float
    along_random: float
    weight: float
    change: float

    @property
    def factor(self) -> float | None:
        """``‖ΔW‖ / ‖Uᵀ W V‖`` with the singular vectors of ΔW; None where W has nothing there."""
        return self.change / self.along_change if self.along_change > 0 else None


def amplification(change: Decomposed, weight: Tensor, singular: Tensor, seed: int = 0) -> Amplification:
    """Table 7 of LoRA for one layer, with r the rank of ΔW.

    Args:
        change: on the device of the weight.
        weight: W (d_out, d_in), float64.
        singular: all singular values of W, descending.
        seed: of the random bases.
    """
    d_out, d_in = change.shape
    random_left = random_basis(d_out, change.rank, seed).to(weight)
    random_right = random_basis(d_in, change.rank, seed + 1).to(weight)
    return Amplification(
        along_change=float((change.left.T @ weight @ change.right).norm()),
        along_weight=float(singular[: change.rank].norm()),
        along_random=float((random_left.T @ weight @ random_right).norm()),
        weight=float(singular.norm()),
        change=change.norm,
    )
