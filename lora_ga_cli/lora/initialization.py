"""LoRA-GA's initial factors (arXiv 2407.05000): pure functions, tensors in, tensors out.

For ``y = W x`` with W of shape (d_out, d_in), the adapter computes ``s · B A x`` with A of shape (rank, d_in) and B of
shape (d_out, rank). After one small gradient step from (A0, B0) the weight has moved along
``B0 B0ᵀ G + G A0ᵀ A0`` (up to ``-lr · s²``). When the columns of B0 and the rows of A0 are multiples, by one common c,
of different left and right singular vectors of G, taken from the first 2·rank, that is ``c² G_2r``, the best
approximation of the full step among matrices of rank 2·rank (theorem 3.1).
"""

from __future__ import annotations

import hashlib
import random

import torch
from torch import Tensor

from lora_ga_cli.errors import GradientError
from lora_ga_cli.gradient.factors import Factors, truncated_svd


def direction_indices(direction: str, rank: int, seed: int = 0) -> tuple[list[int], list[int]]:
    """Which of the first ``2·rank`` singular vectors initialize A (right ones) and B (left ones).

    ``ArB2r``: A takes the first ``rank``, B the next. ``A2rBr``: the reverse. ``ArBr``: they alternate, B taking
    0, 2, 4, … as the authors' code does. ``random``: a seeded draw of ``rank`` for A, and the rest for B.
    Every choice covers each of the 2·rank directions once, so all have the same first-step alignment.

    Returns:
        (indices for A, indices for B), ``rank`` each.
    """
    both = list(range(2 * rank))
    if direction == "random":
        random.Random(seed).shuffle(both)
    choices = {
        "ArB2r": (both[:rank], both[rank:]),
        "A2rBr": (both[rank:], both[:rank]),
        "ArBr": (both[1::2], both[0::2]),
        "random": (sorted(both[:rank]), sorted(both[rank:])),
    }
    return choices[direction]


def scale_factor(
    scale: str, *, d_out: int, scaling: float, gamma: float, rank: int, weight: Tensor | None = None
) -> float:
    """The number c that both initial factors are multiplied by.

    ``stable``: ``c = d_out^(1/4) / sqrt(gamma)`` (section 3.3: forward and backward stay of order one as d_out grows).
    ``unit``: ``c = 1``.
    ``gd``: ``c = 1 / s``, so that the first step of plain gradient descent moves the weight by ``-lr · G_2r``.
    ``weight_svd``: ``c = mean_i sqrt(σ_i(W) / s)`` over the first ``rank`` singular values of W.

    Args:
        scaling: the adapter's s, ``alpha / sqrt(rank)`` or ``alpha / rank``.
        weight: (d_out, d_in), needed by ``weight_svd`` only.
    """
    if scale == "stable":
        return d_out**0.25 / gamma**0.5
    if scale == "gd":
        return 1.0 / scaling
    if scale == "weight_svd":
        assert weight is not None
        singular = truncated_svd(weight.float(), rank).singular.double()
        return float((singular / scaling).sqrt().mean())
    return 1.0


def initial_factors(
    factors: Factors, rank: int, *, direction: str = "ArB2r", factor: float = 1.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """A0 and B0 from a gradient's factors.

    Args:
        factors: at least ``2·rank`` singular triplets of G (d_out, d_in).
        factor: c of `scale_factor`.
        seed: the seed of ``direction=random``.

    Returns:
        A0 (rank, d_in) and B0 (d_out, rank), float32 on the CPU.

    Raises:
        GradientError: the factors hold fewer than ``2·rank`` singular vectors.
    """
    if factors.capacity < 2 * rank:
        raise GradientError(f"rank={rank} needs {2 * rank} singular vectors, but only {factors.capacity} are stored")
    for_a, for_b = direction_indices(direction, rank, seed)
    left, right = factors.left.float(), factors.right.float()
    return (factor * right[:, for_a].T).contiguous(), (factor * left[:, for_b]).contiguous()


def random_factors(shape: tuple[int, int], rank: int, *, factor: float, seed: int) -> tuple[Tensor, Tensor]:
    """A0 and B0 drawn from normal distributions, the ablation of LoRA-GA's directions.

    Variances are ``1 / d_out`` for A0 and ``1 / d_in`` for B0, as in the paper's table of initializations.

    Args:
        shape: (d_out, d_in) of the weight.
        factor: c of `scale_factor`.

    Returns:
        A0 (rank, d_in) and B0 (d_out, rank), float32 on the CPU.
    """
    d_out, d_in = shape
    generator = torch.Generator().manual_seed(seed & (2**63 - 1))
    a0 = torch.randn(rank, d_in, generator=generator) * (factor / d_out**0.5)
    b0 = torch.randn(d_out, rank, generator=generator) * (factor / d_in**0.5)
    return a0, b0


def layer_seed(seed: int, name: str) -> int:
    """A seed for one layer, the same in every process and on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}|{name}".encode()).digest()[:8], "big")


def product(b0: Tensor, a0: Tensor, scaling: float) -> Tensor:
    """``s · B0 A0`` of shape (d_out, d_in), computed in float64 and rounded once to float32.

    Float64, and on the CPU where the factors are kept, so that a resumed run stands on the same base to the bit.
    """
    return (scaling * (b0.double() @ a0.double())).float()


def first_step_alignment(grad: Tensor, a0: Tensor, b0: Tensor, best: float | None = None) -> float:
    """Cosine of the first step's update of the weight with G, over the best that rank 2·rank allows; 1 is optimal.

    Args:
        grad: (d_out, d_in), the full gradient.
        a0: (rank, d_in).
        b0: (d_out, rank).
        best: ``‖G_2r‖ / ‖G‖``, if it is known; else it is computed, in float64.
    """
    grad = grad.double() if best is None else grad
    a0, b0 = a0.to(grad), b0.to(grad)
    update = b0 @ (b0.T @ grad) + (grad @ a0.T) @ a0
    cosine = (update * grad).sum() / (update.norm() * grad.norm())
    if best is None:
        singular = torch.linalg.svdvals(grad)
        best = float(singular[: 2 * a0.shape[0]].norm() / singular.norm())
    return float(cosine / best)
