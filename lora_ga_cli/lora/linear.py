"""A linear layer and what its LoRA adapter adds, ``W x + bias + s·(left right) x``, as one operation.

`lora.product` adds to what the base layer computed. Autograd then has two operations that read x, so that the backward
pass computes two gradients of it, (tokens, d_in) each, and launches an addition of them. Here the second product is
added to the first one by the multiplication itself, as in the forward pass. PEFT's own code between the two is not
called either, which counts where the CPU cannot launch operations as fast as a GPU ends them.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor

from lora_ga_cli.lora.product import Factors, as_matrix, gradients_of_factors, scaled_product
from lora_ga_cli.model.targets import is_packed


class AdaptedLinear(torch.autograd.Function):
    """``W x + bias + s·left right x`` with a frozen base, and gradients for x and the two parameters that train."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, of_a: Tensor, of_b: Tensor, weight: Tensor, bias: Tensor | None, factors: Factors
    ) -> Tensor:
        """
        Args:
            x: (…, d_in), in any type.
            of_a: the parameter of A (rank, d_in).
            of_b: the parameter of B (d_out, rank).
            weight: W (d_out, d_in), in the type of the factors, which is that of the result.
            bias: (d_out), or None.
            factors: computed from the two parameters.
        """
        right, left = factors.right, factors.left
        rows = as_matrix(x, right.dtype)  # (tokens, d_in)
        # a result that is no view, because models may change it in place
        result = rows.new_empty(*x.shape[:-1], len(weight))
        out = result.view(-1, len(weight))  # (tokens, d_out)
        if bias is None:
            torch.mm(rows, weight.t(), out=out)
        else:
            torch.addmm(bias, rows, weight.t(), out=out)
        hidden = scaled_product(rows, right.t(), factors.scaling)  # (tokens, k)
        out.addmm_(hidden, left.t())
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, hidden if ctx.needs_input_grad[2] else None)
        # not saved as tensors: the base's weight stays, and the factors are written again, with the same values, by a
        # second forward pass
        ctx.factors, ctx.parameters, ctx.input = factors, (of_a, of_b), (x.dtype, x.shape)
        ctx.weight, ctx.version = weight, weight._version
        return result

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        factors: Factors = ctx.factors
        if ctx.weight._version != ctx.version:
            raise RuntimeError("a weight of the base changed between the forward and the backward pass")
        x, hidden = ctx.saved_tensors
        input_dtype, input_shape = ctx.input
        rows = as_matrix(grad, factors.left.dtype)  # (tokens, d_out)
        of_hidden, grad_a, grad_b = gradients_of_factors(
            factors, ctx.parameters, rows, x, hidden, needed=ctx.needs_input_grad[:3]
        )
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (rows @ ctx.weight).addmm_(of_hidden, factors.right).to(input_dtype).view(input_shape)
        return grad_x, grad_a, grad_b, None, None, None


def compute_together(layer: LoraLayer, adapter: str) -> None:
    """Has a LoRA layer compute its base's product and its adapter's by `AdaptedLinear`, in place.

    Only a layer on an `nn.Linear` whose weight is complete, frozen and not quantized does. In a call to which anything
    else applies (a hook on the base layer, a merged or disabled adapter, dropout, another type of the products than the
    weight's, `torch.compile`), the layer computes by PEFT's ``forward``, as it did.
    """
    base = layer.get_base_layer()
    if type(base) is not nn.Linear or isinstance(base.weight.data, DTensor) or is_packed(base.weight):
        return

    def forward(layer: Any, x: Tensor, *args: Any, **options: Any) -> Tensor:
        if torch.compiler.is_compiling() or args or options or not _is_plain(layer, adapter):
            return type(layer).forward(layer, x, *args, **options)  # type: ignore[no-any-return]
        factors: Factors = layer.lora_variant[adapter].factors_for(layer, adapter, x)
        base = layer.base_layer
        if factors.right.dtype != base.weight.dtype:
            return type(layer).forward(layer, x)  # type: ignore[no-any-return]
        of_a, of_b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
        result: Tensor = AdaptedLinear.apply(x, of_a, of_b, base.weight, base.bias, factors)  # type: ignore[no-untyped-call]
        return result

    layer.forward = MethodType(forward, layer)  # type: ignore[attr-defined]


def _is_plain(layer: Any, adapter: str) -> bool:
    """Whether a call of the layer computes nothing but the two products."""
    base = layer.base_layer
    hooks = base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or base._backward_pre_hooks
    return not (
        hooks
        or layer.disable_adapters
        or layer.merged
        or layer.active_adapters != [adapter]
        or type(layer.lora_dropout[adapter]) is not nn.Identity
        or base.weight.requires_grad
        or (base.bias is not None and base.bias.requires_grad)
        or "forward" in base.__dict__  # another library computes the base's product
    )
