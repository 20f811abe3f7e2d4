"""Low-rank algebra without decompositions, against numpy's decompositions in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lora_ga_cli.gradient import lowrank
from lora_ga_cli.gradient.lowrank import LowRank, eigenvectors, merge, orthonormal, outer, singular_triplets

FLAT, GRADED = 1.0, 1e-4
"""The least singular value of a matrix, relative to the largest."""
ROUNDING = 1e-6
"""Of float32, relative to the largest number, with room for sums."""
at_all_scales = pytest.mark.parametrize("scale", [1e-12, 1.0, 1e8])
of_all_spectra = pytest.mark.parametrize("least", [FLAT, GRADED], ids=["flat", "graded"])


def basis(generator: torch.Generator, layers: int, rows: int, count: int) -> Tensor:
    """Orthonormal columns (L, rows, count) in float64."""
    return torch.linalg.qr(torch.randn(layers, rows, count, generator=generator, dtype=torch.float64))[0]


def spectrum(rank: int, least: float, scale: float) -> Tensor:
    return scale * torch.logspace(0, np.log10(least), rank, dtype=torch.float64)


def columns(shape: tuple[int, int, int], rank: int, *, least: float = FLAT, scale: float = 1.0) -> Tensor:
    """Matrices (L, m, k) in float64 of a rank and a spectrum."""
    layers, rows, count = shape
    generator = torch.Generator().manual_seed(0)
    left, right = basis(generator, layers, rows, rank), basis(generator, layers, count, rank)
    return (left * spectrum(rank, least, scale)) @ right.mT


def pair(
    shape: tuple[int, int, int, int], rank: int, *, least: float = FLAT, scale: float = 1.0, seed: int = 0
) -> LowRank:
    """``left`` (L, m, k) and ``right`` (L, n, k), whose product has a rank and a spectrum; neither is orthonormal."""
    layers, m, n, k = shape
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(layers, rank, k, generator=generator, dtype=torch.float64)
    left = basis(generator, layers, m, rank) @ mixed
    right = (basis(generator, layers, n, rank) * spectrum(rank, least, scale)) @ torch.linalg.pinv(mixed).mT
    return left.float(), right.float()


def product(left: Tensor, right: Tensor) -> np.ndarray:
    """``left · rightᵀ`` in float64."""
    return (left.double() @ right.double().mT).numpy()


def norms(matrices: np.ndarray) -> np.ndarray:
    return np.linalg.norm(matrices, axis=(1, 2))


def assert_orthonormal(vectors: Tensor, tolerance: float = ROUNDING) -> None:
    gram = vectors.double().mT @ vectors.double()
    torch.testing.assert_close(gram, torch.eye(gram.shape[-1]).double().expand_as(gram), rtol=0, atol=tolerance)


@at_all_scales
@of_all_spectra
def test_orthonormal_columns_span_the_same_space(least: float, scale: float) -> None:
    shapes = [(3, 50, 12), (2, 20, 20), (1, 30, 12)]
    given = [columns(shape, shape[2], least=least, scale=scale).float() for shape in shapes]
    for matrices, found in zip(given, orthonormal(given), strict=True):
        assert found.dtype == torch.float32
        assert_orthonormal(found, tolerance=1e-5)  # the ridge shortens the least columns so much
        left, _, _ = np.linalg.svd(matrices.double().numpy(), full_matrices=False)
        outside = found.double().numpy() - left @ (left.transpose(0, 2, 1) @ found.double().numpy())
        assert np.abs(outside).max() < ROUNDING


def test_orthonormal_columns_come_in_the_type_asked_for() -> None:
    given = [columns((1, 20, 4), 4).float(), columns((1, 30, 4), 4).float()]
    half, single = orthonormal(given, [torch.bfloat16, torch.float32])
    assert (half.dtype, single.dtype) == (torch.bfloat16, torch.float32)
    assert_orthonormal(half, tolerance=2**-7)


@at_all_scales
def test_empty_columns_stay_near_zero(scale: float) -> None:
    """Of 48 columns that span 10 directions, these are all there, and no other is invented or blown up."""
    given = columns((2, 80, 48), 10, scale=scale)
    (found,) = orthonormal([given])
    sizes = np.linalg.svd(found.numpy(), compute_uv=False)
    np.testing.assert_allclose(sizes[:, :10], 1, atol=ROUNDING)
    assert sizes[:, 10:].max() < ROUNDING
    rest = given - found @ (found.mT @ given)
    assert (norms(rest.numpy()) / norms(given.numpy())).max() < ROUNDING


def test_the_rounding_of_empty_columns_does_not_blow_up() -> None:
    """In float32 they are not quite empty; what they become is never longer than a direction."""
    given = columns((2, 80, 48), 10).float()
    (found,) = orthonormal([given])
    assert np.linalg.svd(found.double().numpy(), compute_uv=False).max() < 1 + ROUNDING
    rest = given - found @ (found.mT @ given)
    assert (norms(rest.numpy()) / norms(given.numpy())).max() < ROUNDING


def test_nothing_gives_nothing() -> None:
    """A layer that was not called has zeros, among layers that were."""
    given = columns((3, 20, 6), 6)
    given[1] = 0
    (found,) = orthonormal([given])
    assert not found[1].any()
    assert_orthonormal(found[[0, 2]])
    total, other = pair((3, 20, 15, 6), 3), pair((3, 20, 15, 6), 3, seed=1)
    for tensor in (*total, *other):
        tensor[1] = 0
    merge([total], [other])
    assert not total[1][1].any()
    assert all(bool(side.isfinite().all()) for side in total)


@at_all_scales
@of_all_spectra
@pytest.mark.parametrize("chunk", [lowrank.CHUNK_BYTES, 1], ids=["at once", "layer by layer"])
def test_sums_of_low_rank_are_exact(monkeypatch: pytest.MonkeyPatch, chunk: int, least: float, scale: float) -> None:
    """Ranks 7 and 9 make at most 16, and at least 16 columns are kept; stacks of several shapes at once."""
    monkeypatch.setattr(lowrank, "CHUNK_BYTES", chunk)
    shapes = [(3, 60, 40, 20), (1, 40, 60, 20), (2, 30, 30, 16)]
    totals = [pair(shape, 7, least=least, scale=scale, seed=1) for shape in shapes]
    others = [pair(shape, 9, least=least, scale=scale, seed=2) for shape in shapes]
    expected = [product(*one) + product(*other) for one, other in zip(totals, others, strict=True)]
    merge(totals, others)
    for (left, right), matrix in zip(totals, expected, strict=True):
        assert (norms(product(left, right) - matrix) / norms(matrix)).max() < ROUNDING
        lengths = np.linalg.svd(left.double().numpy(), compute_uv=False)
        np.testing.assert_allclose(lengths[:, :16], 1, atol=1e-5)
        assert np.all(lengths[:, 16:] < ROUNDING)


@at_all_scales
def test_a_sum_with_nothing_is_itself(scale: float) -> None:
    """Either side may be nothing: a layer that this micro-batch, or none before it, has called."""
    shape = (2, 40, 30, 10)
    for empty in (0, 1):
        terms = [pair(shape, 10, scale=scale), pair(shape, 10, scale=scale)]
        expected = product(*terms[1 - empty])
        terms[empty][0].zero_()
        terms[empty][1].zero_()
        merge([terms[0]], [terms[1]])
        assert (norms(product(*terms[0]) - expected) / norms(expected)).max() < ROUNDING


def test_many_sums_do_not_lose_what_fits() -> None:
    """100 matrices of one range of 8 directions, in 10 columns: rounding does not pile up."""
    generator = torch.Generator().manual_seed(0)
    left, mixing = basis(generator, 2, 40, 8).float(), torch.randn(100, 2, 30, 8, generator=generator)
    padded = torch.nn.functional.pad
    total = padded(left, (0, 2)), padded(mixing[0], (0, 2))
    for other in mixing[1:]:
        merge([total], [(padded(left, (0, 2)), padded(other, (0, 2)))])
    expected = product(left, mixing.double().sum(0))
    assert (norms(product(*total) - expected) / norms(expected)).max() < 10 * ROUNDING


@of_all_spectra
def test_sums_of_higher_rank_are_nearly_the_best_of_the_rank_kept(least: float) -> None:
    """30 and 30 directions into 30 columns: within a fifth of the distance of the nearest matrix of rank 30."""
    total, other = (pair((4, 80, 60, 30), 30, least=least, seed=seed) for seed in (1, 2))
    matrix = product(*total) + product(*other)
    best = np.linalg.norm(np.linalg.svd(matrix, compute_uv=False)[:, 30:], axis=1)
    merge([total], [other])
    assert_orthonormal(total[0], tolerance=1e-5)
    assert (norms(product(*total) - matrix) / best).max() < 1.2
    exact = matrix.transpose(0, 2, 1) @ total[0].double().numpy()
    np.testing.assert_allclose(total[1].numpy(), exact, atol=1e-5 * np.abs(exact).max())  # W = Mᵀ U


@at_all_scales
@of_all_spectra
def test_singular_triplets_are_those_of_a_full_decomposition(least: float, scale: float) -> None:
    """Of several stacks at once, each decomposed in its place."""
    found, matrices = [], []
    for shape, rank in [((3, 50, 40, 12), 12), ((2, 30, 60, 20), 20)]:
        left, right = pair(shape, rank, least=least, scale=scale)
        (left,) = orthonormal([left.double()])
        found.append((left.float(), right))
        matrices.append(product(left, right))
    for (left, right), matrix, eigen in zip(found, matrices, eigenvectors([pair[1] for pair in found]), strict=True):
        u, s, v = singular_triplets(left, right, eigen, 8)
        expected_u, expected_s, expected_v = np.linalg.svd(matrix, full_matrices=False)
        largest = expected_s[:, :1]
        np.testing.assert_allclose(s.numpy() / largest, expected_s[:, :8] / largest, atol=ROUNDING)
        assert_orthonormal(u, tolerance=1e-5)
        assert_orthonormal(v, tolerance=1e-4)  # small ones are divided by their size, with their rounding
        # each is a triplet of the matrix, which says more than that their product is near
        triplets = matrix @ v.double().numpy() - (u * s[:, None]).double().numpy()
        assert (np.abs(triplets) / largest[..., None]).max() < 1e-4
        best = (expected_u[..., :8] * expected_s[:, None, :8]) @ expected_v[:, :8]
        assert (norms(product(u * s[:, None], v) - best) / norms(best)).max() < 1e-5


@at_all_scales
def test_triplets_beyond_the_rank_are_zero(scale: float) -> None:
    """Rank 10 kept in 48 columns: nothing is divided by the zeros."""
    left, right = pair((2, 80, 60, 48), 10, scale=scale)
    total = torch.zeros_like(left), torch.zeros_like(right)
    matrix = product(left, right)
    merge([total], [(left, right)])
    u, s, v = singular_triplets(*total, eigenvectors([total[1]])[0], 48)
    singular = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(s[:, :10], singular[:, :10], rtol=ROUNDING)
    assert not s[:, 10:].any()
    for vectors in (u, v):
        assert_orthonormal(vectors[..., :10])
        assert not vectors[..., 10:].any()
    assert (norms(product(u * s[:, None], v) - matrix) / norms(matrix)).max() < ROUNDING


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_products_add_up_in_float32(kind: torch.dtype) -> None:
    """4096 tokens all of one sign, whose sum in bfloat16 would stop growing at a small part of it."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.rand(2, 4096, width, generator=generator).to(kind) for width in (12, 5))
    exact = left.double().mT @ right.double()
    found = outer(left, right)
    assert found.dtype == torch.float32
    assert float((found - exact).norm() / exact.norm()) < 1e-5
    naive = torch.zeros(2, 12, 5, dtype=kind)
    for token in range(4096):
        naive += left[:, token, :, None] * right[:, token, None]
    if kind != torch.float32:
        assert float((naive.double() - exact).norm() / exact.norm()) > 1e-2


def test_float64_stays_float64() -> None:
    left = torch.rand(1, 10, 3, dtype=torch.float64)
    assert outer(left, left).dtype == torch.float64
