"""Algebra of low-rank matrices, on stacks of matrices of equal shape. Pure functions on tensors.

Everything is products and Cholesky factors, which accelerators run for a full stack at once; decompositions into
singular values or eigenvectors would run one layer after the other. Small matrices are in float64, since they hold
squares of what they are made from. Those of several stacks go through each step together, because launching a kernel
costs more than its work.

Shapes are written with L matrices in a stack, m = d_out, n = d_in, k columns.
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
LowRank = tuple[Tensor, Tensor]
"""Matrices ``left · rightᵀ``, (L, m, n), as their factors ``left`` (L, m, k) and ``right`` (L, n, k)."""
Eigen = tuple[Tensor, Tensor]
"""Eigenvalues (L, k), descending, and eigenvectors (L, k, k)."""


def outer(left: Tensor, right: Tensor) -> Tensor:
    """``leftᵀ · right``, summed over tokens and returned in float32 (in float64 if the arguments are).

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


def orthonormal(stacks: Sequence[Tensor], dtypes: Sequence[torch.dtype] | None = None) -> list[Tensor]:
    """Orthonormal columns that span the same spaces (Cholesky QR); columns of zeros stay near zero.

    Args:
        stacks: (L, m, k) each.
        dtypes: types of the results, if not those of the stacks.
    """
    wide = [columns.double() for columns in stacks]
    roots = _together(inverse_root, [columns.mT @ columns for columns in wide])
    dtypes = dtypes or [columns.dtype for columns in stacks]
    return [(columns @ root).to(dtype) for columns, root, dtype in zip(wide, roots, dtypes, strict=True)]


def merge(totals: Sequence[LowRank], others: Sequence[LowRank]) -> None:
    """Adds each of the other matrices to its total, in place, and keeps the total's number of columns.

    The result is the nearest matrix of that rank to ``M = L Rᵀ``, with L and R the columns of both, by subspace
    iteration (Halko, Martinsson, Tropp 2011, arXiv 0909.4061, algorithm 4.4) on coordinates: with ``P = R Z``, ``M P``
    is ``L (RᵀR) Z``, so each iteration needs products of small matrices only.

    Args:
        totals: become ``U`` with orthonormal columns, and ``W = Mᵀ U``.
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


def eigenvectors(stacks: Sequence[Tensor]) -> list[Eigen]:
    """The eigenvalues and eigenvectors of the Gram matrices ``CᵀC`` of columns C (L, n, k), for each stack.

    Computed on the CPU, in threads: accelerators take such matrices one by one.
    """
    grams = [_gram(columns).cpu() for columns in stacks]
    matrices = [matrix for gram in grams for matrix in gram]
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        decompositions = list(pool.map(torch.linalg.eigh, matrices))
    results = []
    for gram, columns in zip(grams, stacks, strict=True):
        of_stack, decompositions = decompositions[: len(gram)], decompositions[len(gram) :]
        values, vectors = (torch.stack([pair[index] for pair in of_stack]) for index in (0, 1))
        results.append((values.flip(-1).to(columns.device), vectors.flip(-1).to(columns.device)))
    return results


def singular_triplets(left: Tensor, right: Tensor, eigen: Eigen, keep: int) -> tuple[Tensor, Tensor, Tensor]:
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
    """``R⁻¹`` for the Cholesky factor R of ``RᵀR = gram``.

    Columns that have this Gram matrix become orthonormal when they are multiplied by ``R⁻¹``.

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
    gaussian = torch.randn(2 * keep, keep, generator=generator, dtype=torch.float64)
    back = gaussian.to(gram_left.device).expand(len(gram_left), -1, -1)
    for _ in range(MERGE_ITERATIONS):
        ahead = gram_right @ back
        ahead = ahead @ inverse_root(back.mT @ ahead)  # M · an orthonormal basis, in coordinates of L
        back = gram_left @ ahead
        root = inverse_root(ahead.mT @ back)
        ahead, back = ahead @ root, back @ root
    return torch.stack([ahead, back])


def _gram(*columns: Tensor) -> Tensor:
    """``CᵀC`` in float64, (L, K, K), where C (L, m, K) holds the columns (L, m, k) of all arguments side by side."""
    size = sum(item.shape[2] for item in columns)
    result = torch.empty(len(columns[0]), size, size, dtype=torch.float64, device=columns[0].device)
    for part in _chunks(*columns):
        wide = torch.cat([item[part].double() for item in columns], 2)
        result[part] = wide.mT @ wide
    return result


def _chunks(*columns: Tensor) -> Iterator[slice]:
    """Slices of the stack, each of which takes at most `CHUNK_BYTES` in float64."""
    layers = len(columns[0])
    size = max(1, CHUNK_BYTES // (8 * sum(item[0].numel() for item in columns)))
    return (slice(begin, begin + size) for begin in range(0, layers, size))


def _together(function: Callable[..., Tensor], *arguments: Sequence[Tensor]) -> list[Tensor]:
    """Calls a function of stacks of small matrices once for all stacks whose matrices have the same size.

    Returns:
        A result for each stack, in the order given.
    """
    by_size = defaultdict(list)
    for place, matrices in enumerate(zip(*arguments, strict=True)):
        by_size[matrices[0].shape[-1], matrices[0].device].append(place)
    results: dict[int, Tensor] = {}
    for places in by_size.values():
        joined = function(*(torch.cat([argument[place] for place in places]) for argument in arguments))
        sizes = [len(arguments[0][place]) for place in places]
        results |= zip(places, joined.split(sizes, dim=-3), strict=True)
    return [results[place] for place in range(len(results))]
