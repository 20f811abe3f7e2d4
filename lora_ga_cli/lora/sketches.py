"""Random factors: the initial or frozen factor of a low-rank adapter, drawn anew for a run or for each link of a chain.

A factor that is frozen while the other one trains is called a sketch (RAC-LoRA, arXiv 2410.08305): it decides in which
subspace the weight can move.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Generator, Tensor

Kind = Literal["gaussian", "orthonormal", "kaiming"]


def draw_factor(
    shape: tuple[int, int], kind: Kind, generator: Generator | None = None, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Draws a factor A of shape (rank, d_in), or a factor B of shape (d_out, rank).

    The vectors of a factor are the rows of A or the columns of B. Let n be their length, d_in or d_out.

    - ``gaussian``: independent entries from N(0, 1/n), so that the expected square of a vector's length is one.
    - ``orthonormal``: orthonormal vectors whose span is uniformly distributed (the Haar measure): A Aᵀ = I or BᵀB = I.
    - ``kaiming``: independent entries from U(-1/√n, 1/√n), the initial A of PEFT's LoRA; a vector's length is about
      1/√3. From a generator in the same state it is PEFT's draw, bit by bit, in float32 on the CPU.

    The expected projection onto the span of the vectors is (rank/n)·I for all three, since no coordinate and no sign of
    a coordinate is preferred.

    Args:
        shape: the longer side is n. A square factor is read as an A.
        kind: the distribution.
        generator: where the numbers come from, on the CPU; torch's own generator by default.
        dtype: the dtype of the result. Numbers are drawn in float32, or in float64 if that is asked for; vectors are
            made orthonormal in float64.

    Returns:
        The factor, on the CPU.
    """
    rank, length = sorted(shape)
    drawn_in = torch.float64 if dtype == torch.float64 else torch.float32
    rows = DRAWS[kind](torch.empty(rank, length, dtype=drawn_in), generator)
    return (rows if shape == (rank, length) else rows.T).to(dtype).contiguous()


def _gaussian(rows: Tensor, generator: Generator | None) -> Tensor:
    return rows.normal_(0, rows.shape[1] ** -0.5, generator=generator)


def _orthonormal(rows: Tensor, generator: Generator | None) -> Tensor:
    vectors, triangle = torch.linalg.qr(rows.normal_(generator=generator).double().T)
    # Without the signs of the diagonal, the distribution would depend on the convention of the QR decomposition.
    signs = torch.where(triangle.diagonal() < 0, -1.0, 1.0).double()
    return (vectors * signs).T


def _kaiming(rows: Tensor, generator: Generator | None) -> Tensor:
    return torch.nn.init.kaiming_uniform_(rows, a=math.sqrt(5), generator=generator)


DRAWS: dict[Kind, Callable[[Tensor, Generator | None], Tensor]] = {
    "gaussian": _gaussian,
    "orthonormal": _orthonormal,
    "kaiming": _kaiming,
}
"""How each kind of factor is drawn: fills rows (rank, n), and returns them."""
