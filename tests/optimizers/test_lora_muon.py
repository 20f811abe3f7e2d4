"""LoRA-Muon: the singular values of its steps, and what does not change them, in float64."""

from __future__ import annotations

import pytest
import torch

from lora_ga_cli.errors import InvalidInput
from lora_ga_cli.optimizers.lora_muon import muon_direction
from tests.helpers import configured
from tests.optimizers.layers import D_IN, D_OUT, RANK, build, change, layer, run, tensor, turned


def singular_values(matrix: torch.Tensor) -> torch.Tensor:
    return torch.linalg.svdvals(matrix)[:RANK]


def test_the_product_moves_by_a_matrix_of_equal_singular_values() -> None:
    """``direction · A`` for B, and ``B · directionᵀ`` for A: both have singular values 1."""
    a, b = tensor(RANK, D_IN, seed=0), tensor(D_OUT, RANK, seed=1)
    ones = torch.ones(RANK, dtype=torch.float64)
    assert torch.allclose(singular_values(muon_direction(tensor(D_OUT, RANK, seed=2), a.T) @ a), ones, rtol=1e-12)
    assert torch.allclose(singular_values(b @ muon_direction(tensor(D_IN, RANK, seed=3), b).T), ones, rtol=1e-12)


@pytest.mark.parametrize("scaling", [0.1, 1.0, 8.0])
def test_each_factor_moves_the_weight_by_half_the_learning_rate_whatever_the_scaling(scaling: float) -> None:
    pair = layer(scaling=scaling)
    a, b = pair.a.detach().clone(), pair.b.detach().clone()
    run(build("lora_muon", [pair], lr=0.1, damping=0.0))
    half = torch.full((RANK,), 0.05, dtype=torch.float64)
    assert torch.allclose(singular_values(scaling * (pair.b.detach() - b) @ a), half, rtol=1e-11)
    assert torch.allclose(singular_values(scaling * b @ (pair.a.detach() - a)), half, rtol=1e-11)


def test_the_direction_is_the_steepest_one_of_its_spectral_norm() -> None:
    """No other step of B that moves the product as far in spectral norm goes further down."""
    a, gradient = tensor(RANK, D_IN, seed=0), tensor(D_OUT, D_IN, seed=1)
    direction = muon_direction(gradient @ a.T, a.T)
    descent = float((gradient * (direction @ a)).sum())
    for seed in range(50):
        other = direction + 0.1 * tensor(D_OUT, RANK, seed=seed)
        other /= torch.linalg.matrix_norm(other @ a, 2)
        assert float((gradient * (other @ a)).sum()) < descent
    nuclear = torch.linalg.svdvals(gradient @ torch.linalg.pinv(a) @ a).sum()
    assert descent == pytest.approx(float(nuclear), rel=1e-11)


def test_the_size_of_the_loss_does_not_matter() -> None:
    moved = [run(build("lora_muon", [layer()], lr=0.1), 10, times=times)[0] for times in (1.0, 1000.0)]
    assert torch.allclose(*moved, rtol=1e-10, atol=1e-11)


def test_one_step_from_other_factors_of_a_product_is_the_same() -> None:
    one, other = layer(), turned(layer(), tensor(RANK, RANK, seed=5))
    moved = [run(build("lora_muon", [pair], lr=0.1, damping=0.0))[0] for pair in (one, other)]
    assert torch.allclose(*moved, rtol=1e-10, atol=1e-11)


def test_weight_decay_shrinks_the_product() -> None:
    """With a zero gradient by ``1 - γλ``; with one, the step to first order is that without decay."""
    pair = layer()
    before = change(pair)
    optimizer = build("lora_muon", [pair], lr=0.1, weight_decay=0.5)
    for item in (pair.delta_a, pair.delta_b):
        item.grad = torch.zeros_like(item)
    optimizer.step()
    assert torch.allclose(change(pair), (1 - 0.1 * 0.5) * before, rtol=1e-13)
    decayed, plain = (layer() for _ in range(2))
    run(build("lora_muon", [plain], lr=0.1))
    run(build("lora_muon", [decayed], lr=0.1, weight_decay=0.5))
    begin, keep = layer(), 0.95
    first_order = [
        begin.scaling * (begin.b @ (one.a - scale * begin.a) + (one.b - scale * begin.b) @ begin.a).detach()
        for one, scale in ((plain, 1.0), (decayed, keep**0.5))
    ]
    assert torch.allclose(first_order[1] * keep**0.5, first_order[0], rtol=1e-11)


def test_a_decay_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"needs trainer\.learning_rate times trainer\.weight_decay below 1"):
        configured("lora_muon", "trainer.learning_rate=2", "trainer.weight_decay=0.5")
