"""LoRA factors of experts: those of each expert side by side, and packed into the two matrices that PEFT trains.

PEFT adapts a parameter (E, d_out, d_in) of E experts by one matrix for the A of all experts, (E·rank, d_in), and one
for the B, (d_out, rank·E). The rows of A are ordered by expert and then by rank; the columns of B by rank and then by
expert (PEFT 0.21, ``ParamWrapper``). Everywhere else in loraga the factors of experts have a dimension more, A (E,
rank, d_in) and B (E, d_out, rank), so that the same formulas hold for them as for the factors of one layer.

PEFT's wrapper adds the product to the parameter, in the parameter's type, whenever the module is called. `add_product`
has it add that of other factors.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import Tensor, nn
from torch.nn.utils import parametrize

Effective = Callable[[], tuple[Tensor, Tensor]]
"""Gives the factors (…, k, d_in) and (…, d_out, k) whose product, times s, is added to a parameter."""


def experts_of(layer: LoraLayer) -> int:
    """How many experts' factors a LoRA layer packs into its two matrices; 0 for a layer with one A and one B."""
    return int(layer.num_experts) if isinstance(layer, ParamWrapper) and layer.get_param().dim() == 3 else 0


def pack(layer: LoraLayer, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Factors in the form in which PEFT trains and saves them.

    Args:
        a: (rank, d_in), or (E, rank, d_in) of experts.
        b: (d_out, rank), or (E, d_out, rank).
    """
    if not experts_of(layer):
        return a, b
    return a.flatten(0, 1).contiguous(), b.permute(1, 2, 0).flatten(1).contiguous()


def unpack(layer: LoraLayer, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `pack`."""
    if not (count := experts_of(layer)):
        return a, b
    return a.unflatten(0, (count, -1)), b.unflatten(1, (-1, count)).permute(2, 0, 1)


def add_product(layer: ParamWrapper, effective: Effective) -> None:
    """Has PEFT's wrapper of a parameter add the product of other factors than those that it trains, in place."""

    def factors(adapter: str) -> tuple[Tensor, Tensor, float]:
        """PEFT's ``get_delta_factors``: what `torch.baddbmm` multiplies, in the parameter's layout and type."""
        a, b = effective()
        dtype, scaling = layer.get_param().dtype, layer.scaling[adapter]
        if is_transposed(layer):  # (E, d_in, k) and (E, k, d_out)
            return a.mT.to(dtype), b.mT.to(dtype), scaling
        return b.to(dtype), a.to(dtype), scaling

    def weight(adapter: str, *_: Any, **__: Any) -> Tensor:
        """PEFT's ``get_delta_weight``: the complete product, of the parameter's shape and type."""
        left, right, scaling = factors(adapter)
        return scaling * (left @ right)

    for name, function in (("get_delta_factors", factors), ("get_delta_weight", weight)):
        setattr(layer, name, function)


def compute_shapes(layer: ParamWrapper, adapter: str) -> None:
    """Has PEFT's wrapper of a parameter work on the meta device, in place: there, torch has no autocast to turn off."""

    @contextlib.contextmanager
    def activate(*_: Any) -> Iterator[None]:
        """PEFT's ``_activate_lora``: the parameter with the product, inside the ``with`` block."""
        module, name = layer.get_base_layer(), layer.parameter_name
        parametrize.register_parametrization(module, name, _Sum(layer.get_delta_weight(adapter)))
        try:
            with parametrize.cached():
                yield
        finally:
            parametrize.remove_parametrizations(module, name, leave_parametrized=False)

    setattr(layer, "_activate_lora", activate)  # noqa: B010


class _Sum(nn.Module):
    """A parameter with what an adapter adds."""

    def __init__(self, added: Tensor):
        super().__init__()
        self.added = added

    def forward(self, parameter: Tensor) -> Tensor:
        return parameter + self.added


def is_transposed(layer: ParamWrapper) -> bool:
    """Whether PEFT takes a parameter of experts to be stored as (E, d_in, d_out)."""
    return bool(experts_of(layer)) and bool(getattr(layer.get_base_layer(), "is_transposed", False))
