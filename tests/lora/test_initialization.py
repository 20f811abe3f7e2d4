"""The initial factors against closed forms and numpy's decomposition in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lora_ga_cli.errors import GradientError
from lora_ga_cli.gradient.factors import truncated_svd
from lora_ga_cli.lora.initialization import (
    direction_indices,
    first_step_alignment,
    initial_factors,
    layer_seed,
    product,
    scale_factor,
)

RANK = 4


@pytest.fixture(params=[(40, 24), (24, 40)], ids=["tall", "wide"])
def grad(request: pytest.FixtureRequest) -> torch.Tensor:
    """A gradient (d_out, d_in) with a decaying spectrum."""
    generator = torch.Generator().manual_seed(3)
    d_out, d_in = request.param
    return (torch.randn(d_out, 24, generator=generator) * 0.8 ** torch.arange(24)) @ torch.randn(
        24, d_in, generator=generator
    )


def first_step(grad: torch.Tensor, a0: torch.Tensor, b0: torch.Tensor) -> np.ndarray:
    """The weight's movement per unit of learning rate, by finite differences of plain gradient descent on A and B."""
    s, rate = 1.7, 1e-6
    g, a, b = (tensor.double() for tensor in (grad, a0, b0))
    grad_a, grad_b = s * b.T @ g, s * g @ a.T  # dL/dA, dL/dB at W = W0' + s·B A
    moved = s * (b - rate * grad_b) @ (a - rate * grad_a) - s * b @ a
    return (moved / -rate).numpy()


@pytest.mark.parametrize("direction", ["ArB2r", "A2rBr", "ArBr", "random"])
def test_the_first_step_is_the_best_approximation_of_the_full_gradient(grad: torch.Tensor, direction: str) -> None:
    a0, b0 = initial_factors(truncated_svd(grad, 2 * RANK), RANK, direction=direction, factor=0.6)
    left, singular, right = np.linalg.svd(grad.double().numpy())
    best = left[:, : 2 * RANK] * singular[: 2 * RANK] @ right[: 2 * RANK]
    step = first_step(grad, a0, b0)
    cosine = (step * best).sum() / np.linalg.norm(step) / np.linalg.norm(best)
    assert cosine > 0.99999


@pytest.mark.parametrize("direction", ["ArB2r", "A2rBr", "ArBr", "random"])
def test_alignment_is_one(grad: torch.Tensor, direction: str) -> None:
    a0, b0 = initial_factors(truncated_svd(grad, 2 * RANK), RANK, direction=direction, factor=0.6)
    assert first_step_alignment(grad, a0, b0) == pytest.approx(1, abs=1e-6)


def test_a_worse_initialization_has_a_lower_alignment(grad: torch.Tensor) -> None:
    """The measure can fail: multiplying B by the singular values, as others do, costs alignment."""
    factors = truncated_svd(grad, 2 * RANK)
    a0, b0 = initial_factors(factors, RANK)
    assert first_step_alignment(grad, a0, b0 * factors.singular[RANK : 2 * RANK]) < 0.99


def test_directions_take_the_vectors_the_paper_says() -> None:
    assert direction_indices("ArB2r", 3) == ([0, 1, 2], [3, 4, 5])
    assert direction_indices("A2rBr", 3) == ([3, 4, 5], [0, 1, 2])
    assert direction_indices("ArBr", 3) == ([1, 3, 5], [0, 2, 4])
    for_a, for_b = direction_indices("random", 3, seed=1)
    assert sorted(for_a + for_b) == [0, 1, 2, 3, 4, 5]
    assert direction_indices("random", 3, seed=1) == (for_a, for_b)
    assert len({tuple(direction_indices("random", 3, seed=seed)[0]) for seed in range(20)}) > 5


def test_the_initial_factors_are_the_singular_vectors(grad: torch.Tensor) -> None:
    a0, b0 = initial_factors(truncated_svd(grad, 2 * RANK), RANK, factor=0.5)
    left, _, right = np.linalg.svd(grad.double().numpy())
    assert a0.shape == (RANK, grad.shape[1])
    assert b0.shape == (grad.shape[0], RANK)
    np.testing.assert_allclose(np.abs(a0.numpy()), 0.5 * np.abs(right[:RANK]), atol=1e-6)
    np.testing.assert_allclose(np.abs(b0.numpy()), 0.5 * np.abs(left[:, RANK : 2 * RANK]), atol=1e-6)


def test_a_thousand_times_the_loss_changes_nothing(grad: torch.Tensor) -> None:
    plain = initial_factors(truncated_svd(grad, 2 * RANK), RANK)
    scaled = initial_factors(truncated_svd(1000 * grad, 2 * RANK), RANK)
    for one, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_the_initial_factors_are_the_same_to_the_bit_every_time(grad: torch.Tensor) -> None:
    first = initial_factors(truncated_svd(grad, 2 * RANK), RANK)
    second = initial_factors(truncated_svd(grad.clone(), 2 * RANK), RANK)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_scales_have_their_closed_forms() -> None:
    weight = torch.diag(torch.tensor([9.0, 4.0, 1.0, 0.25]))
    options = {"d_out": 4096, "scaling": 2.0, "gamma": 16.0, "rank": 2, "weight": weight}
    assert scale_factor("stable", **options) == pytest.approx(8 / 4)  # 4096^(1/4) / sqrt(16)
    assert scale_factor("unit", **options) == 1
    assert scale_factor("gd", **options) == pytest.approx(0.5)
    assert scale_factor("weight_svd", **options) == pytest.approx((4.5**0.5 + 2.0**0.5) / 2)


def test_gd_scale_makes_the_first_step_plain_gradient_descent(grad: torch.Tensor) -> None:
    """With c = 1/s the weight moves by the projected gradient itself, neither longer nor shorter."""
    factor = scale_factor("gd", d_out=grad.shape[0], scaling=1.7, gamma=16, rank=RANK)
    a0, b0 = initial_factors(truncated_svd(grad, 2 * RANK), RANK, factor=factor)
    left, singular, right = np.linalg.svd(grad.double().numpy())
    best = left[:, : 2 * RANK] * singular[: 2 * RANK] @ right[: 2 * RANK]
    np.testing.assert_allclose(first_step(grad, a0, b0), best, rtol=1e-3, atol=1e-3 * singular[0])


def test_too_few_singular_vectors_are_an_error(grad: torch.Tensor) -> None:
    with pytest.raises(GradientError, match="rank=4 needs 8 singular vectors, but only 7 are stored"):
        initial_factors(truncated_svd(grad, 7), RANK)


def test_the_product_is_rounded_once() -> None:
    generator = torch.Generator().manual_seed(0)
    b0, a0 = torch.randn(30, 8, generator=generator), torch.randn(8, 20, generator=generator)
    exact = 1.3 * (b0.numpy().astype(np.float64) @ a0.numpy().astype(np.float64))
    np.testing.assert_array_equal(product(b0, a0, 1.3).numpy(), exact.astype(np.float32))


def test_layer_seeds_differ_by_layer_and_not_by_process() -> None:
    assert layer_seed(1, "a") != layer_seed(1, "b") != layer_seed(2, "b")
    assert layer_seed(42, "model.layers.0.q_proj") == 14185502961839488720
