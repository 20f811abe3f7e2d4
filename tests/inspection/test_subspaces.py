"""LoRA's section 7, against numpy on dense matrices in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lora_ga_cli.inspection.changes import decompose
from lora_ga_cli.inspection.subspaces import amplification, expected_by_chance, random_basis, similarities
from tests.inspection.test_changes import dense, drawn


def test_similarities_are_those_of_the_equation() -> None:
    first, second = decompose(drawn(0, rank=3)), decompose(drawn(1, rank=5))
    found = similarities(first.right, second.right)
    _, _, u = np.linalg.svd(dense(drawn(0, rank=3)))
    _, _, v = np.linalg.svd(dense(drawn(1, rank=5)))
    for i in range(1, 4):
        for j in range(1, 6):
            expected = np.linalg.norm(u[:i] @ v[:j].T) ** 2 / min(i, j)
            assert float(found[i - 1, j - 1]) == pytest.approx(expected, rel=1e-9)


def test_a_subspace_is_contained_in_itself_and_orthogonal_to_others() -> None:
    basis = random_basis(20, 8, 0)
    itself = similarities(basis[:, :3], basis[:, :6])
    assert all(float(itself[i, j]) == pytest.approx(1.0) for i in range(3) for j in range(i, 6))
    assert float(similarities(basis[:, :3], basis[:, 3:]).max()) < 1e-12


def test_random_subspaces_agree_by_chance() -> None:
    """The mean over many draws, within three times its standard error."""
    draws = torch.stack(
        [similarities(random_basis(30, 2, seed), random_basis(30, 5, 999 - seed)) for seed in range(400)]
    )
    mean, error = draws.mean(0), draws.std(0) / 400**0.5
    for i, j in ((1, 1), (2, 2), (1, 5), (2, 5)):
        assert float(mean[i - 1, j - 1]) == pytest.approx(
            expected_by_chance(i, j, 30), abs=3 * float(error[i - 1, j - 1])
        )


def test_amplification_is_that_of_table_7() -> None:
    change, draw = drawn(2), torch.Generator().manual_seed(3)
    weight = torch.randn(40, 24, generator=draw, dtype=torch.float64)
    found = amplification(decompose(change), weight, torch.linalg.svdvals(weight))
    matrix, r = weight.numpy(), 5
    u, _, vh = np.linalg.svd(dense(change))
    of_w_u, _, of_w_vh = np.linalg.svd(matrix)
    assert found.along_change == pytest.approx(np.linalg.norm(u[:, :r].T @ matrix @ vh[:r].T))
    assert found.along_weight == pytest.approx(np.linalg.norm(of_w_u[:, :r].T @ matrix @ of_w_vh[:r].T))
    assert found.weight == pytest.approx(np.linalg.norm(matrix))
    assert found.factor == pytest.approx(np.linalg.norm(dense(change)) / found.along_change)
    assert found.along_random < found.along_weight


def test_a_weight_without_the_directions_of_the_change_has_no_factor() -> None:
    change = decompose(drawn(4))
    assert amplification(change, torch.zeros(40, 24, dtype=torch.float64), torch.zeros(24).double()).factor is None
