"""Putting LoRA-GA's start on a PEFT model: the adapter's first factors and the shifted base."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lora_ga_cli.adapter.initialisation import layer_seed, product, scale_factor, starting_factors
from lora_ga_cli.errors import GradientError, RunError, TargetError
from lora_ga_cli.files import atomic_file
from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.model.targets import Target, check_rank, fingerprint

ADAPTER = "default"
"""PEFT's name for a model's first adapter."""


@dataclass(frozen=True)
class Start:
    """Where a LoRA-GA adapter started: all that is needed to resume it, or to express it for the pristine base.

    Args:
        factors: A0 (rank, d_in) and B0 (d_out, rank) by layer name, float32 on the CPU.
        scaling: the s that the adapter's product is multiplied by.
        shifted_base: `fingerprint` of the targets' weights after ``W - s·B0·A0``; empty before it is installed.
    """

    factors: Mapping[str, tuple[Tensor, Tensor]]
    scaling: float
    shifted_base: str = ""

    def save(self, file: Path) -> None:
        """Writes one safetensors file, atomically."""
        tensors = {f"{name}.A0": a0 for name, (a0, _) in self.factors.items()}
        tensors |= {f"{name}.B0": b0 for name, (_, b0) in self.factors.items()}
        about = {"scaling": self.scaling, "shifted_base": self.shifted_base, "layers": list(self.factors)}
        with atomic_file(file) as temporary:
            save_file(tensors, temporary, metadata={"loraga": json.dumps(about)})

    @classmethod
    def load(cls, file: Path) -> Start:
        with safe_open(file, framework="pt") as opened:
            about = json.loads(opened.metadata()["loraga"])
            pairs = {
                name: (opened.get_tensor(f"{name}.A0"), opened.get_tensor(f"{name}.B0")) for name in about["layers"]
            }
        return cls(pairs, about["scaling"], about["shifted_base"])


def lora_layers(model: PeftModel) -> dict[str, LoraLayer]:
    """The model's LoRA layers by the name their base layer has in the base model."""
    prefix = "base_model.model."
    return {
        name.removeprefix(prefix): module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and ADAPTER in module.lora_A
    }


def base_targets(model: PeftModel) -> dict[str, Target]:
    """The base layers under the model's LoRA layers."""
    return {name: Target(name, layer.get_base_layer()) for name, layer in lora_layers(model).items()}


def initialise(
    model: PeftModel,
    artifact: GradientArtifact,
    *,
    direction: str = "ArB2r",
    scale: str = "stable",
    gamma: float = 16.0,
    seed: int = 0,
) -> Start:
    """Starts a PEFT LoRA model where the gradient points, and shifts its base so that nothing changes yet.

    Each layer gets ``A0 = c·V_Aᵀ``, ``B0 = c·U_B`` (see `starting_factors`), and its base weight becomes
    ``W - s·B0·A0`` (LoRA-GA, equation 10). Keep the result: `export_adapter` needs it.

    Args:
        model: a model with one LoRA adapter; its rank, alpha and ``use_rslora`` decide s. LoRA-GA's own is
            ``use_rslora=True``.
        artifact: of the same base, for at least the model's rank and layers.
        direction: ``ArB2r``, ``A2rBr``, ``ArBr`` or ``random``.
        scale: ``stable``, ``unit``, ``gd`` or ``weight_svd``.
        gamma: of ``stable``; the authors' configuration has 16.

    Raises:
        GradientError: a layer has no gradient in the artifact, or the rank is above its capacity.
        TargetError: the rank is too large for a layer.
    """
    start = compute_start(model, artifact, direction=direction, scale=scale, gamma=gamma, seed=seed)
    return install(model, start)


def compute_start(
    model: PeftModel, artifact: GradientArtifact, *, direction: str, scale: str, gamma: float, seed: int
) -> Start:
    """The start alone; changes nothing. Arguments and errors as `initialise`."""
    layers = lora_layers(model)
    if not layers:
        raise TargetError("the model has no LoRA layer named 'default': wrap it with peft.get_peft_model first")
    rank = next(iter(layers.values())).r[ADAPTER]
    artifact.check_serves(set(layers), rank)
    check_rank({name: artifact.shapes[name] for name in layers}, rank, 2 * rank)
    pairs = {}
    scaling = next(iter(layers.values())).scaling[ADAPTER]
    for name, target in base_targets(model).items():
        if artifact.factors[name].shape != target.shape:
            raise GradientError(f"{name}: the gradient is {artifact.factors[name].shape}, the weight {target.shape}")
        weight = target.oriented(target.weight.detach()) if scale == "weight_svd" else None
        factor = scale_factor(scale, d_out=target.shape[0], scaling=scaling, gamma=gamma, rank=rank, weight=weight)
        pairs[name] = starting_factors(
            artifact.factors[name], rank, direction=direction, factor=factor, seed=layer_seed(seed, name)
        )
    return Start(pairs, scaling)


@torch.no_grad()
def install(model: PeftModel, start: Start) -> Start:
    """Copies the factors into the adapter and shifts the base, in place.

    Returns:
        The start, with the shifted base's fingerprint.

    Raises:
        RunError: the start is of other layers, or was installed before on a base with other weights.
    """
    layers = lora_layers(model)
    if set(layers) != set(start.factors):
        raise RunError("the stored start is of other layers than this adapter has: start again with overwrite=true")
    for name, target in base_targets(model).items():
        a0, b0 = start.factors[name]
        weight = target.weight
        shift = product(b0.to(weight.device), a0.to(weight.device), start.scaling)
        weight.copy_((weight.float() - target.oriented(shift)).to(weight.dtype))
        weight_of(layers[name].lora_A).copy_(a0)
        weight_of(layers[name].lora_B).copy_(b0)
    shifted = fingerprint(base_targets(model))
    if start.shifted_base and start.shifted_base != shifted:
        raise RunError(
            "the base, shifted by the stored start, differs from the one this run began on: the base model changed, or "
            "this is another kind of device; start again with overwrite=true"
        )
    return Start(start.factors, start.scaling, shifted)


def weight_of(pair: nn.ModuleDict) -> Tensor:
    """The weight of a LoRA layer's A (rank, d_in) or B (d_out, rank)."""
    weight = pair[ADAPTER].weight
    assert isinstance(weight, Tensor)
    return weight
