"""What a LoRA layer computes when its factors train as differences from where they began.

With ``A = A0 + ΔA`` and ``B = B0 + ΔB`` the adapter must add ``s·(B A - B0 A0) x``, which is zero before the first
step. The parameters that train are ΔA (rank, d_in) and ΔB (d_out, rank), in float32, and begin at zero; A0 and B0 are
buffers. Weight decay therefore pulls towards the initialization.

- `AdapterOffset`: the base stays as it is, and the layer computes the **difference form**
  ``s·[ΔB, B0] [A0 + ΔA; ΔA] x = s·(B A - B0 A0) x``. No two large products are subtracted, so it stays exact when
  it is rounded to bfloat16.
- `BaseOffset`: ``s·B0 A0`` was subtracted from the base's weights, and the layer adds ``s·(B0 + ΔB)(A0 + ΔA) x``.

Both are variants of PEFT's LoRA layer, which calls them where it would compute its own product. PEFT marks that
interface as private; there is no public one, and the supported versions of PEFT are pinned.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer, LoraVariant
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lora_ga_cli.lora.layers import INITIAL


class _Offset(LoraVariant):
    """What both forms share.

    Args:
        inner: the variant that the layer had (DoRA's), which then computes with the factors of `effective`.
    """

    def __init__(self, inner: LoraVariant | None = None):
        self.inner = inner

    @staticmethod
    def init(module: LoraLayer, adapter_name: str, **_: Any) -> None:
        """PEFT asks for it when it makes a layer's adapter anew."""
        raise ValueError("an initialized adapter cannot be replaced: wrap the base model again")

    def effective(self, module: LoraLayer, adapter: str) -> tuple[Tensor, Tensor]:
        """The factors (k, d_in) and (d_out, k) whose product, times s, is what the adapter adds."""
        raise NotImplementedError

    def add(self, module: LoraLayer, adapter: str, x: Tensor, result: Tensor) -> Tensor:
        """``result`` (…, d_out) with what the adapter adds for ``x`` (…, d_in)."""
        raise NotImplementedError

    def forward(  # type: ignore[override]  # PEFT's are static, and called on the instance
        self, module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **options: Any
    ) -> Tensor:
        if self.inner is None:
            x = module.lora_dropout[active_adapter](x)
            return self.add(module, active_adapter, x, result)
        view: Any = _View(module, active_adapter, *self.effective(module, active_adapter))
        return self.inner.forward(view, active_adapter, x, result, **options)

    def merge_safe(self, module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:  # type: ignore[override]
        return orig_weight + self._change(module, active_adapter, orig_weight)

    def merge_unsafe(self, module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> None:  # type: ignore[override]
        orig_weight.data += self._change(module, active_adapter, orig_weight)

    def unmerge(self, module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:  # type: ignore[override]
        return orig_weight - self._change(module, active_adapter, orig_weight)

    def _change(self, module: LoraLayer, adapter: str, like: Tensor) -> Tensor:
        if self.inner is not None:
            raise ValueError("this adapter has trained magnitudes: export it, and merge what was saved")
        a, b = self.effective(module, adapter)
        change = module.scaling[adapter] * (b @ a)
        return (change.T if getattr(module, "fan_in_fan_out", False) else change).to(like)


class AdapterOffset(_Offset):
    """The difference form, beside a base that stays as it is. See the module."""

    def effective(self, module: LoraLayer, adapter: str) -> tuple[Tensor, Tensor]:
        """``[A0 + ΔA; ΔA]`` (2·rank, d_in) and ``[ΔB, B0]`` (d_out, 2·rank)."""
        of_a, of_b = module.lora_A[adapter], module.lora_B[adapter]
        return difference_form(of_a.weight, of_b.weight, getattr(of_a, INITIAL), getattr(of_b, INITIAL))

    def add(self, module: LoraLayer, adapter: str, x: Tensor, result: Tensor) -> Tensor:
        of_a, of_b = module.lora_A[adapter], module.lora_B[adapter]
        initial_a, initial_b = getattr(of_a, INITIAL), getattr(of_b, INITIAL)
        added: Tensor = _DifferenceProduct.apply(  # type: ignore[no-untyped-call]
            x, of_a.weight, of_b.weight, initial_a, initial_b, module.scaling[adapter]
        )
        return result + added


class BaseOffset(_Offset):
    """The trained product, on a base from whose weights ``s·B0 A0`` was subtracted. See the module."""

    def effective(self, module: LoraLayer, adapter: str) -> tuple[Tensor, Tensor]:
        """``A0 + ΔA`` (rank, d_in) and ``B0 + ΔB`` (d_out, rank)."""
        of_a, of_b = module.lora_A[adapter], module.lora_B[adapter]
        return getattr(of_a, INITIAL) + of_a.weight, getattr(of_b, INITIAL) + of_b.weight

    def add(self, module: LoraLayer, adapter: str, x: Tensor, result: Tensor) -> Tensor:
        a, b = self.effective(module, adapter)
        return result + functional.linear(functional.linear(x, a), module.scaling[adapter] * b)


OFFSETS: dict[str, type[_Offset]] = {"adapter": AdapterOffset, "base": BaseOffset}


def difference_form(delta_a: Tensor, delta_b: Tensor, a0: Tensor, b0: Tensor) -> tuple[Tensor, Tensor]:
    """The factors of ``B A - B0 A0`` as one product: ``[A0 + ΔA; ΔA]`` (2·rank, d_in), ``[ΔB, B0]`` (d_out, 2·rank).

    Args:
        delta_a: ΔA (rank, d_in).
        delta_b: ΔB (d_out, rank).
        a0: A0 (rank, d_in).
        b0: B0 (d_out, rank).
    """
    return torch.cat([a0 + delta_a, delta_a]), torch.cat([delta_b, b0], dim=1)


class _DifferenceProduct(torch.autograd.Function):
    """``s·[ΔB, B0] [A0 + ΔA; ΔA] x``, with gradients for x, ΔA and ΔB.

    One node of the graph instead of nine, and s on the small factor instead of on the output: so a step takes about
    as long as with a plain LoRA of the same rank (``scripts/bench_offset.py``).
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, delta_a: Tensor, delta_b: Tensor, a0: Tensor, b0: Tensor, scaling: float
    ) -> Tensor:
        dtype = _computing_dtype(x)
        a, b = difference_form(delta_a, delta_b, a0, b0)
        a, b = a.to(dtype), (scaling * b).to(dtype)
        rows = x.reshape(-1, x.shape[-1]).to(dtype)  # (tokens, d_in)
        hidden = rows @ a.T  # (tokens, 2·rank)
        ctx.save_for_backward(rows, hidden, a, b)
        ctx.rank, ctx.scaling, ctx.input_dtype, ctx.leading = delta_a.shape[0], scaling, x.dtype, x.shape[:-1]
        return (hidden @ b.T).view(*x.shape[:-1], b.shape[0])

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rows, hidden, a, b = ctx.saved_tensors
        rank = ctx.rank
        grad = grad.reshape(-1, grad.shape[-1]).to(rows.dtype)  # (tokens, d_out)
        grad_hidden = grad @ b  # (tokens, 2·rank)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad_hidden @ a).view(*ctx.leading, a.shape[1]).to(ctx.input_dtype)
        grad_stacked = (grad_hidden.T @ rows).float()  # (2·rank, d_in): ΔA stands in both halves
        grad_b = ctx.scaling * (grad.T @ hidden[:, :rank]).float()
        return grad_x, grad_stacked[:rank] + grad_stacked[rank:], grad_b, None, None, None


def _computing_dtype(x: Tensor) -> torch.dtype:
    """The type in which products are computed: autocast's where it is on, else that of the input."""
    kind = x.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return x.dtype


class _Factor:
    """A matrix that is called and read as a linear layer is."""

    def __init__(self, weight: Tensor):
        self.weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight)


class _View:
    """A LoRA layer with other factors, for a variant of PEFT's that reads them from the layer."""

    def __init__(self, module: LoraLayer, adapter: str, a: Tensor, b: Tensor):
        self._module = module
        self.lora_A = {adapter: _Factor(a)}
        self.lora_B = {adapter: _Factor(b)}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)
