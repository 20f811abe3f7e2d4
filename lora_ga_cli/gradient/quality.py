"""What a sketch missed, measured by random vectors that took no part in it."""

from __future__ import annotations

from torch import Tensor


def probe_errors(
    triplets: tuple[Tensor, Tensor, Tensor], tests: tuple[Tensor, Tensor], seen: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Estimates where the error ``E = G - U S Vᵀ`` lies.

    For a Gaussian ω independent of E, ``|uᵀ E ω|²`` and ``|E ω|²`` have the expectations ``‖uᵀ E‖²`` and ``‖E‖²``
    (Tropp, Yurtsever, Udell, Cevher 2019, arXiv 1902.08651, section 6). Each is averaged over p vectors.

    A direction with triplet (u, σ, v) misses energy: u turns towards ``E v`` and v towards ``Eᵀ u``, and to first order
    a step along them follows ``‖E v‖²`` or ``‖Eᵀ u‖²`` less of the gradient than one along the true vectors. Which of
    the two counts depends on which factor starts from the direction; their mean is given.

    Args:
        triplets: U (L, m, k), S (L, k), V (L, n, k).
        tests: Ψ (m, p) and Ω (n, p).
        seen: ``Gᵀ Ψ`` (L, n, p) and ``G Ω`` (L, m, p).

    Returns:
        Energy that each direction misses, (L, k), and ``‖E‖²``, (L,).
    """
    left, singular, right = triplets
    scaled = left * singular[:, None]
    rest_left = seen[0] - right @ (scaled.mT @ tests[0])  # Eᵀ Ψ, (L, n, p)
    rest_right = seen[1] - scaled @ (right.mT @ tests[1])  # E Ω, (L, m, p)
    along_left = (left.mT @ rest_right).double().square().mean(2)  # ‖Eᵀ u‖², (L, k)
    along_right = (right.mT @ rest_left).double().square().mean(2)  # ‖E v‖², (L, k)
    rest = [part.double().square().sum(1).mean(1) for part in (rest_left, rest_right)]
    return (along_left + along_right) / 2, (rest[0] + rest[1]) / 2
