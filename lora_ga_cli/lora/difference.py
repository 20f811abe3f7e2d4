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

A step takes about as long as with PEFT's own LoRA of the same rank (``scripts/bench_offset.py``), though the difference
form has twice the rank: the stacked factors are made once for a forward pass, of all layers together; s is on them
instead of on the output; the product is added in place; and the input is kept for the backward pass in its own type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer, LoraVariant
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lora_ga_cli.lora.layers import INITIAL


class _Offset(LoraVariant):
    """What both forms share: one for each layer.

    Args:
        inner: the variant that the layer had (DoRA's), which then computes with the factors of `effective`.
    """

    def __init__(self, inner: LoraVariant | None = None):
        self.inner = inner
        self.right: Tensor | None = None
        """The right factor (k, d_in) of the product that the layer adds, as `refresh` found it."""
        self.left: Tensor | None = None
        """The left factor (d_out, k), with s inside."""
        self._versions = (-1, -1)

    @staticmethod
    def init(module: LoraLayer, adapter_name: str, **_: Any) -> None:
        """PEFT asks for it when it makes a layer's adapter anew."""
        raise ValueError("an initialized adapter cannot be replaced: wrap the base model again")

    def effective(self, module: LoraLayer, adapter: str) -> tuple[Tensor, Tensor]:
        """The factors (k, d_in) and (d_out, k) whose product, times s, is what the adapter adds."""
        raise NotImplementedError

    def forward(  # type: ignore[override]  # PEFT's are static, and called on the instance
        self, module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **options: Any
    ) -> Tensor:
        """``result`` (…, d_out) with what the adapter adds for ``x`` (…, d_in)."""
        if self.inner is not None:
            view: Any = _View(module, active_adapter, *self.effective(module, active_adapter))
            return self.inner.forward(view, active_adapter, x, result, **options)
        delta_a, delta_b = (factor.weight for factor in _factors(module, active_adapter))
        if self._versions != (delta_a._version, delta_b._version) or self.right is None:
            self.refresh(module, active_adapter)
        x = module.lora_dropout[active_adapter](x)
        added: Tensor = _AddProduct.apply(  # type: ignore[no-untyped-call]
            result, x, delta_a, delta_b, self.right, self.left, module.scaling[active_adapter]
        )
        return added

    @torch.no_grad()
    def refresh(self, module: LoraLayer, adapter: str) -> None:
        """Computes `left` and `right` from what the parameters are now."""
        a, b = self.effective(module, adapter)
        self.keep(module, adapter, a, module.scaling[adapter] * b)

    def keep(self, module: LoraLayer, adapter: str, right: Tensor, left: Tensor) -> None:
        """Keeps the factors for the forward passes until the parameters change."""
        self.right, self.left = right, left
        of_a, of_b = _factors(module, adapter)
        self._versions = (of_a.weight._version, of_b.weight._version)

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
        of_a, of_b = _factors(module, adapter)
        return difference_form(of_a.weight, of_b.weight, getattr(of_a, INITIAL), getattr(of_b, INITIAL))


class BaseOffset(_Offset):
    """The trained product, on a base from whose weights ``s·B0 A0`` was subtracted. See the module."""

    def effective(self, module: LoraLayer, adapter: str) -> tuple[Tensor, Tensor]:
        """``A0 + ΔA`` (rank, d_in) and ``B0 + ΔB`` (d_out, rank)."""
        of_a, of_b = _factors(module, adapter)
        return getattr(of_a, INITIAL) + of_a.weight, getattr(of_b, INITIAL) + of_b.weight


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


def refresh_before_forward(model: nn.Module, layers: Sequence[LoraLayer], adapter: str) -> None:
    """Has a model compute the factors of all its layers together, before each forward pass.

    A layer alone would launch four small operations for each pass, which takes longer than their work; and an optimizer
    that writes into memory without telling torch (bitsandbytes' paged ones) would not be noticed.

    Args:
        model: whose forward pass uses the layers; the backbone inside it gets the same hook.
    """
    computed_here = [layer for layer in layers if _offset(layer, adapter).inner is None]
    stacked = [layer for layer in computed_here if isinstance(_offset(layer, adapter), AdapterOffset)]
    alone = [layer for layer in computed_here if isinstance(_offset(layer, adapter), BaseOffset)]
    together = _Together(stacked, adapter) if stacked else None

    @torch.no_grad()
    def refresh(*_: Any) -> None:
        if together is not None:
            together.refresh()
        for layer in alone:
            _offset(layer, adapter).refresh(layer, adapter)

    backbone = getattr(model, str(getattr(model, "base_model_prefix", "")), None)
    for module in {id(module): module for module in (model, backbone) if isinstance(module, nn.Module)}.values():
        module.register_forward_pre_hook(refresh)


class _Together:
    """The stacked factors of all layers with the difference form, in memory of their own that is written again."""

    def __init__(self, layers: Sequence[LoraLayer], adapter: str):
        self.layers, self.adapter = layers, adapter
        self.right: list[Tensor] = []
        self.left: list[Tensor] = []

    def refresh(self) -> None:
        """Writes ``[A0 + ΔA; ΔA]`` and ``s·[ΔB, B0]`` of every layer."""
        pairs = [_factors(layer, self.adapter) for layer in self.layers]
        deltas_a, deltas_b = [of_a.weight.data for of_a, _ in pairs], [of_b.weight.data for _, of_b in pairs]
        initial_a = [getattr(of_a, INITIAL) for of_a, _ in pairs]
        self._make_room(deltas_a, deltas_b)
        ranks = [delta.shape[0] for delta in deltas_a]
        upper = [right[:rank] for right, rank in zip(self.right, ranks, strict=True)]
        lower = [right[rank:] for right, rank in zip(self.right, ranks, strict=True)]
        before = [left[:, :rank] for left, rank in zip(self.left, ranks, strict=True)]
        scalings = [layer.scaling[self.adapter] for layer in self.layers]
        torch._foreach_copy_(upper, torch._foreach_add(initial_a, deltas_a))
        torch._foreach_copy_(lower, deltas_a)
        torch._foreach_copy_(before, torch._foreach_mul(deltas_b, scalings))
        for layer, right, left in zip(self.layers, self.right, self.left, strict=True):
            _offset(layer, self.adapter).keep(layer, self.adapter, right, left)

    def _make_room(self, deltas_a: list[Tensor], deltas_b: list[Tensor]) -> None:
        if self.right and self.right[0].device == deltas_a[0].device:
            return
        self.right = [torch.cat([delta, delta]) for delta in deltas_a]
        self.left = []
        for layer, delta in zip(self.layers, deltas_b, strict=True):
            b0 = getattr(layer.lora_B[self.adapter], INITIAL)
            self.left.append(torch.cat([delta, layer.scaling[self.adapter] * b0], dim=1))


class _AddProduct(torch.autograd.Function):
    """``result + left right x``, in place where that is possible, with gradients for result, x, ΔA and ΔB.

    In the difference form ΔA stands in both halves of ``right``, and B0, which does not train, in the second half of
    ``left``.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        result: Tensor,
        x: Tensor,
        delta_a: Tensor,
        delta_b: Tensor,
        right: Tensor,
        left: Tensor,
        scaling: float,
    ) -> Tensor:
        """
        Args:
            result: (…, d_out).
            x: (…, d_in).
            delta_a: ΔA (rank, d_in).
            delta_b: ΔB (d_out, rank).
            right: (k, d_in), k = rank or 2·rank.
            left: (d_out, k), with s inside.
        """
        dtype = _computing_dtype(x, right)
        rows = x.reshape(-1, x.shape[-1])  # (tokens, d_in)
        hidden = rows.to(dtype) @ right.to(dtype).T  # (tokens, k)
        added = (hidden @ left.to(dtype).T).view(result.shape)
        ctx.save_for_backward(rows, hidden)
        # not saved as tensors: they are written again, with the same values, by a second forward pass
        ctx.factors, ctx.deltas = (right, left), (delta_a, delta_b)
        ctx.versions = (delta_a._version, delta_b._version)
        ctx.rank, ctx.scaling, ctx.leading = delta_a.shape[0], scaling, x.shape[:-1]
        if result._is_view() or result.is_leaf:
            return (result + added).to(result.dtype)
        ctx.mark_dirty(result)
        return result.add_(added)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.versions != tuple(delta._version for delta in ctx.deltas):
            raise RuntimeError("a LoRA factor changed between the forward and the backward pass")
        rows, hidden = ctx.saved_tensors
        right, left = ctx.factors
        dtype, rank = hidden.dtype, ctx.rank
        of_rows = grad.reshape(-1, grad.shape[-1]).to(dtype)  # (tokens, d_out)
        of_hidden = of_rows @ left.to(dtype)  # (tokens, k)
        grad_x = None
        if ctx.needs_input_grad[1]:
            grad_x = (of_hidden @ right.to(dtype)).to(rows.dtype).view(*ctx.leading, right.shape[1])
        of_right = (of_hidden.T @ rows.to(dtype)).to(right.dtype)  # (k, d_in)
        if len(of_right) > rank:
            of_right = of_right[:rank] + of_right[rank:]
        of_delta_b = (of_rows.T @ hidden[:, :rank]).to(left.dtype).mul_(ctx.scaling)
        return grad, grad_x, of_right, of_delta_b, None, None, None


def _factors(module: LoraLayer, adapter: str) -> tuple[Any, Any]:
    """The modules of A and B, each with what trains as ``weight`` and the initial factor as a buffer."""
    return module.lora_A[adapter], module.lora_B[adapter]


def _offset(layer: LoraLayer, adapter: str) -> _Offset:
    variant = layer.lora_variant[adapter]
    assert isinstance(variant, _Offset)
    return variant


def _computing_dtype(x: Tensor, right: Tensor) -> torch.dtype:
    """The type in which products are computed: autocast's where it is on, else that of the factors."""
    kind = x.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return right.dtype


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
