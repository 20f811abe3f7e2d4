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
        self.scaling = 1.0
        self.deltas: tuple[Tensor, Tensor] | None = None
        """ΔA and ΔB, whose `versions` the factors were computed from."""
        self.versions = (-1, -1)

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
        if torch.compiler.is_compiling():
            return self._compiled(module, active_adapter, x, result)
        if self.deltas is None or self.versions != (self.deltas[0]._version, self.deltas[1]._version):
            self.refresh(module, active_adapter)
            assert self.deltas is not None
        dropout = module.lora_dropout[active_adapter]
        if type(dropout) is not nn.Identity:
            x = dropout(x)
        added: Tensor = _AddProduct.apply(result, x, *self.deltas, self)  # type: ignore[no-untyped-call]
        return added

    def _compiled(self, module: LoraLayer, adapter: str, x: Tensor, result: Tensor) -> Tensor:
        """As `forward`, in operations that torch.compile can trace: it fuses them, and finds their gradient itself."""
        a, b = self.effective(module, adapter)
        dtype = _computing_dtype(x, a)
        hidden = functional.linear(module.lora_dropout[adapter](x).to(dtype), a.to(dtype))
        added = functional.linear(hidden, (module.scaling[adapter] * b).to(dtype))
        return (result + added).to(result.dtype)

    @torch.no_grad()
    def refresh(self, module: LoraLayer, adapter: str) -> None:
        """Computes `left` and `right` from what the parameters are now, for this layer alone."""
        a, b = self.effective(module, adapter)
        of_a, of_b = _factors(module, adapter)
        self.scaling = module.scaling[adapter]
        self.right, self.left = a, self.scaling * b
        self.deltas = of_a.weight, of_b.weight
        self.versions = (of_a.weight._version, of_b.weight._version)

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
    kinds: list[tuple[type[_Offset], type[_Together]]] = [(AdapterOffset, _Stacked), (BaseOffset, _Single)]
    groups = []
    for offset, kind in kinds:
        if chosen := [layer for layer in computed_here if isinstance(_offset(layer, adapter), offset)]:
            groups.append(kind(chosen, adapter))

    @torch.no_grad()
    def refresh(*_: Any) -> None:
        for group in groups:
            group.refresh()

    backbone = getattr(model, str(getattr(model, "base_model_prefix", "")), None)
    for module in {id(module): module for module in (model, backbone) if isinstance(module, nn.Module)}.values():
        module.register_forward_pre_hook(refresh)


class _Together:
    """The factors of several layers, computed by operations on lists, which launch one kernel for many tensors."""

    def __init__(self, layers: Sequence[LoraLayer], adapter: str):
        pairs = [_factors(layer, adapter) for layer in layers]
        self.offsets = [_offset(layer, adapter) for layer in layers]
        self.modules_a, self.modules_b = [of_a for of_a, _ in pairs], [of_b for _, of_b in pairs]
        self.scalings = [layer.scaling[adapter] for layer in layers]
        self.device: torch.device | None = None

    def refresh(self) -> None:
        """Computes the factors of every layer from what the parameters are now."""
        if self.device != self.modules_a[0].weight.device:
            self.prepare()
        self.compute()
        for offset, delta_a, delta_b in zip(self.offsets, self.deltas_a, self.deltas_b, strict=True):
            offset.versions = (delta_a._version, delta_b._version)

    def prepare(self) -> None:
        """Looks the parameters and the initial factors up, once for a device."""
        self.deltas_a, self.deltas_b = ([module.weight for module in of] for of in (self.modules_a, self.modules_b))
        self.initial_a, self.initial_b = (
            [getattr(module, INITIAL) for module in of] for of in (self.modules_a, self.modules_b)
        )
        for number, offset in enumerate(self.offsets):
            offset.scaling, offset.deltas = self.scalings[number], (self.deltas_a[number], self.deltas_b[number])
        self.device = self.deltas_a[0].device

    def compute(self) -> None:
        raise NotImplementedError


class _Single(_Together):
    """``A0 + ΔA`` and ``s·(B0 + ΔB)`` of every layer."""

    def compute(self) -> None:
        right = torch._foreach_add(self.initial_a, self.deltas_a)
        left = torch._foreach_mul(torch._foreach_add(self.initial_b, self.deltas_b), self.scalings)
        for number, offset in enumerate(self.offsets):
            offset.right, offset.left = right[number], left[number]


class _Stacked(_Together):
    """``[A0 + ΔA; ΔA]`` and ``s·[ΔB, B0]`` of every layer, in memory of their own that is written again."""

    def prepare(self) -> None:
        super().prepare()
        right = [torch.cat([delta, delta]) for delta in self.deltas_a]  # (2·rank, d_in)
        left = [
            torch.cat([delta, scaling * b0], dim=1)  # (d_out, 2·rank)
            for delta, b0, scaling in zip(self.deltas_b, self.initial_b, self.scalings, strict=True)
        ]
        ranks = [len(delta) for delta in self.deltas_a]
        self.upper = [factor[:rank] for factor, rank in zip(right, ranks, strict=True)]
        self.lower = [factor[rank:] for factor, rank in zip(right, ranks, strict=True)]
        self.before = [factor[:, :rank] for factor, rank in zip(left, ranks, strict=True)]
        for number, offset in enumerate(self.offsets):
            offset.right, offset.left = right[number], left[number]

    def compute(self) -> None:
        torch._foreach_copy_(self.upper, torch._foreach_add(self.initial_a, self.deltas_a))
        torch._foreach_copy_(self.lower, self.deltas_a)
        torch._foreach_copy_(self.before, torch._foreach_mul(self.deltas_b, self.scalings))


class _AddProduct(torch.autograd.Function):
    """``result + left right x``, in place where that is possible, with gradients for result, x, ΔA and ΔB.

    In the difference form ΔA stands in both halves of ``right``, and B0, which does not train, in the second half of
    ``left``.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, result: Tensor, x: Tensor, delta_a: Tensor, delta_b: Tensor, offset: _Offset
    ) -> Tensor:
        """
        Args:
            result: (…, d_out).
            x: (…, d_in).
            delta_a: ΔA (rank, d_in).
            delta_b: ΔB (d_out, rank).
            offset: has the factors ``right`` (k, d_in), k = rank or 2·rank, and ``left`` (d_out, k) with s inside.
        """
        right, left = offset.right, offset.left
        assert right is not None
        assert left is not None
        dtype = _computing_dtype(x, right)
        if right.dtype != dtype:
            right, left = right.to(dtype), left.to(dtype)
        hidden = functional.linear(x if x.dtype == dtype else x.to(dtype), right)  # (…, k)
        added = functional.linear(hidden, left)
        ctx.save_for_backward(x, hidden)
        # not saved as tensors: they are written again, with the same values, by a second forward pass
        ctx.factors, ctx.deltas, ctx.versions = (right, left), (delta_a, delta_b), offset.versions
        ctx.scaling = offset.scaling
        if result.is_leaf or result._is_view():
            return (result + added).to(result.dtype)
        ctx.mark_dirty(result)
        return result.add_(added)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        delta_a, delta_b = ctx.deltas
        if ctx.versions != (delta_a._version, delta_b._version):
            raise RuntimeError("a LoRA factor changed between the forward and the backward pass")
        x, hidden = ctx.saved_tensors
        right, left = ctx.factors
        dtype, rank = hidden.dtype, delta_a.shape[0]
        of_rows = grad.reshape(-1, grad.shape[-1])  # (tokens, d_out)
        of_rows = of_rows if of_rows.dtype == dtype else of_rows.to(dtype)
        of_hidden = torch.mm(of_rows, left)  # (tokens, k)
        grad_x = None
        if ctx.needs_input_grad[1]:
            grad_x = torch.mm(of_hidden, right).to(x.dtype).view(x.shape)
        rows, hidden = x.reshape(-1, x.shape[-1]), hidden.view(-1, hidden.shape[-1])
        rows = rows if rows.dtype == dtype else rows.to(dtype)  # (tokens, d_in)
        if len(right) > rank:  # ΔA stands in both halves
            of_hidden = of_hidden[:, :rank] + of_hidden[:, rank:]
            hidden = hidden[:, :rank]
        grad_a = torch.mm(of_hidden.t(), rows)  # (rank, d_in)
        if dtype == delta_b.dtype:  # (d_out, rank), times s in the same operation
            grad_b = torch.addmm(delta_b, of_rows.t(), hidden, beta=0, alpha=ctx.scaling)
        else:
            grad_b = torch.mm(of_rows.t(), hidden).mul_(ctx.scaling).to(delta_b.dtype)
        return grad, grad_x, grad_a.to(delta_a.dtype), grad_b, None


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
