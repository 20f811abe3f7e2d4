"""Low-rank algebra on stacks of equal shapes: pure functions on tensors.

Everything is products and Cholesky factors, which accelerators run for a whole stack at once; decompositions into
singular values or eigenvectors would run one layer after the other. Small matrices are in float64, since they hold
squares of what they are made from, and those of several stacks go through each step together: launching work costs
more than the work.

Shapes are written with L layers, m = d_out, n = d_in, k columns.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

RIDGE = 1e-14
"""Added to a Gram matrix, relative to its trace: columns below 1e-7 of the largest count as empty."""
MERGE_ITERATIONS = 2
CHUNK_BYTES = 2**28
"""Temporary memory in float64."""
Pair = tuple[Tensor, Tensor]
"""``left`` (L, m, k) and ``right`` (L, n, k), which stand for ``left · rightᵀ``."""


def outer(left: Tensor, right: Tensor) -> Tensor:
    """``leftᵀ · right`` per layer, added up and returned in float32 (float64 if they are).

    Args:
        left: (L, tokens, m).
        right: (L, tokens, k).

    Returns:
        (L, m, k).
    """
    if left.dtype in (torch.float32, torch.float64):
        return left.mT @ right
    if left.is_cuda and hasattr(torch.ops.aten.bmm, "dtype"):
        return torch.bmm(left.mT, right, out_dtype=torch.float32)
    return left.float().mT @ right.float()


def orthonormal(stacks: Sequence[Tensor], kinds: Sequence[torch.dtype] | None = None) -> list[Tensor]:
    """Orthonormal columns that span the same spaces (Cholesky QR); empty columns stay near zero.

    Args:
        stacks: (L, m, k) each.
        kinds: types of the results, if not those of the stacks.
    """
    wide = [columns.double() for columns in stacks]
    roots = _together(inverse_root, [columns.mT @ columns for columns in wide])
    kinds = kinds or [columns.dtype for columns in stacks]
    return [(columns @ root).to(kind) for columns, root, kind in zip(wide, roots, kinds, strict=True)]


def merge(totals: Sequence[Pair], others: Sequence[Pair]) -> None:
    """Adds the second matrix of each pair to the first, in place, and keeps the first's number of columns.

    The nearest matrix of that rank to ``M = L Rᵀ`` with ``L`` and ``R`` the columns of both, by subspace iteration
    (Halko, Martinsson, Tropp 2011, arXiv 0909.4061, algorithm 4.4) on coordinates: with ``P = R Z``, ``M P`` is
    ``L (RᵀR) Z``, so that each round needs products of small matrices only.

    Args:
        totals: receive ``U`` with orthonormal columns, and ``W = Mᵀ U``.
        others: of the same shapes.
    """
    small = _together(
        _leading_coordinates,
        *([_gram(total[side], other[side]) for total, other in zip(totals, others, strict=True)] for side in (0, 1)),
    )
    for total, other, coordinates in zip(totals, others, small, strict=True):
        for side in (0, 1):
            for part in _chunks(total[side]):
                both = torch.cat([total[side][part], other[side][part]], 2)
                total[side][part] = both @ coordinates[side][part].to(both.dtype)


def eigenvectors(stacks: Sequence[Tensor]) -> list[Pair]:
    """Eigenvalues (L, k), descending, and eigenvectors (L, k, k) of the Gram matrices of columns (L, n, k).

    Computed on the CPU, in threads: accelerators take such matrices one by one.
    """
    grams = [_gram(columns).cpu() for columns in stacks]
    matrices = [matrix for gram in grams for matrix in gram]
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        found = list(pool.map(torch.linalg.eigh, matrices))
    results = []
    for gram, columns in zip(grams, stacks, strict=True):
        own, found = found[: len(gram)], found[len(gram) :]
        values, vectors = (torch.stack([pair[index] for pair in own]) for index in (0, 1))
        results.append((values.flip(-1).to(columns.device), vectors.flip(-1).to(columns.device)))
    return results


def singular_triplets(left: Tensor, right: Tensor, eigen: Pair, keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """Leading singular triplets of ``left · rightᵀ`` with ``left`` orthonormal.

    Args:
        left: (L, m, k), orthonormal columns.
        right: (L, n, k).
        eigen: `eigenvectors` of ``right``, whose values are the squared singular values.

    Returns:
        Left vectors (L, m, keep), singular values (L, keep) descending, right vectors (L, n, keep); columns that belong
        to a singular value of zero are zero.
    """
    values, vectors = eigen[0][:, :keep].clamp(min=0), eigen[1][..., :keep]
    singular = values.sqrt()
    inverse = torch.where(values > RIDGE * values[:, :1], 1 / singular, 0)
    empty = inverse == 0
    left = (left @ vectors.to(left.dtype)).masked_fill(empty[:, None], 0)
    right = right @ (vectors * inverse[:, None]).to(right.dtype)
    return left, singular.masked_fill(empty, 0).to(left.dtype), right


def inverse_root(gram: Tensor) -> Tensor:
    """``R⁻¹`` with ``RᵀR = gram``: columns with that Gram matrix times ``R⁻¹`` are orthonormal.

    Args:
        gram: (L, k, k), changed in place by the ridge.
    """
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    diagonal += diagonal.sum(-1, keepdim=True) * RIDGE + torch.finfo(gram.dtype).tiny
    upper, _ = torch.linalg.cholesky_ex(gram, upper=True)
    unit = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve_triangular(upper, unit, upper=True)


def _leading_coordinates(gram_left: Tensor, gram_right: Tensor) -> Tensor:
    """Coordinates of U in L and of W in R, (2, L, 2k, k), from their Gram matrices, (L, 2k, 2k); see `merge`."""
    keep = gram_left.shape[-1] // 2
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(2 * keep, keep, generator=generator, dtype=torch.float64)
    back = start.to(gram_left.device).expand(len(gram_left), -1, -1)
    for _ in range(MERGE_ITERATIONS):
        ahead = gram_right @ back
        ahead = ahead @ inverse_root(back.mT @ ahead)  # M · an orthonormal basis, in coordinates of L
        back = gram_left @ ahead
        root = inverse_root(ahead.mT @ back)
        ahead, back = ahead @ root, back @ root
    return torch.stack([ahead, back])


def _gram(*columns: Tensor) -> Tensor:
    """``CᵀC`` in float64, of the columns (L, m, k) of all arguments side by side."""
    size = sum(item.shape[2] for item in columns)
    result = torch.empty(len(columns[0]), size, size, dtype=torch.float64, device=columns[0].device)
    for part in _chunks(*columns):
        wide = torch.cat([item[part].double() for item in columns], 2)
        result[part] = wide.mT @ wide
    return result


def _chunks(*columns: Tensor) -> Iterator[slice]:
    layers = len(columns[0])
    size = max(1, CHUNK_BYTES // (8 * sum(item[0].numel() for item in columns)))
    return (slice(begin, begin + size) for begin in range(0, layers, size))


def _together(function: Callable[..., Tensor], *arguments: Sequence[Tensor]) -> list[Tensor]:
    """Calls a function of stacks of small matrices once for all that have one size; results in the order given."""
    alike = defaultdict(list)
    for place, matrices in enumerate(zip(*arguments, strict=True)):
        alike[matrices[0].shape[-1], matrices[0].device].append(place)
    results: dict[int, Tensor] = {}
    for places in alike.values():
        joined = function(*(torch.cat([argument[place] for place in places]) for argument in arguments))
        sizes = [len(arguments[0][place]) for place in places]
        results |= zip(places, joined.split(sizes, dim=-3), strict=True)
    return [results[place] for place in range(len(results))]
