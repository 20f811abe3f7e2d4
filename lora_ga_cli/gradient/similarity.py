"""How similar the gradient of a few rows is to the gradient of many."""

from __future__ import annotations

import torch
from torch import Tensor


def sign_similarity(grad: Tensor, reference: Tensor) -> float:
    """The share of entries whose sign is the same.

    Args:
        grad: (d_out, d_in), the gradient of a few rows.
        reference: (d_out, d_in), the gradient of many.
    """
    return float((torch.sign(grad) == torch.sign(reference)).double().mean())


def magnitude_similarity(grad: Tensor, reference: Tensor) -> float:
    """The share of entries of the same order of magnitude: neither is more than ten times the other.

    Args:
        grad: (d_out, d_in), the gradient of a few rows.
        reference: (d_out, d_in), the gradient of many.
    """
    larger, smaller = torch.maximum(grad.abs(), reference.abs()), torch.minimum(grad.abs(), reference.abs())
    return float((larger <= 10 * smaller).double().mean())
