"""The energy of a gradient by rank, against NumPy's decomposition and against the first step itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lora_ga_cli.gradient.factors import Factors, truncated_svd
from lora_ga_cli.inspection.spectrum import captured, described, energy, shown_ranks
from lora_ga_cli.lora.initialization import initial_factors

SHAPE = (14, 10)


def gradient(seed: int = 0) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("vectors", [1, 2])
def test_a_rank_follows_its_singular_values(vectors: int) -> None:
    grad = gradient()
    squares = np.linalg.svd(grad.numpy(), compute_uv=False) ** 2
    factors = truncated_svd(grad, 8)
    expected = [squares[: vectors * rank].sum() for rank in range(8 // vectors + 1)]
    assert captured(factors, vectors) == pytest.approx(expected, rel=1e-6)
    assert energy(factors, vectors, 3) == pytest.approx(expected[3] / squares.sum(), rel=1e-6)
    assert energy(factors, vectors, 50) == pytest.approx(squares[:8].sum() / squares.sum(), rel=1e-6)


def test_a_first_step_of_lora_ga_follows_twice_the_rank() -> None:
    """The step from the initial factors is the projection of G, whose squared norm is what is captured."""
    grad = gradient()
    factors = truncated_svd(grad, 6)
    for rank in (1, 2, 3):
        a0, b0 = (item.double() for item in initial_factors(factors, rank))
        step = b0 @ (b0.T @ grad) + (grad @ a0.T) @ a0
        assert captured(factors, 2)[rank] == pytest.approx(float(step.square().sum()), rel=1e-5)


def test_a_first_step_of_lora_follows_a_random_part() -> None:
    """With B = 0, A does not move, and the step of B is along A: rank / d_in of ‖G‖² in the mean, as the table says."""
    grad, rank = gradient(), 3
    generator = torch.Generator().manual_seed(1)
    shares = []
    for _ in range(400):
        basis, _ = torch.linalg.qr(torch.randn(SHAPE[1], rank, generator=generator, dtype=torch.float64))
        shares.append(float((grad @ basis).square().sum() / grad.square().sum()))
    assert np.mean(shares) == pytest.approx(rank / SHAPE[1], abs=0.02)
    assert max(shares) <= energy(truncated_svd(grad, 10), 1, rank)


def test_nothing_is_above_the_norm_and_zero_has_no_energy() -> None:
    vectors = torch.eye(4)
    assert captured(Factors(vectors, torch.ones(4), vectors, 1.9), 2) == [0.0, 2.0, pytest.approx(1.9**2)]
    assert energy(Factors(vectors, torch.zeros(4), vectors, 0.0), 1, 2) == 0.0


def test_shown_ranks_are_powers_of_two_and_the_largest() -> None:
    assert [shown_ranks(largest) for largest in (0, 1, 2, 6, 16)] == [
        [],
        [1],
        [1, 2],
        [1, 2, 4, 6],
        [1, 2, 4, 8, 16],
    ]


def test_layers_are_described_as_plain_data() -> None:
    grad = gradient()
    (layer,) = described({"q": truncated_svd(grad, 8)}, 2, [1, 4]).values()
    assert layer["shape"] == [14, 10]
    assert layer["norm"] == pytest.approx(float(grad.norm()))
    assert layer["singular"] == pytest.approx(np.linalg.svd(grad.numpy(), compute_uv=False)[:8], rel=1e-6)
    assert set(layer["energy"]) == set(layer["alignment"]) == {"1", "4"}
