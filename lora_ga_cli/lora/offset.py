"""Giving a LoRA adapter its initial factors, and subtracting them so that the model computes what its base does.

The model must not change before its first step, so ``s·B0 A0`` has to be subtracted somewhere (LoRA-GA, arXiv
2407.05000, equation 10):

- ``base``: the base's weights become ``W - s·B0 A0``. In half precision this rounds badly. The gradient's leading
  directions are those in which activations are large, so ``s·B0 A0 x`` can be many times ``W x``, and what is left
  after the two cancel has the rounding error of the larger.
- ``adapter``: the base stays as it is, and the adapter computes ``s·(B A - B0 A0) x`` in the difference form (see
  `lora.difference`), which costs a product of twice the rank.

In both forms the same parameters train, ΔA = A - A0 and ΔB = B - B0, and the same adapter is saved. With dropout on the
adapter's input only ``adapter`` keeps the model as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer, ParamWrapper
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lora_ga_cli.errors import DamagedFile, RunError, TargetError
from lora_ga_cli.files import atomic_file
from lora_ga_cli.lora.difference import OFFSETS, compute_by, use_direct
from lora_ga_cli.lora.experts import add_product, compute_shapes, pack, unpack
from lora_ga_cli.lora.initialization import product
from lora_ga_cli.lora.layers import ADAPTER, INITIAL, as_float32_on_cpu, base_targets, lora_layers, weight_of
from lora_ga_cli.lora.refresh import refresh_before_forward
from lora_ga_cli.model.targets import Target, fingerprint

InitialPair = Callable[[str, Target, int, float], tuple[Tensor, Tensor]]
"""From a layer's name, the layer, its rank and its s: A0 (rank, d_in) and B0 (d_out, rank), float32 on the CPU. It is
called for each expert's layer (`Target.layers`)."""


@dataclass(frozen=True)
class LoraInit:
    """The initial factors of an adapter: what is needed to resume it, or to express it for the original base model.

    Args:
        factors: A0 (rank, d_in) and B0 (d_out, rank) by layer name, float32 on the CPU; of E experts (E, rank, d_in)
            and (E, d_out, rank).
        scalings: by layer name, the s that the adapter's product is multiplied by.
        offset: ``base`` or ``adapter``, see the module; or ``none``: nothing is subtracted. A and B train.
        installed_base: `fingerprint` of the targets' weights after `install` (with ``base``, of the shifted weights;
            with ``none`` empty, because the factors go with any weights).
        as_lora: why a layer begins as LoRA does (`plain_pair`) and not as the method says, by name; not saved.
    """

    factors: Mapping[str, tuple[Tensor, Tensor]]
    scalings: Mapping[str, float]
    offset: str = "base"
    installed_base: str = ""
    as_lora: Mapping[str, str] = field(default_factory=dict)

    @property
    def ranks(self) -> dict[str, int]:
        """The rank that trains, by layer name."""
        return {name: a0.shape[-2] for name, (a0, _) in self.factors.items()}

    def save(self, file: Path) -> None:
        """Writes one safetensors file, atomically."""
        tensors = {f"{name}.A0": a0 for name, (a0, _) in self.factors.items()}
        tensors |= {f"{name}.B0": b0 for name, (_, b0) in self.factors.items()}
        described = {"scalings": dict(self.scalings), "offset": self.offset, "installed_base": self.installed_base}
        with atomic_file(file) as temporary:
            save_file(tensors, temporary, metadata={"loraga": json.dumps(described)})

    @classmethod
    def load(cls, file: Path) -> LoraInit:
        """Reads what `save` wrote.

        Raises:
            DamagedFile: it is no such file.
        """
        try:
            with safe_open(file, framework="pt") as opened:
                described = json.loads(opened.metadata()["loraga"])
                factors = {
                    name: (opened.get_tensor(f"{name}.A0"), opened.get_tensor(f"{name}.B0"))
                    for name in described["scalings"]
                }
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            what = f"is damaged (no complete file of initial factors: {error})"
            raise DamagedFile(file, what, "start the run again with overwrite=true") from error
        return cls(factors, described["scalings"], described["offset"], described["installed_base"])


def choose_offset(model: PeftModel, offset: str) -> str:
    """Decides ``auto``: ``base`` where every target is complete and in float32, else ``adapter``.

    Raises:
        TargetError: ``base`` is asked for, and a target is quantized or sharded.
    """
    targets = base_targets(model)
    fixed = next((name for name, target in targets.items() if target.quantized or target.sharded), None)
    if offset == "base" and fixed is not None:
        how = "quantized" if targets[fixed].quantized else "sharded"
        raise TargetError(f"{fixed} is {how}, so nothing can be subtracted from its weight: use offset=adapter")
    if offset != "auto":
        return offset
    exact = fixed is None and all(target.weight.dtype == torch.float32 for target in targets.values())
    return "base" if exact else "adapter"


def compute_init(
    model: PeftModel, pair: InitialPair, *, offset: str, as_lora: Mapping[str, str] | None = None
) -> LoraInit:
    """The initial factors of every layer. The model is not changed.

    Args:
        pair: gives A0 (rank, d_in) and B0 (d_out, rank) of a layer.
        as_lora: layers that begin as LoRA does instead, by name, with the reason.
        offset: ``base``, ``adapter``, ``auto`` or ``none``.

    Raises:
        TargetError: the model has no LoRA layer, or one with a bias; or as `choose_offset`.
    """
    offset = choose_offset(model, offset)
    layers = lora_layers(model)
    if not layers:
        raise TargetError("the model has no LoRA layer named 'default': wrap it with peft.get_peft_model first")
    for name, layer in layers.items():
        if layer.lora_bias.get(ADAPTER):
            raise TargetError(
                f"{name} has a LoRA bias, which cannot be initialized: make the adapter without lora_bias"
            )
    scalings = {name: layer.scaling[ADAPTER] for name, layer in layers.items()}
    as_lora = as_lora or {}
    factors = {}
    for name, target in base_targets(model).items():
        if name in as_lora:
            factors[name] = plain_pair(layers[name])
            continue
        rank, scaling = layers[name].r[ADAPTER], scalings[name]
        pairs = [pair(layer.name, layer, rank, scaling) for layer in target.layers]
        factors[name] = _stacked(pairs) if target.experts else pairs[0]
    return LoraInit(factors, scalings, offset, as_lora=as_lora)


def plain_pair(layer: LoraLayer) -> tuple[Tensor, Tensor]:
    """Initial factors as LoRA has them: A (rank, d_in) as PEFT drew it, B (d_out, rank) zero, or those of all experts;
    float32 on the CPU."""
    a0, b0 = differences(layer)
    return a0, torch.zeros_like(b0)


def _stacked(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The factors of E experts: A (E, rank, d_in) and B (E, d_out, rank)."""
    return torch.stack([a for a, _ in pairs]), torch.stack([b for _, b in pairs])


def present_factors(model: PeftModel) -> LoraInit:
    """The factors that a model has as PEFT initialized it, so that a resumed run begins with the same ones."""
    layers = lora_layers(model)
    factors = {name: differences(layer) for name, layer in layers.items()}
    return LoraInit(factors, {name: layer.scaling[ADAPTER] for name, layer in layers.items()}, "none")


@torch.no_grad()
def install(model: PeftModel, init: LoraInit) -> LoraInit:
    """Gives a model its initial factors, in place.

    Returns:
        The initialization, with the fingerprint of the base that it is installed on, where something is subtracted.

    Raises:
        RunError: the initialization belongs to other layers, or was installed before on a base with other weights.
    """
    layers = lora_layers(model)
    if set(layers) != set(init.factors):
        raise RunError(
            "the stored initialization belongs to other layers than this adapter has: start again with overwrite=true"
        )
    for name, target in base_targets(model).items():
        a0, b0 = init.factors[name]
        weight = target.weight
        if init.offset == "none":
            a, b = pack(layers[name], a0, b0)
            weight_of(layers[name].lora_A).copy_(a)
            weight_of(layers[name].lora_B).copy_(b)
            continue
        if init.offset == "base":
            shifted = weight.float() - target.oriented(product(b0, a0, init.scalings[name]).to(weight.device))
            weight.copy_(shifted.to(weight.dtype))
        train_differences(layers[name], init.offset, a0.to(weight.device), b0.to(weight.device))
    if init.offset != "none":
        refresh_before_forward(model.get_base_model(), list(layers.values()), ADAPTER)
    if init.offset == "none":  # nothing was computed from the base's weights
        return init
    actual = fingerprint(base_targets(model))
    if init.installed_base and init.installed_base != actual:
        raise RunError(
            "the base model is not the one that this run was started with: give that one, or start again with "
            "overwrite=true"
        )
    return replace(init, installed_base=actual)


def train_differences(layer: LoraLayer, offset: str, a0: Tensor | None = None, b0: Tensor | None = None) -> None:
    """Makes ΔA and ΔB the trainable parameters of a LoRA layer; they begin at zero.

    Args:
        a0: A0 (rank, d_in), or (E, rank, d_in); None for shapes alone (on the meta device).
        b0: B0 (d_out, rank), or (E, d_out, rank), likewise.
    """
    if a0 is not None and b0 is not None:
        a0, b0 = pack(layer, a0, b0)
    for pair, initial in ((layer.lora_A, a0), (layer.lora_B, b0)):
        linear: Any = pair[ADAPTER]
        initial = torch.empty_like(linear.weight) if initial is None else initial
        linear.weight = nn.Parameter(torch.zeros_like(initial, dtype=torch.float32))
        linear.register_buffer(INITIAL, initial, persistent=False)
    variants: Any = layer.lora_variant
    variant = OFFSETS[offset](variants.get(ADAPTER))
    if isinstance(layer, ParamWrapper):  # PEFT's wrapper of a parameter calls no variant
        wrapper = layer
        add_product(wrapper, lambda: variant.effective(wrapper, ADAPTER))
    else:
        compute_by(layer, ADAPTER, variant)


def train_directly(model: PeftModel) -> None:
    """Has the LoRA layers whose factors train themselves compute their products as those of differences do, in place.

    Layers with a variant of their own (an offset, DoRA's magnitudes, gates) are left as they are.
    """
    layers = [layer for layer in lora_layers(model).values() if use_direct(layer, ADAPTER)]
    refresh_before_forward(model.get_base_model(), layers, ADAPTER)


def prepare_empty(model: PeftModel) -> None:
    """Completes a model without weights (on the meta device), so that it computes the shapes of a forward pass."""
    for layer in lora_layers(model).values():
        if isinstance(layer, ParamWrapper):
            compute_shapes(layer, ADAPTER)


def differences(layer: LoraLayer) -> tuple[Tensor, Tensor]:
    """What trains of a layer, ΔA (rank, d_in) and ΔB (d_out, rank) or those of all experts; float32 on the CPU."""
    a, b = unpack(layer, weight_of(layer.lora_A), weight_of(layer.lora_B))
    return as_float32_on_cpu(a), as_float32_on_cpu(b)
