"""How like two estimates of a gradient are: that of a few rows, and that of many."""

from __future__ import annotations

import torch
from torch import Tensor


def sign_similarity(grad: Tensor, reference: Tensor) -> float:
    """The share of numbers whose sign is the same.

    Args:
        grad: (d_out, d_in), of a few rows.
        reference: (d_out, d_in), of many.
    """
    return float((torch.sign(grad) == torch.sign(reference)).double().mean())


def magnitude_similarity(grad: Tensor, reference: Tensor) -> float:
    """The share of numbers of the same order of magnitude: neither more than ten times the other.

    Args:
        grad: (d_out, d_in), of a few rows.
        reference: (d_out, d_in), of many.
    """
    larger, smaller = torch.maximum(grad.abs(), reference.abs()), torch.minimum(grad.abs(), reference.abs())
    return float((larger <= 10 * smaller).double().mean())
