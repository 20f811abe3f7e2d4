"""The error of a sketch, estimated with random vectors that the sketch did not use."""

from __future__ import annotations

from torch import Tensor


def probe_errors(
    triplets: tuple[Tensor, Tensor, Tensor], probes: tuple[Tensor, Tensor], products: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Estimates the error ``E = G - U S Vᵀ``: how much of it each direction misses, and its size.

    For a Gaussian ω independent of E, ``|uᵀ E ω|²`` and ``|E ω|²`` have the expectations ``‖uᵀ E‖²`` and ``‖E‖²``
    (Tropp, Yurtsever, Udell, Cevher 2019, arXiv 1902.08651, section 6). Each is averaged over p vectors.

    A direction with triplet (u, σ, v) misses energy: u turns towards ``E v`` and v towards ``Eᵀ u``, and to first order
    a step along them follows ``‖E v‖²`` or ``‖Eᵀ u‖²`` less of the gradient than one along the true vectors. Which of
    the two counts depends on which adapter factor is initialized from the direction; their mean is returned.

    Args:
        triplets: U (L, m, k), S (L, k), V (L, n, k).
        probes: Ψ (m, p) and Ω (n, p).
        products: ``Gᵀ Ψ`` (L, n, p) and ``G Ω`` (L, m, p).

    Returns:
        Energy that each direction misses, (L, k), and ``‖E‖²``, (L,).
    """
    left, singular, right = triplets
    scaled = left * singular[:, None]
    error_left = products[0] - right @ (scaled.mT @ probes[0])  # Eᵀ Ψ, (L, n, p)
    error_right = products[1] - scaled @ (right.mT @ probes[1])  # E Ω, (L, m, p)
    along_left = (left.mT @ error_right).double().square().mean(2)  # ‖Eᵀ u‖², (L, k)
    along_right = (right.mT @ error_left).double().square().mean(2)  # ‖E v‖², (L, k)
    squared = [part.double().square().sum(1).mean(1) for part in (error_left, error_right)]
    return (along_left + along_right) / 2, (squared[0] + squared[1]) / 2
