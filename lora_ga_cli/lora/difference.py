"""What a LoRA layer computes: the product of factors that train themselves, or as differences from where they began.

- `Direct`: A (rank, d_in) and B (d_out, rank) train, and the layer adds ``s·B A x`` as PEFT does.

With ``A = A0 + ΔA`` and ``B = B0 + ΔB`` the adapter must add ``s·(B A - B0 A0) x``, which is zero before the first
step. The parameters that train are ΔA (rank, d_in) and ΔB (d_out, rank), in float32, and begin at zero; A0 and B0 are
buffers. Weight decay therefore pulls towards the initialization.

- `AdapterOffset`: the base stays as it is, and the layer computes the **difference form**
  ``s·[ΔB, B0] [A0 + ΔA; ΔA] x = s·(B A - B0 A0) x``. No two large products are subtracted, so it stays exact when
  it is rounded to bfloat16.
- `BaseOffset`: ``s·B0 A0`` was subtracted from the base's weights, and the layer adds ``s·(B0 + ΔB)(A0 + ΔA) x``.

All are variants of PEFT's LoRA layer, which calls them where it would compute its own product. PEFT marks that
interface as private; there is no public one, and the supported versions of PEFT are pinned.

The products are computed in the type that `lora.adapter_dtype` sets, by default that of the parameters; the parameters
and their gradients stay in float32. A step of the difference form takes about as long as one of the same rank without
it (``scripts/bench_offset.py``), though it has twice the rank: `lora.refresh` computes the factors once for a forward
pass, of all layers together, and `lora.product` multiplies.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer, LoraVariant
from torch import Tensor, nn
from torch.nn import functional

from lora_ga_cli.lora.experts import unpack
from lora_ga_cli.lora.layers import INITIAL
from lora_ga_cli.lora.linear import compute_together
from lora_ga_cli.lora.product import AddProduct, Factors


class PairVariant(LoraVariant):
    """What all forms share: one for each layer.

    Args:
        inner: the variant that the layer had (DoRA's), which then computes with the factors of `effective`.
    """

    def __init__(self, inner: LoraVariant | None = None):
        self.inner = inner
        self.dtype: torch.dtype | None = None
        """The type of the products; None for that of the parameters. Where autocast is on, its type comes before."""
        self.factors: Factors | None = None
        """What `refresh`, or `lora.refresh` for all layers, computed last."""

    @staticmethod
    def init(module: LoraLayer, adapter_name: str, **_: Any) -> None:
        """PEFT asks for it when it makes a layer's adapter anew."""
        raise ValueError("this adapter cannot be replaced: wrap the base model again")

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
        dropout = module.lora_dropout[active_adapter]
        if type(dropout) is not nn.Identity:
            x = dropout(x)
        if torch.compiler.is_compiling():
            return self._traced(module, active_adapter, x, result)
        of_a, of_b = (factor.weight for factor in factors_of(module, active_adapter))
        factors = self.factors_for(module, active_adapter, x)
        added: Tensor = AddProduct.apply(result, x, of_a, of_b, factors)  # type: ignore[no-untyped-call]
        return added

    def factors_for(self, module: LoraLayer, adapter: str, x: Tensor) -> Factors:
        """The factors of a forward pass with the input ``x`` (…, d_in); computed again where they are out of date."""
        of_a, of_b = (factor.weight for factor in factors_of(module, adapter))
        dtype = product_dtype(x.device, self.dtype or of_a.dtype)
        if self.factors is None or self.factors.right.dtype != dtype or self.factors.versions != versions(of_a, of_b):
            self.refresh(module, adapter, dtype)
        assert self.factors is not None
        return self.factors

    @torch.no_grad()
    def refresh(self, module: LoraLayer, adapter: str, dtype: torch.dtype) -> None:
        """Computes `factors` from what the parameters are now, for this layer alone."""
        a, b = self.effective(module, adapter)
        of_a, of_b = (factor.weight for factor in factors_of(module, adapter))
        self.factors = Factors(a.to(dtype), b.to(dtype), module.scaling[adapter], versions(of_a, of_b))

    def _traced(self, module: LoraLayer, adapter: str, x: Tensor, result: Tensor) -> Tensor:
        """The same in autograd's operations, which torch.compile can read and fuse."""
        of_a, _ = factors_of(module, adapter)
        dtype = product_dtype(x.device, self.dtype or of_a.weight.dtype)
        a, b = self.effective(module, adapter)
        hidden = module.scaling[adapter] * functional.linear(x.to(dtype), a.to(dtype))
        return (result + functional.linear(hidden, b.to(dtype))).to(result.dtype)

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


class Direct(PairVariant):
    """PEFT's own product ``s·B A x``, of factors that train themselves. See the module."""

    def effective(self, module: LoraLayer, adapter: str) -> tuple[Tensor, Tensor]:
        """A (rank, d_in) and B (d_out, rank)."""
        of_a, of_b = factors_of(module, adapter)
        return of_a.weight, of_b.weight


class AdapterOffset(PairVariant):
    """The difference form, beside a base that stays as it is. See the module."""

    def effective(self, module: LoraLayer, adapter: str) -> tuple[Tensor, Tensor]:
        """``[A0 + ΔA; ΔA]`` (2·rank, d_in) and ``[ΔB, B0]`` (d_out, 2·rank); or those of all experts."""
        of_a, of_b = factors_of(module, adapter)
        initial = unpack(module, getattr(of_a, INITIAL), getattr(of_b, INITIAL))
        return difference_form(*unpack(module, of_a.weight, of_b.weight), *initial)


class BaseOffset(PairVariant):
    """The trained product, on a base from whose weights ``s·B0 A0`` was subtracted. See the module."""

    def effective(self, module: LoraLayer, adapter: str) -> tuple[Tensor, Tensor]:
        """``A0 + ΔA`` (rank, d_in) and ``B0 + ΔB`` (d_out, rank); or those of all experts."""
        of_a, of_b = factors_of(module, adapter)
        return unpack(module, getattr(of_a, INITIAL) + of_a.weight, getattr(of_b, INITIAL) + of_b.weight)


OFFSETS: dict[str, type[PairVariant]] = {"adapter": AdapterOffset, "base": BaseOffset}
CALLS_VARIANTS = ("Linear", "Linear4bit", "Linear8bitLt")
"""PEFT's LoRA layers that call a variant and whose product is that of two linear layers."""


def difference_form(delta_a: Tensor, delta_b: Tensor, a0: Tensor, b0: Tensor) -> tuple[Tensor, Tensor]:
    """The factors of ``B A - B0 A0`` as one product: ``[A0 + ΔA; ΔA]`` (2·rank, d_in), ``[ΔB, B0]`` (d_out, 2·rank).

    Args:
        delta_a: ΔA (rank, d_in), or (E, rank, d_in) of experts.
        delta_b: ΔB (d_out, rank), or (E, d_out, rank).
        a0: A0, of the shape of ΔA.
        b0: B0, of the shape of ΔB.
    """
    return torch.cat([a0 + delta_a, delta_a], dim=-2), torch.cat([delta_b, b0], dim=-1)


def use_direct(layer: LoraLayer, adapter: str) -> bool:
    """Has a LoRA layer compute its product by `Direct`, in place.

    Returns:
        Whether it does. A layer with a variant (DoRA's magnitudes, gates), with a bias of its own, or of a class that
        calls no variant is left as it is.
    """
    if type(layer).__name__ not in CALLS_VARIANTS or adapter in layer.lora_variant or layer.lora_bias.get(adapter):
        return False
    compute_by(layer, adapter, Direct())
    return True


def compute_by(layer: LoraLayer, adapter: str, variant: PairVariant) -> None:
    """Has a LoRA layer compute by a variant, in place."""
    variants: Any = layer.lora_variant
    variants[adapter] = variant
    if variant.inner is None:
        layer.cast_input_dtype_enabled = False  # the product casts, and keeps no copy
        compute_together(layer, adapter)


def variant_of(layer: LoraLayer, adapter: str) -> PairVariant | None:
    """The variant by which a LoRA layer computes; None where PEFT computes itself, or with what another variant has."""
    variant = layer.lora_variant.get(adapter)
    return variant if isinstance(variant, PairVariant) and variant.inner is None else None


def factors_of(module: LoraLayer, adapter: str) -> tuple[Any, Any]:
    """The modules of A and B, each with what trains as ``weight``, and the initial factor as a buffer if there is
    one."""
    return module.lora_A[adapter], module.lora_B[adapter]


def versions(of_a: Tensor, of_b: Tensor) -> tuple[int, int]:
    """How often torch has seen each of two parameters change."""
    return of_a._version, of_b._version


def product_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The type in which products are computed: autocast's where it is on, else the given one."""
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return dtype


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
