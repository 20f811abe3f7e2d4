"""What a LoRA layer adds, ``s·(left right) x``, as one operation with a gradient of its own.

Compared with the same product written in autograd's operations, the input is kept for the backward pass in its own
type, without a copy in the factors' type; the product is added in place, by the multiplication itself where all types
are the same; and s is a factor of products that are computed anyway. The gradients of float32 factors are in float32,
whatever the type of the products, so that sums over several passes are too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

FLOAT32_OUTPUT = torch.version.cuda is not None and hasattr(torch.ops.aten.mm, "dtype")
"""Whether a product of matrices in half precision can be written in float32 on a GPU, as it is accumulated."""


@dataclass(slots=True)
class Factors:
    """The factors of what a layer adds, in the type of its products.

    Args:
        right: (k, d_in), where k is the rank, or twice the rank in the difference form ``[A0 + ΔA; ΔA]``.
        left: (d_out, k); in the difference form ``[ΔB, B0]``.
        scaling: s, which is in neither of them.
        versions: torch's counts of changes of the two parameters, at the time when the factors were computed.
    """

    right: Tensor
    left: Tensor
    scaling: float
    versions: tuple[int, int]


class AddProduct(torch.autograd.Function):
    """``result + s·left right x``, with gradients for result, x, and the two parameters that train.

    In the difference form ΔA stands in both halves of ``right``, and B0, which does not train, in the second half of
    ``left``.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, result: Tensor, x: Tensor, of_a: Tensor, of_b: Tensor, factors: Factors
    ) -> Tensor:
        """
        Args:
            result: (…, d_out).
            x: (…, d_in).
            of_a: the parameter of A (rank, d_in).
            of_b: the parameter of B (d_out, rank).
            factors: computed from the two parameters.
        """
        right, left = factors.right, factors.left
        rows = as_matrix(x, right.dtype)  # (tokens, d_in)
        hidden = scaled_product(rows, right.t(), factors.scaling)  # (tokens, k)
        ctx.save_for_backward(x if ctx.needs_input_grad[2] else None, hidden if ctx.needs_input_grad[3] else None)
        # not saved as tensors: they are written again, with the same values, by a second forward pass
        ctx.factors, ctx.parameters, ctx.input = factors, (of_a, of_b), (x.dtype, x.shape)
        if result._is_view() or (result.is_leaf and result.requires_grad) or not result.is_contiguous():
            if result.dtype != hidden.dtype:
                return (result + torch.mm(hidden, left.t()).view(result.shape)).to(result.dtype)
            return torch.addmm(result.reshape(-1, result.shape[-1]), hidden, left.t()).view(result.shape)
        ctx.mark_dirty(result)
        if result.dtype != hidden.dtype:
            return result.add_(torch.mm(hidden, left.t()).view(result.shape))
        result.view(-1, result.shape[-1]).addmm_(hidden, left.t())
        return result

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        factors: Factors = ctx.factors
        x, hidden = ctx.saved_tensors
        input_dtype, input_shape = ctx.input
        rows = as_matrix(grad, factors.left.dtype)  # (tokens, d_out)
        of_hidden, grad_a, grad_b = gradients_of_factors(
            factors, ctx.parameters, rows, x, hidden, needed=ctx.needs_input_grad[1:4]
        )
        grad_x = None
        if ctx.needs_input_grad[1]:
            grad_x = torch.mm(of_hidden, factors.right).to(input_dtype).view(input_shape)
        return grad, grad_x, grad_a, grad_b, None


def gradients_of_factors(
    factors: Factors,
    parameters: tuple[Tensor, Tensor],
    rows: Tensor,
    x: Tensor,
    hidden: Tensor,
    *,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What the backward pass of a product needs, of which that of x is a part.

    Args:
        factors: those of the forward pass.
        parameters: of A (rank, d_in) and of B (d_out, rank).
        rows: the gradient of the layer's result, (tokens, d_out), in the type of the factors.
        x: the layer's input (…, d_in); None where A needs no gradient.
        hidden: ``s·right x``, (tokens, k); None where B needs no gradient.
        needed: whether x, A and B need a gradient.

    Returns:
        The gradient of ``hidden`` times s, (tokens, k), whose product with ``right`` is the adapter's part of the
        gradient of x; that of A (rank, d_in) and that of B (d_out, rank).
    """
    of_a, of_b = parameters
    if factors.versions != (of_a._version, of_b._version):
        raise RuntimeError("a LoRA factor changed between the forward and the backward pass")
    rank = of_a.shape[0]
    of_hidden, grad_a, grad_b = rows, None, None
    if needed[0] or needed[1]:
        of_hidden = scaled_product(rows, factors.left, factors.scaling)
    if needed[1]:
        # in the difference form ΔA stands in both halves
        folded = of_hidden[:, :rank] + of_hidden[:, rank:] if len(factors.right) > rank else of_hidden
        grad_a = _product_in(of_a.dtype, folded.t(), as_matrix(x, factors.right.dtype))
    if needed[2]:
        grad_b = _product_in(of_b.dtype, rows.t(), hidden[:, :rank])
    return of_hidden, grad_a, grad_b


def as_matrix(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` (…, d) as (tokens, d) in a type; a copy only where the type is another."""
    return x.reshape(-1, x.shape[-1]).to(dtype)


def scaled_product(one: Tensor, other: Tensor, scaling: float) -> Tensor:
    """``scaling · one other``, by one operation."""
    product = one.new_empty(one.shape[0], other.shape[1])
    return product.addmm_(one, other, beta=0, alpha=scaling)


def _product_in(dtype: torch.dtype, one: Tensor, other: Tensor) -> Tensor:
    """``one other`` in a type; in float32 without rounding to the factors' type before, where the device can."""
    if dtype == torch.float32 and one.dtype in (torch.bfloat16, torch.float16) and FLOAT32_OUTPUT and one.is_cuda:
        product: Tensor = torch.mm(one, other, out_dtype=dtype)  # type: ignore[call-overload]
        return product
    return torch.mm(one, other).to(dtype)
