"""Singular vectors from Gram matrices, against numpy's complete decompositions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lora_ga_cli.inspection import singular
from lora_ga_cli.inspection.singular import SingularVectors, leading


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(30, 18), (18, 30), (20, 20)])
def test_values_and_cosines_are_those_of_a_singular_value_decomposition(shape: tuple[int, int]) -> None:
    matrix, unit = drawn(*shape), drawn(shape[0], 3, seed=1)
    unit /= unit.norm(dim=0)
    found = SingularVectors(matrix)
    u, expected, _ = np.linalg.svd(matrix.numpy(), full_matrices=False)
    np.testing.assert_allclose(found.singular, expected, rtol=1e-10)
    np.testing.assert_allclose(found.cosines(unit), np.abs(unit.numpy().T @ u), atol=1e-9)


def test_vectors_of_a_matrix_of_low_rank_are_as_many_as_its_rank() -> None:
    found = SingularVectors(drawn(30, 4) @ drawn(4, 18, seed=1))
    assert (found.vectors.shape, found.singular.shape) == ((18, 4), (18,))


@pytest.mark.parametrize("scale", [0.0, 0.02, 1.0])
def test_leading_vectors_are_those_of_a_complete_decomposition(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the guess tells nothing of them. The complete decomposition of this module is not called."""
    weight = drawn(300, 320)
    base = SingularVectors(weight)
    guess = base.vectors
    tuned = weight + scale * drawn(300, 4, seed=1) @ drawn(4, 320, seed=2)
    gram = tuned @ tuned.T
    squares, vectors = np.linalg.eigh(gram.numpy())
    complete = torch.linalg.eigh
    monkeypatch.setattr(
        torch.linalg, "eigh", lambda matrix, **options: complete(matrix, **options) if len(matrix) < 300 else None
    )
    found, values = leading(gram, 10, guess)
    np.testing.assert_allclose(values, squares[::-1][:10], rtol=1e-9)
    np.testing.assert_allclose(np.abs((found.numpy() * vectors[:, ::-1][:, :10]).sum(0)), 1.0, atol=1e-9)


def test_eigenvectors_that_are_not_the_leading_ones_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """An iteration that ended at other eigenvectors, and one that did not end, give way to all of them."""
    matrix = torch.diag(torch.arange(300.0, 0, -1, dtype=torch.float64))
    others = torch.eye(300, dtype=torch.float64)[:, 5:21]
    guess = torch.eye(300, dtype=torch.float64)
    for values, vectors in ((torch.arange(295.0, 279, -1).double(), others), (torch.zeros(16).double(), others)):
        monkeypatch.setattr(torch, "lobpcg", lambda *_, result=(values, vectors), **__: result)
        _, squares = leading(matrix, 10, guess)
        assert squares.tolist() == pytest.approx(list(range(300, 290, -1)))
    monkeypatch.undo()
    monkeypatch.setattr(singular, "STEPS", 1)
    rough = drawn(300, 300, seed=3)
    gram = rough @ rough.T
    _, squares = leading(gram, 10, guess)
    np.testing.assert_allclose(squares, np.linalg.eigvalsh(gram.numpy())[::-1][:10], rtol=1e-9)
