"""Computing the factors of all LoRA layers together, once for a forward pass.

A layer alone would launch several small operations for each pass, which takes longer than their work; and an optimizer
that writes into memory without telling torch (bitsandbytes' paged ones) would not be noticed. How many operations the
functions here launch does not depend on the number of layers: they work on lists, or on all layers of one shape.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from lora_ga_cli.lora.difference import (
    AdapterOffset,
    BaseOffset,
    Direct,
    PairVariant,
    factors_of,
    product_dtype,
    variant_of,
    versions,
)
from lora_ga_cli.lora.layers import INITIAL
from lora_ga_cli.lora.product import Factors


def refresh_before_forward(model: nn.Module, layers: Sequence[LoraLayer], adapter: str) -> None:
    """Has a model compute the factors of its layers together, before each forward pass.

    Args:
        model: whose forward pass uses the layers; the backbone inside it does the same when it is called alone.
        layers: those that compute by a variant of PEFT's or by PEFT itself are left out.
    """
    kinds: list[tuple[type[PairVariant], type[_Together]]] = [
        (Direct, _Direct),
        (AdapterOffset, _Stacked),
        (BaseOffset, _Single),
    ]
    groups = []
    for variant, kind in kinds:
        if chosen := [layer for layer in layers if isinstance(variant_of(layer, adapter), variant)]:
            groups.append(kind(chosen, adapter))
    if not groups:
        return
    refresh = _BeforeForward(groups)
    backbone = getattr(model, str(getattr(model, "base_model_prefix", "")), None)
    if isinstance(backbone, nn.Module) and backbone is not model:
        backbone.register_forward_pre_hook(refresh.alone)
        model.register_forward_hook(refresh.end, always_call=True)
    model.register_forward_pre_hook(refresh.begin)


class _BeforeForward:
    """The hooks of a model and its backbone, of which the one that is called first computes the factors."""

    def __init__(self, groups: Sequence[_Together]):
        self.groups = groups
        self.in_model = False

    def begin(self, *_: Any) -> None:
        self.refresh()
        self.in_model = True

    def end(self, *_: Any) -> None:
        self.in_model = False

    def alone(self, *_: Any) -> None:
        if not self.in_model:
            self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        if not torch.compiler.is_compiling():  # a compiled layer computes its factors itself
            for group in self.groups:
                group.refresh()


class _Together:
    """The factors of several layers of one form."""

    def __init__(self, layers: Sequence[LoraLayer], adapter: str):
        pairs = [factors_of(layer, adapter) for layer in layers]
        self.variants = [variant for layer in layers if (variant := variant_of(layer, adapter)) is not None]
        self.modules_a, self.modules_b = [of_a for of_a, _ in pairs], [of_b for _, of_b in pairs]
        self.scalings = [layer.scaling[adapter] for layer in layers]
        self.prepared_for: tuple[torch.device, torch.dtype] | None = None

    def refresh(self) -> None:
        """Computes the factors of every layer from what the parameters are now."""
        weight = self.modules_a[0].weight
        wanted = weight.device, product_dtype(weight.device, self.variants[0].dtype or weight.dtype)
        if self.prepared_for != wanted:
            self.of_a, self.of_b = ([module.weight for module in of] for of in (self.modules_a, self.modules_b))
            self.prepare(wanted[1])
            self.prepared_for = wanted
        rights, lefts = self.compute()
        for variant, right, left, scaling, of_a, of_b in zip(
            self.variants, rights, lefts, self.scalings, self.of_a, self.of_b, strict=True
        ):
            variant.factors = Factors(right, left, scaling, versions(of_a, of_b))

    def prepare(self, dtype: torch.dtype) -> None:
        """Gets the memory of the factors, once for a device and a type."""
        raise NotImplementedError

    def compute(self) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """The right factors (k, d_in) and the left ones (d_out, k) of all layers."""
        raise NotImplementedError

    def initial(self) -> tuple[list[Tensor], list[Tensor]]:
        """A0 and B0 of all layers."""
        of_a, of_b = ([getattr(module, INITIAL) for module in of] for of in (self.modules_a, self.modules_b))
        return of_a, of_b


class _Direct(_Together):
    """A and B of every layer: the parameters themselves, or copies in another type."""

    def prepare(self, dtype: torch.dtype) -> None:
        self.rights, self.lefts = (_in_type(of, dtype) for of in (self.of_a, self.of_b))

    def compute(self) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        if self.rights[0] is not self.of_a[0]:
            torch._foreach_copy_([*self.rights, *self.lefts], [*self.of_a, *self.of_b])
        return self.rights, self.lefts


class _Single(_Together):
    """``A0 + ΔA`` and ``B0 + ΔB`` of every layer."""

    def prepare(self, dtype: torch.dtype) -> None:
        initial_a, initial_b = self.initial()
        self.initials, self.deltas = [*initial_a, *initial_b], [*self.of_a, *self.of_b]
        self.copies = _in_type(self.deltas, dtype)

    def compute(self) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        factors: Sequence[Tensor] = torch._foreach_add(self.initials, self.deltas)
        if self.copies[0] is not self.deltas[0]:
            torch._foreach_copy_(self.copies, factors)
            factors = self.copies
        return factors[: len(self.of_a)], factors[len(self.of_a) :]


class _Stacked(_Together):
    """``[A0 + ΔA; ΔA]`` and ``[ΔB, B0]`` of every layer, in memory of their own that is written again.

    ΔB is a part of each row of a left factor. Operations on lists would write such parts one after another, so the left
    factors of all layers of one shape are one tensor.
    """

    def prepare(self, dtype: torch.dtype) -> None:
        self.initial_a, initial_b = self.initial()
        ranks = [len(delta) for delta in self.of_a]
        self.rights = [torch.empty_like(delta, dtype=dtype).repeat(2, 1) for delta in self.of_a]  # (2·rank, d_in)
        self.upper = [factor[:rank] for factor, rank in zip(self.rights, ranks, strict=True)]
        self.lower = [factor[rank:] for factor, rank in zip(self.rights, ranks, strict=True)]
        by_shape: defaultdict[tuple[torch.Size, torch.device], list[int]] = defaultdict(list)
        for number, delta in enumerate(self.of_b):
            by_shape[delta.shape, delta.device].append(number)
        self.lefts = list(self.of_b)
        self.trained: list[tuple[Tensor, list[Tensor]]] = []
        for numbers in by_shape.values():
            deltas = [self.of_b[number] for number in numbers]
            together = torch.stack([torch.cat([initial_b[number].to(dtype)] * 2, dim=1) for number in numbers])
            for number, left in zip(numbers, together, strict=True):  # (d_out, 2·rank)
                self.lefts[number] = left
            self.trained.append((together[..., : deltas[0].shape[1]], deltas))

    def compute(self) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        torch._foreach_copy_(self.upper, torch._foreach_add(self.initial_a, self.of_a))
        torch._foreach_copy_(self.lower, self.of_a)
        for first_half, deltas in self.trained:  # (layers, d_out, rank)
            first_half.copy_(torch.stack(deltas))
        return self.rights, self.lefts


def _in_type(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Memory for tensors in a type; the tensors themselves where they have it."""
    return [tensor if tensor.dtype == dtype else torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
