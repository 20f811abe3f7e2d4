"""LoRA-Muon: the singular values of its steps, and what does not change them, in float64."""

from __future__ import annotations

import pytest
import torch

from lora_ga_cli.errors import InvalidInput, TrainingError
from lora_ga_cli.optimizers.lora_muon import muon_directions
from tests.helpers import configured
from tests.optimizers.layers import D_IN, D_OUT, RANK, build, change, layer, run, tensor, turned


def singular_values(matrix: torch.Tensor) -> torch.Tensor:
    return torch.linalg.svdvals(matrix)[:RANK]


def muon_direction(momentum: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Of one layer."""
    ((direction,),) = muon_directions([momentum[None]], [other[None]])
    return direction


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


@pytest.mark.parametrize("frozen", ["A", "B"])
def test_a_factor_that_trains_alone_takes_the_complete_step_and_the_complete_decay(frozen: str) -> None:
    """``s·B A`` becomes ``(1 - γλ) s·B A`` plus a matrix with singular values γ, also beside a layer that trains
    both."""
    pair = layer()
    (pair.delta_a if frozen == "A" else pair.delta_b).requires_grad_(False)
    before = change(pair)
    after, _ = run(build("lora_muon", [pair, layer(1)], lr=0.1, weight_decay=0.5, damping=0.0))
    complete = torch.full((RANK,), 0.1, dtype=torch.float64)
    assert torch.allclose(singular_values(after - (1 - 0.1 * 0.5) * before), complete, rtol=1e-11)


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
    small, large = (run(build("lora_muon", [layer()], lr=0.1), 10, times=times)[0] for times in (1.0, 1000.0))
    assert torch.allclose(small, large, rtol=1e-12, atol=1e-12)


def test_forty_steps_from_other_factors_of_a_product_give_one_product() -> None:
    pairs = layer(), turned(layer(), tensor(RANK, RANK, seed=5))
    one, other = (run(build("lora_muon", [pair], lr=0.02, damping=0.0), 40)[0] for pair in pairs)
    assert float((one - change(layer())).abs().max()) > 0.2
    assert torch.allclose(one, other, rtol=1e-11, atol=1e-12)


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
    with pytest.raises(TrainingError, match=r"below 1, and they are 2 and 0\.5"):
        build("lora_muon", [layer()], lr=2.0, weight_decay=0.5)
