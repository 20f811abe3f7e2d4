"""Cuts to a lower rank, against dense matrices: numpy's SVD, and whitening by scipy's square root of a matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from lora_ga_cli.inspection.changes import decompose
from lora_ga_cli.inspection.cuts import cut
from tests.inspection.test_changes import dense, drawn


def inputs(directions: int = 24, seed: int = 1) -> np.ndarray:
    """(rows, d_in): inputs of very different sizes, in a space of so many dimensions."""
    draw = np.random.default_rng(seed)
    sizes = np.geomspace(10, 0.01, directions)
    mixed = np.linalg.qr(draw.normal(size=(24, directions)))[0]
    return np.asarray((draw.normal(size=(500, directions)) * sizes) @ mixed.T)


def moment_of(x: np.ndarray, right: Tensor) -> Tensor:
    seen = torch.from_numpy(x) @ right
    return seen.T @ seen / len(x)


def test_without_inputs_it_is_the_truncated_svd() -> None:
    matrix, found = dense(drawn(0)), cut(decompose(drawn(0)), 2)
    u, singular, vh = np.linalg.svd(matrix, full_matrices=False)
    np.testing.assert_allclose(dense(found.change), (u[:, :2] * singular[:2]) @ vh[:2], atol=1e-5)
    assert found.change.rank == 2
    assert found.squared_error == pytest.approx((singular[2:] ** 2).sum())
    assert found.squared_norm == pytest.approx((singular**2).sum())
    assert found.output_error is None


def test_with_inputs_it_is_the_whitened_svd() -> None:
    """``(ΔW C^½)_r C^-½`` with all of C, and the errors of outputs for the very inputs."""
    x, matrix, change = inputs(), dense(drawn(0)), decompose(drawn(0))
    root = np.real(sqrtm(x.T @ x / len(x)))
    u, singular, vh = np.linalg.svd(matrix @ root, full_matrices=False)
    expected = (u[:, :2] * singular[:2]) @ vh[:2] @ np.linalg.inv(root)
    found = cut(change, 2, moment_of(x, change.right), by_outputs=True)
    np.testing.assert_allclose(dense(found.change), expected, atol=1e-4)
    assert found.output_error == pytest.approx((singular[2:] ** 2).sum(), rel=1e-6)
    lost = x @ (matrix - expected).T
    assert found.output_error == pytest.approx((lost**2).sum(1).mean(), rel=1e-6)
    assert found.output_norm == pytest.approx(((x @ matrix.T) ** 2).sum(1).mean(), rel=1e-6)
    assert found.squared_error == pytest.approx(((matrix - expected) ** 2).sum(), rel=1e-6)


def test_each_cut_is_the_better_one_in_its_own_norm() -> None:
    change = decompose(drawn(0))
    moment = moment_of(inputs(), change.right)
    by_weight, by_outputs = cut(change, 2, moment), cut(change, 2, moment, by_outputs=True)
    assert by_weight.squared_error < by_outputs.squared_error
    assert by_weight.output_error is not None
    assert by_outputs.output_error is not None
    assert by_outputs.output_error < 0.9 * by_weight.output_error


def test_inputs_that_say_nothing_leave_the_choice_to_the_weight() -> None:
    """One direction of inputs decides the first direction of a cut, and no input decides none."""
    change = decompose(drawn(0))
    one = moment_of(inputs(directions=1), change.right)
    found = cut(change, 3, one, by_outputs=True)
    assert found.output_error == pytest.approx(0.0, abs=1e-9 * (found.output_norm or 0.0))
    u = change.left.numpy()
    seen = u @ (change.singular.numpy() * (change.right.T.numpy() @ inputs(directions=1)[0]))
    seen /= np.linalg.norm(seen)
    rest = dense(drawn(0)) - np.outer(seen, seen @ dense(drawn(0)))
    assert found.squared_error == pytest.approx((np.linalg.svd(rest, compute_uv=False)[2:] ** 2).sum())
    unseen = cut(change, 3, torch.zeros(5, 5, dtype=torch.float64), by_outputs=True)
    assert unseen.squared_error == pytest.approx(cut(change, 3).squared_error)


def test_a_rank_that_is_not_lower_keeps_everything() -> None:
    found = cut(decompose(drawn(0)), 9)
    np.testing.assert_allclose(dense(found.change), dense(drawn(0)), atol=1e-5)
    assert (found.change.rank, found.squared_error) == (5, pytest.approx(0.0, abs=1e-20))
