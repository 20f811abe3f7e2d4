"""Changes of weights, against numpy and scipy on dense matrices in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import orth, subspace_angles
from torch import Tensor

from lora_ga_cli.inspection.changes import (
    Decomposed,
    cosine,
    cut_errors,
    decompose,
    principal_angles,
    shares_within,
)
from lora_ga_cli.lora.links import LowRank


def drawn(seed: int, shape: tuple[int, int] = (40, 24), rank: int = 5) -> LowRank:
    """A random change whose singular values differ."""
    draw = torch.Generator().manual_seed(seed)
    left = torch.randn(shape[0], rank, generator=draw) * torch.arange(1, rank + 1)
    return LowRank(left, torch.randn(rank, shape[1], generator=draw))


def dense(change: LowRank) -> np.ndarray:
    return np.asarray(change.left.double().numpy() @ change.right.double().numpy())


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (4, 24), (24, 4)])
def test_a_decomposition_is_that_of_the_dense_matrix(shape: tuple[int, int]) -> None:
    """Also where the factors have more columns than the matrix has rows."""
    change = drawn(0, shape)
    found = decompose(change)
    expected = np.linalg.svd(dense(change), compute_uv=False)[: found.rank]
    assert (found.rank, found.shape) == (min(5, *shape), shape)
    np.testing.assert_allclose(found.singular, expected, rtol=1e-10)
    np.testing.assert_allclose((found.left * found.singular) @ found.right.T, dense(change), atol=1e-10)
    np.testing.assert_allclose(found.left.T @ found.left, np.eye(found.rank), atol=1e-12)
    assert found.norm == pytest.approx(np.linalg.norm(dense(change)), rel=1e-12)


def test_ranks_are_those_of_the_definitions() -> None:
    change = drawn(1)
    found, singular = decompose(change), np.linalg.svd(dense(change), compute_uv=False)[:5]
    shares = singular / singular.sum()
    assert found.effective_rank == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-10)
    assert found.stable_rank == pytest.approx((singular**2).sum() / singular[0] ** 2, rel=1e-10)
    errors = {str(rank): np.linalg.norm(singular[rank:]) / np.linalg.norm(singular) for rank in (1, 2, 4)}
    assert cut_errors(found, (1, 2, 4)) == pytest.approx(errors, rel=1e-9)


def test_equal_singular_values_have_all_ranks_equal() -> None:
    basis, _ = torch.linalg.qr(torch.randn(20, 4, dtype=torch.float64))
    found = Decomposed(basis, torch.full((4,), 3.0, dtype=torch.float64), basis)
    assert (found.effective_rank, found.stable_rank) == pytest.approx((4.0, 4.0))


def test_directions_that_are_only_rounding_are_left_out() -> None:
    """The same product in twice as many columns, as in an adapter that is written with its initial factors."""
    change = drawn(2)
    twice = LowRank(torch.cat([change.left, change.left], 1), torch.cat([0.25 * change.right, 0.75 * change.right]))
    assert decompose(twice).rank == 5
    np.testing.assert_allclose(decompose(twice).singular, decompose(change).singular, rtol=1e-5)


def test_a_change_of_zero_has_no_directions() -> None:
    nothing = LowRank(torch.zeros(6, 2), torch.randn(2, 5))
    found = decompose(nothing)
    assert (found.rank, found.norm, found.effective_rank, found.stable_rank) == (0, 0.0, 0.0, 0.0)
    assert cut_errors(found, (1,)) == {"1": 0.0}
    assert shares_within(found, torch.randn(6, 2), torch.randn(5, 2)) is None
    assert cosine(nothing, drawn(0, (6, 5))) is None


def test_shares_within_subspaces_are_those_of_dense_projections() -> None:
    change = drawn(3)
    draw = torch.Generator().manual_seed(4)
    left, right = torch.randn(40, 3, generator=draw), torch.randn(24, 6, generator=draw)
    found = shares_within(decompose(change), left, right)
    assert found is not None
    matrix, u, v = dense(change), orth(left.double().numpy()), orth(right.double().numpy())
    outside = (np.eye(40) - u @ u.T) @ matrix @ (np.eye(24) - v @ v.T)

    def share(part: np.ndarray) -> float:
        return float((part**2).sum() / (matrix**2).sum())

    assert found.left == pytest.approx(share(u @ u.T @ matrix))
    assert found.right == pytest.approx(share(matrix @ v @ v.T))
    assert found.both == pytest.approx(share(u @ u.T @ matrix @ v @ v.T))
    assert found.either == pytest.approx(1 - share(outside))


def test_a_first_step_lies_in_either_subspace() -> None:
    """``ΔB A0 + B0 ΔA`` has its columns in those of B0, or its rows in those of A0."""
    a0, b0, delta_a, delta_b = torch.randn(3, 24), torch.randn(40, 3), torch.randn(3, 24), torch.randn(40, 3)
    step = LowRank(torch.cat([delta_b, b0], 1), torch.cat([a0, delta_a]))
    found = shares_within(decompose(step), b0, a0.T)
    assert found is not None
    assert found.either == pytest.approx(1.0)
    assert found.left < 0.99


def test_repeated_directions_count_once() -> None:
    change, basis = drawn(5), torch.randn(40, 2)
    once, twice = (
        shares_within(decompose(change), given, torch.randn(24, 1)) for given in (basis, torch.cat([basis, basis], 1))
    )
    assert once is not None
    assert twice is not None
    assert twice.left == pytest.approx(once.left)


def test_the_cosine_of_two_changes_needs_no_dense_matrix() -> None:
    first, second = drawn(6, rank=3), drawn(7, rank=5)
    a, b = dense(first), dense(second)
    expected = (a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b))
    assert cosine(first, second) == pytest.approx(expected, rel=1e-9)
    assert cosine(first, LowRank(-2 * first.left, first.right)) == pytest.approx(-1.0)


@pytest.mark.parametrize(("m", "n"), [(3, 5), (5, 3), (4, 4)])
def test_principal_angles_are_those_of_scipy(m: int, n: int) -> None:
    first, second = (torch.linalg.qr(torch.randn(30, k, dtype=torch.float64))[0] for k in (m, n))
    expected = np.sort(subspace_angles(first.numpy(), second.numpy()))
    np.testing.assert_allclose(principal_angles(first, second), expected, atol=1e-12)


def test_tiny_angles_keep_their_digits() -> None:
    """Their cosines round to 1."""
    first = torch.eye(6, dtype=torch.float64)[:, :2]
    second, _ = torch.linalg.qr(_turned(1e-10))
    np.testing.assert_allclose(principal_angles(first, second), [0.0, 1e-10], atol=1e-16)


def _turned(angle: float) -> Tensor:
    vectors = torch.eye(6, dtype=torch.float64)[:, :2].clone()
    vectors[:, 1] = torch.tensor([0, math.cos(angle), math.sin(angle), 0, 0, 0], dtype=torch.float64)
    return vectors
