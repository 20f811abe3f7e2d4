"""The LoRA layers of a PEFT model: where they are, their factors A and B, and what their parameters are called."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import Tensor, nn

from lora_ga_cli.errors import RunError, TargetError
from lora_ga_cli.lora.experts import experts_of
from lora_ga_cli.lora.peft_targets import plain_name
from lora_ga_cli.model.targets import Target

ADAPTER = "default"
"""PEFT's name for a model's first adapter."""
INITIAL = "initial"
"""Name of the buffer beside a factor that trains as a difference: A0 (rank, d_in) or B0 (d_out, rank)."""
PREFIX = "base_model.model."
"""What PEFT puts before the names that layers have in the base model."""
FACTOR_A = ".lora_A.weight"
FACTOR_B = ".lora_B.weight"


@dataclass(frozen=True)
class LoraPair:
    """The factors of one layer, which adds ``scaling · B A x`` to what its base computes.

    Args:
        name: the layer's name in the base model.
        delta_a: the parameter that trains for A, (rank, d_in): A itself, or A - A0 where there is an ``initial_a``.
        delta_b: the parameter that trains for B, (d_out, rank), likewise.
        initial_a: A0 (rank, d_in), or None.
        initial_b: B0 (d_out, rank), or None.
        scaling: the s of the layer.
    """

    name: str
    delta_a: nn.Parameter
    delta_b: nn.Parameter
    initial_a: Tensor | None
    initial_b: Tensor | None
    scaling: float

    @property
    def a(self) -> Tensor:
        """A (rank, d_in). Its gradient is that of ``delta_a``."""
        return self.delta_a if self.initial_a is None else self.initial_a + self.delta_a

    @property
    def b(self) -> Tensor:
        """B (d_out, rank). Its gradient is that of ``delta_b``."""
        return self.delta_b if self.initial_b is None else self.initial_b + self.delta_b


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """The model's LoRA layers by the name of their target: that of the layer, or of the parameter, in the base
    model."""
    return {_target_name(path, layer): layer for path, layer in _paths(model).items()}


def factor_keys(model: nn.Module) -> dict[str, tuple[str, str]]:
    """What PEFT's files call the factors A and B of every LoRA layer, by the name of its target.

    PEFT wraps the parameters of one module one around the other, so that the name of a wrapper depends on which
    parameters of the module are adapted.
    """
    return {_target_name(path, layer): lora_keys(path) for path, layer in _paths(model).items()}


def _paths(model: nn.Module) -> dict[str, LoraLayer]:
    """The LoRA layers by their own names in the model inside PEFT's."""
    return {
        name.removeprefix(PREFIX): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and ADAPTER in module.lora_A
    }


def _target_name(path: str, layer: LoraLayer) -> str:
    if not isinstance(layer, ParamWrapper):
        return path
    target = Target(plain_name(path), layer.get_base_layer(), layer.parameter_name)
    return target.name if target.is_module else f"{target.name}.{target.parameter}"


def lora_pairs(model: PeftModel) -> list[LoraPair]:
    """The factors of every LoRA layer, for optimizers that look at both.

    Raises:
        TargetError: a layer packs the factors of several experts.
    """
    pairs = []
    for name, layer in lora_layers(model).items():
        if experts_of(layer):
            raise TargetError(f"{name}: its A and B hold the factors of several experts: use target_parameters=[]")
        of_a: Any = layer.lora_A[ADAPTER]
        of_b: Any = layer.lora_B[ADAPTER]
        initial = (getattr(of_a, INITIAL, None), getattr(of_b, INITIAL, None))
        pairs.append(LoraPair(name, of_a.weight, of_b.weight, *initial, layer.scaling[ADAPTER]))
    return pairs


def base_targets(model: PeftModel) -> dict[str, Target]:
    """What the model's LoRA layers adapt."""
    return {name: target_of(name, layer) for name, layer in lora_layers(model).items()}


def target_of(name: str, layer: LoraLayer) -> Target:
    """What a LoRA layer adapts.

    Args:
        name: the name that `lora_layers` gives it.
    """
    parameter = layer.parameter_name if isinstance(layer, ParamWrapper) else "weight"
    return Target(name, layer.get_base_layer(), parameter)


def weight_of(pair: nn.ModuleDict) -> Tensor:
    """The parameter that trains for a LoRA layer's A (rank, d_in) or B (d_out, rank)."""
    weight = pair[ADAPTER].weight
    assert isinstance(weight, Tensor)
    return weight


def is_a(name: str) -> bool:
    """Whether a parameter's name is that of a factor A (rank, d_in)."""
    return f".{name}".endswith((f".lora_A.{ADAPTER}.weight", f".lora_A.{ADAPTER}"))


def is_b(name: str) -> bool:
    """Whether a parameter's name is that of a factor B (d_out, rank)."""
    return f".{name}".endswith((f".lora_B.{ADAPTER}.weight", f".lora_B.{ADAPTER}"))


def freeze_factor(model: nn.Module, factor: str) -> None:
    """Excludes every layer's factor ``A`` or ``B`` from training, in place."""
    chosen = {"A": is_a, "B": is_b}[factor]
    for name, item in model.named_parameters():
        if chosen(name):
            item.requires_grad_(False)


def lora_ranks(model: nn.Module) -> list[int]:
    """The rank that trains in every layer (in every expert), read from the built layers."""
    ranks = []
    for layer in lora_layers(model).values():
        factor: Any = layer.lora_A[ADAPTER]
        weight: Tensor = factor if isinstance(factor, Tensor) else factor.weight
        ranks.append(weight.shape[0] // max(experts_of(layer), 1))
    return ranks


def lora_keys(name: str) -> tuple[str, str]:
    """What PEFT's files call the factors A and B of a layer that PEFT did not wrap twice (`factor_keys`)."""
    return f"{PREFIX}{name}{FACTOR_A}", f"{PREFIX}{name}{FACTOR_B}"


def layers_of_keys(keys: Collection[str]) -> list[str]:
    """The layers whose factors PEFT's file has, by their names in the base model.

    Args:
        keys: the names of the tensors in the file.

    Raises:
        RunError: one factor of a layer is there without the other, or a name is not one of PEFT's.
    """
    has_a, has_b = ({key.removesuffix(end) for key in keys if key.endswith(end)} for end in (FACTOR_A, FACTOR_B))
    if alone := sorted(has_a ^ has_b):
        there, other = (FACTOR_A, FACTOR_B) if alone[0] in has_a else (FACTOR_B, FACTOR_A)
        raise RunError(f"the adapter has {alone[0]}{there} and no {other}: its file is not complete")
    if strange := next((layer for layer in sorted(has_a) if not layer.startswith(PREFIX)), None):
        raise RunError(f"the adapter's tensor {strange}{FACTOR_A} has no name of PEFT's: these begin with {PREFIX}")
    return [key.removeprefix(PREFIX).removesuffix(FACTOR_A) for key in keys if key.endswith(FACTOR_A)]


def trained_parameters(model: nn.Module) -> int:
    """How many parameters train."""
    return sum(item.numel() for item in model.parameters() if item.requires_grad)


def as_float32_on_cpu(tensor: Tensor) -> Tensor:
    """A copy for files and comparisons."""
    return tensor.detach().to("cpu", torch.float32).contiguous()
