"""Truncated decompositions against numpy's, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lora_ga_cli.gradient import factors as module
from lora_ga_cli.gradient.factors import complete, fix_signs, truncated_svd


def decaying(d_out: int, d_in: int, rate: float = 0.9) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    k = min(d_out, d_in)
    left, _ = torch.linalg.qr(torch.randn(d_out, k, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(d_in, k, generator=generator))
    return (left * rate ** torch.arange(k)) @ right.T


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (7, 7)])
def test_direct_decomposition(shape: tuple[int, int]) -> None:
    grad = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    factors = truncated_svd(grad, 5)
    left, singular, right = np.linalg.svd(grad.double().numpy())
    np.testing.assert_allclose(factors.singular.numpy(), singular[:5], rtol=1e-6)
    best = left[:, :5] * singular[:5] @ right[:5]
    np.testing.assert_allclose(((factors.left * factors.singular) @ factors.right.T).numpy(), best, atol=1e-5)
    assert factors.norm == pytest.approx(np.linalg.norm(grad.double().numpy()), rel=1e-12)
    assert factors.shape == shape


def test_subspace_iteration_captures_the_energy_of_the_full_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flat spectrum is the hard case: here neighbouring singular values differ by one in a hundred."""
    monkeypatch.setattr(module, "DIRECT_SIDE", 16)
    grad = decaying(300, 200, rate=0.99)
    singular = np.linalg.svd(grad.double().numpy(), compute_uv=False)
    factors = truncated_svd(grad, 32)
    captured = float(torch.linalg.vector_norm(factors.left.double().T @ grad.double()) ** 2)
    assert captured == pytest.approx((singular[:32] ** 2).sum(), rel=1e-4)
    identity = factors.left.T @ factors.left
    torch.testing.assert_close(identity, torch.eye(32), rtol=0, atol=1e-5)


def test_subspace_iteration_is_the_same_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DIRECT_SIDE", 16)
    grad = decaying(120, 90)
    torch.manual_seed(1)
    first = truncated_svd(grad, 8)
    torch.manual_seed(2)
    assert torch.equal(first.left, truncated_svd(grad, 8).left)


def test_signs_do_not_depend_on_the_decomposition() -> None:
    grad = decaying(20, 15)
    left, _, right_t = torch.linalg.svd(grad, full_matrices=False)
    flips = torch.tensor([1.0, -1.0] * 7 + [1.0])
    one = fix_signs(left, right_t.T)
    other = fix_signs(left * flips, right_t.T * flips)
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])


def test_energy_is_the_share_of_the_squared_norm() -> None:
    factors = truncated_svd(torch.diag(torch.tensor([3.0, 2.0, 1.0])), 2)
    assert factors.energy(1) == pytest.approx(9 / 14)
    assert factors.energy(2) == pytest.approx(13 / 14)


def test_capacity_is_at_most_the_smaller_side() -> None:
    assert truncated_svd(torch.randn(5, 9), 32).capacity == 5


def test_the_factors_of_the_transpose() -> None:
    """With signs fixed by what are now the left vectors, as if the transpose itself had been decomposed."""
    grad = decaying(20, 15)
    turned, expected = truncated_svd(grad, 6).transposed(), truncated_svd(grad.T.contiguous(), 6)
    assert turned.shape == (15, 20)
    torch.testing.assert_close(turned.left, expected.left, rtol=0, atol=1e-5)
    torch.testing.assert_close(turned.right, expected.right, rtol=0, atol=1e-5)
    assert torch.equal(turned.singular, truncated_svd(grad, 6).singular)


@pytest.mark.parametrize("known", [0, 1, 5])
def test_empty_columns_become_directions_orthogonal_to_all_others(known: int) -> None:
    """Of the second layer only; in the first nothing is empty, and nothing changes."""
    generator = torch.Generator().manual_seed(0)
    vectors, _ = torch.linalg.qr(torch.randn(2, 9, 8, generator=generator))
    vectors[1, :, known:] = 0
    before = vectors.clone()
    completed = complete(vectors)
    assert torch.equal(completed[0], before[0])
    assert torch.equal(completed[1, :, :known], before[1, :, :known])
    torch.testing.assert_close(completed[1].T @ completed[1], torch.eye(8), rtol=0, atol=1e-6)
