"""Powers of Gram matrices, against numpy and scipy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from lora_ga_cli.optimizers.grams import grams, of_symmetric, polars, sylvester
from tests.optimizers.layers import tensor


@pytest.mark.parametrize("exponent", [-1, -0.5, 0.5, 1])
def test_a_power_is_that_of_the_matrix(exponent: float) -> None:
    x = tensor(2, 9, 4, seed=0)
    (gram,) = grams([x])
    for of_layer, found in zip(x.numpy(), gram.power(exponent).numpy(), strict=True):
        right = scipy.linalg.fractional_matrix_power(of_layer.T @ of_layer, exponent)
        assert np.abs(found - right).max() < 1e-12 * np.abs(right).max()


def test_a_singular_matrix_has_a_pseudo_inverse_and_zero_has_zero() -> None:
    x = tensor(9, 2, seed=0) @ tensor(2, 4, seed=1)
    of_singular, of_zero = grams([x[None], torch.zeros(1, 5, 3)])
    assert np.allclose(of_singular.power(-1)[0].numpy(), np.linalg.pinv(x.numpy().T @ x.numpy()), rtol=1e-6)
    for damping in (0.0, 1e-6):
        assert not of_zero.power(-1, damping).any()
    assert not polars([torch.zeros(1, 5, 3)])[0].any()


def test_damping_is_relative_to_the_size_of_the_matrix() -> None:
    x, size = tensor(9, 4, seed=0), 1e-9
    mean = float((x**2).sum()) / 4
    right = torch.linalg.inv(x.T @ x + 0.1 * mean * torch.eye(4))
    gram, of_small = grams([x[None], size * x[None]])
    assert torch.allclose(gram.power(-1, 0.1)[0], right, rtol=1e-12)
    assert torch.allclose(of_small.power(-1, 0.1)[0] * size**2, right, rtol=1e-12)


def test_the_polar_factor_is_that_of_the_singular_value_decomposition() -> None:
    x = tensor(3, 9, 4, seed=0)
    left, _, right = np.linalg.svd(x.numpy(), full_matrices=False)
    assert np.abs(polars([x])[0].numpy() - left @ right).max() < 1e-14


@pytest.mark.parametrize("condition", [1e1, 1e3])
def test_float32_factors_are_as_exact_as_with_a_qr_decomposition(condition: float) -> None:
    """The Gram matrix squares the condition number, but it is in float64."""
    left, _ = torch.linalg.qr(tensor(200, 8, seed=0))
    right, _ = torch.linalg.qr(tensor(8, 8, seed=1))
    x = (left * torch.logspace(0, -float(np.log10(condition)), 8, dtype=torch.float64) @ right.T).float()
    exact = polars([x.double()[None]])[0][0].numpy()
    of_gram = np.abs(polars([x[None]])[0][0].numpy() - exact).max()
    basis, triangle = torch.linalg.qr(x)
    u, _, v = torch.linalg.svd(triangle)
    of_qr = np.abs((basis @ u @ v).numpy() - exact).max()
    assert of_gram < max(3 * of_qr, 1e-6)


def test_stacks_of_several_ranks_and_sizes_are_decomposed_as_each_would_be_alone() -> None:
    stacks = [tensor(2, 9, 4, seed=0), tensor(1, 5, 2, seed=1), tensor(3, 8, 4, seed=2)]
    for x, found in zip(stacks, grams(stacks), strict=True):
        assert found.vectors.shape == (len(x), x.shape[-1], x.shape[-1])
        assert torch.allclose(found.power(1), x.mT @ x, rtol=1e-12, atol=1e-12)
    assert grams([]) == []


def test_sylvesters_equation_is_solved_as_scipy_does() -> None:
    left, right, constant = tensor(9, 4, seed=0), tensor(9, 4, seed=1), tensor(4, 4, seed=2)
    found = sylvester(*grams([left[None], right[None]]), constant)[0]
    solved = scipy.linalg.solve_sylvester((left.T @ left).numpy(), (right.T @ right).numpy(), constant.numpy())
    assert np.abs(found.numpy() - solved).max() < 1e-14 * np.abs(solved).max() * 100
    assert not sylvester(of_symmetric(torch.zeros(3, 3)), of_symmetric(torch.zeros(3, 3)), torch.zeros(3, 3)).any()
