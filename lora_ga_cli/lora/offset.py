"""Putting a start on a PEFT model: the adapter's first factors, and what takes them off again.

LoRA-GA's come from the gradient; PiSSA's, from the weight, and random ones go the same way.

The model must not change before its first step. Two forms do that, for the same training (without dropout on the
adapter's input, which goes with the second only) and the same result:

- ``weights`` (LoRA-GA, equation 10): the base becomes ``W - s·B0·A0``. In half precision this rounds badly. The
  gradient's leading directions are those in which activations are large, so ``s·B0·A0·x`` can be many times ``W·x``,
  and what is left after the two cancel carries the rounding of the larger.
- ``adapter``: the base stays as it is. The adapter carries its start, frozen, beside what trains:
  ``s·[B, -B0] [A; A0]``, one pair of products of twice the rank. Before the first step both halves are equal and cancel
  exactly.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lora_ga_cli.errors import GradientError, RunError, TargetError
from lora_ga_cli.files import atomic_file
from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.lora.initialization import layer_seed, product, scale_factor, starting_factors
from lora_ga_cli.model.quantization import dense
from lora_ga_cli.model.targets import Target, check_ranks, fingerprint

ADAPTER = "default"
"""PEFT's name for a model's first adapter."""
StartingPair = Callable[[str, Target, int, float], tuple[Tensor, Tensor]]
"""From a layer's name, the layer, its rank and its s: A0 (rank, d_in) and B0 (d_out, rank), float32 on the CPU."""


@dataclass(frozen=True)
class Start:
    """Where an adapter started: all that is needed to resume it, or to express it for the pristine base.

    Args:
        factors: A0 (rank, d_in) and B0 (d_out, rank) by layer name, float32 on the CPU.
        scalings: by layer name, the s that the adapter's product is multiplied by.
        shift: ``weights`` or ``adapter``; see the module.
        installed_base: `fingerprint` of the targets' weights once it is installed (shifted, with ``weights``).
    """

    factors: Mapping[str, tuple[Tensor, Tensor]]
    scalings: Mapping[str, float]
    shift: str = "weights"
    installed_base: str = ""

    @property
    def frozen(self) -> int:
        """Numbers in the adapter that do not train."""
        return sum(a0.numel() + b0.numel() for a0, b0 in self.factors.values()) if self.shift == "adapter" else 0

    def save(self, file: Path) -> None:
        """Writes one safetensors file, atomically."""
        tensors = {f"{name}.A0": a0 for name, (a0, _) in self.factors.items()}
        tensors |= {f"{name}.B0": b0 for name, (_, b0) in self.factors.items()}
        about = {
            "scalings": dict(self.scalings),
            "shift": self.shift,
            "installed_base": self.installed_base,
        }
        with atomic_file(file) as temporary:
            save_file(tensors, temporary, metadata={"loraga": json.dumps(about)})

    @classmethod
    def load(cls, file: Path) -> Start:
        with safe_open(file, framework="pt") as opened:
            about = json.loads(opened.metadata()["loraga"])
            pairs = {
                name: (opened.get_tensor(f"{name}.A0"), opened.get_tensor(f"{name}.B0")) for name in about["scalings"]
            }
        return cls(pairs, about["scalings"], about["shift"], about["installed_base"])


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


def initialize(
    model: PeftModel,
    artifact: GradientArtifact,
    *,
    direction: str = "ArB2r",
    scale: str = "stable",
    gamma: float = 16.0,
    shift: str = "auto",
    seed: int = 0,
) -> Start:
    """Starts a PEFT LoRA model where the gradient points, so that nothing changes yet.

    Each layer gets ``A0 = c·V_Aᵀ``, ``B0 = c·U_B`` (see `starting_factors`), and the product is taken off again, from
    the base or in the adapter (see the module). Keep the result: `export_adapter` needs it.

    Args:
        model: a model with one LoRA adapter; its rank, alpha and ``use_rslora`` decide s. LoRA-GA's own is
            ``use_rslora=True``.
        artifact: of the same base, for at least the model's rank and layers.
        direction: ``ArB2r``, ``A2rBr``, ``ArBr`` or ``random``.
        scale: ``stable``, ``unit``, ``gd`` or ``weight_svd``.
        gamma: of ``stable``; the authors' configuration has 16.
        shift: ``weights``, ``adapter``, or ``auto``: ``weights`` for a float32 base, else ``adapter``, which a
            quantized base needs. With ``adapter`` train without weight decay, which would move the frozen half.

    Raises:
        GradientError: a layer has no gradient in the artifact, or the rank is above its capacity.
        TargetError: the rank is too large for a layer.
    """
    start = gradient_start(model, artifact, direction=direction, scale=scale, gamma=gamma, shift=shift, seed=seed)
    return install(model, start)


def choose_shift(model: PeftModel, shift: str) -> str:
    """Decides ``auto``: ``weights`` where every target is whole and in float32, else ``adapter``.

    Raises:
        TargetError: ``weights``, and a target is quantized or sharded.
    """
    targets = base_targets(model)
    fixed = next((name for name, target in targets.items() if target.quantized or target.sharded), None)
    if shift == "weights" and fixed is not None:
        how = "quantized" if targets[fixed].quantized else "in shards"
        raise TargetError(f"{fixed} is {how}, and its weight cannot be shifted: shift=adapter")
    if shift != "auto":
        return shift
    exact = fixed is None and all(target.weight.dtype == torch.float32 for target in targets.values())
    return "weights" if exact else "adapter"


def gradient_start(
    model: PeftModel, artifact: GradientArtifact, *, direction: str, scale: str, gamma: float, shift: str, seed: int
) -> Start:
    """LoRA-GA's start alone; changes nothing. Arguments and errors as `initialize`."""
    layers = lora_layers(model)
    ranks = {name: layer.r[ADAPTER] for name, layer in layers.items()}
    artifact.check_serves(set(layers), max(ranks.values(), default=1))
    check_ranks({name: artifact.shapes[name] for name in layers}, ranks, vectors=2)

    def pair(name: str, target: Target, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
        if artifact.factors[name].shape != target.shape:
            raise GradientError(f"{name}: the gradient is {artifact.factors[name].shape}, the weight {target.shape}")
        weight = dense(target) if scale == "weight_svd" else None
        factor = scale_factor(scale, d_out=target.shape[0], scaling=scaling, gamma=gamma, rank=rank, weight=weight)
        return starting_factors(
            artifact.factors[name], rank, direction=direction, factor=factor, seed=layer_seed(seed, name)
        )

    return compute_start(model, pair, shift=shift)


def compute_start(model: PeftModel, pair: StartingPair, *, shift: str) -> Start:
    """A start of any kind; changes nothing.

    Args:
        pair: gives A0 (rank, d_in) and B0 (d_out, rank) of a layer.
        shift: as `initialize`.

    Raises:
        TargetError: the model has no LoRA layer, or one with a bias; or as `choose_shift`.
    """
    shift = choose_shift(model, shift)
    layers = lora_layers(model)
    if not layers:
        raise TargetError("the model has no LoRA layer named 'default': wrap it with peft.get_peft_model first")
    for name, layer in layers.items():
        if layer.lora_bias.get(ADAPTER):
            raise TargetError(f"{name} has a LoRA bias, which a start does not carry")
    scalings = {name: layer.scaling[ADAPTER] for name, layer in layers.items()}
    targets = base_targets(model)
    pairs = {name: pair(name, target, layers[name].r[ADAPTER], scalings[name]) for name, target in targets.items()}
    return Start(pairs, scalings, shift)


@torch.no_grad()
def install(model: PeftModel, start: Start) -> Start:
    """Puts a start on a model, in place.

    Returns:
        The start, with the fingerprint of the base it is installed on.

    Raises:
        RunError: the start is of other layers, or was installed before on a base with other weights.
    """
    layers = lora_layers(model)
    if set(layers) != set(start.factors):
        raise RunError("the stored start is of other layers than this adapter has: start again with overwrite=true")
    for name, target in base_targets(model).items():
        a0, b0 = start.factors[name]
        weight = target.weight
        if start.shift == "adapter":
            _carry(layers[name], a0.to(weight.device), b0.to(weight.device))
        else:
            shifted = weight.float() - target.oriented(product(b0, a0, start.scalings[name]).to(weight.device))
            weight.copy_(shifted.to(weight.dtype))
            weight_of(layers[name].lora_A).copy_(a0)
            weight_of(layers[name].lora_B).copy_(b0)
    if start.shift == "adapter":
        config = model.peft_config[ADAPTER]
        assert isinstance(config, LoraConfig)
        widen(config, start)
    found = fingerprint(base_targets(model))
    if start.installed_base and start.installed_base != found:
        raise RunError(
            "the base under the stored start differs from the one this run began on: the base model changed; "
            "give the one it began on, or start again with overwrite=true"
        )
    return replace(start, installed_base=found)


@torch.no_grad()
def hold(model: PeftModel, start: Start) -> None:
    """Puts the frozen half of an adapter that carries its start back, after an optimizer with weight decay moved it."""
    for name, layer in lora_layers(model).items():
        a0, b0 = start.factors[name]
        weight_of(layer.lora_A)[a0.shape[0] :] = a0.to(weight_of(layer.lora_A))
        weight_of(layer.lora_B)[:, b0.shape[1] :] = -b0.to(weight_of(layer.lora_B))


def _carry(layer: LoraLayer, a0: Tensor, b0: Tensor) -> None:
    """Makes a layer's adapter ``[B, -B0] [A; A0]`` with A = A0 and B = B0; gradients reach A and B only."""
    rank = a0.shape[0]
    for pair, weight, rows in (
        (layer.lora_A, torch.cat([a0, a0]), slice(rank, None)),  # (2·rank, d_in)
        (layer.lora_B, torch.cat([b0, -b0], dim=1), (slice(None), slice(rank, None))),  # (d_out, 2·rank)
    ):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        linear.weight = nn.Parameter(weight)
        linear.weight.register_hook(_zeroing(rows))
        pair[ADAPTER] = linear
    layer.r[ADAPTER] = 2 * rank
    layer.lora_alpha[ADAPTER] = layer.scaling[ADAPTER] * 2 * rank
    layer.use_rslora[ADAPTER] = False


def _zeroing(part: slice | tuple[slice, slice]) -> Callable[[Tensor], Tensor]:
    def zero(grad: Tensor) -> Tensor:
        grad = grad.clone()
        grad[part] = 0
        return grad

    return zero


def widen(config: LoraConfig, start: Start) -> None:
    """Describes adapters of twice the rank with the same s, layer by layer where they differ."""
    ranks = {name: 2 * a0.shape[0] for name, (a0, _) in start.factors.items()}
    alphas = {name: start.scalings[name] * rank for name, rank in ranks.items()}  # a float; s must not change
    rank, alpha = max(ranks.values()), max(alphas.values())
    config.r, config.lora_alpha, config.use_rslora = rank, alpha, False  # type: ignore[assignment]
    config.rank_pattern = {name: own for name, own in ranks.items() if own != rank}
    config.alpha_pattern = {name: own for name, own in alphas.items() if own != alpha}  # type: ignore[misc]


def weight_of(pair: nn.ModuleDict) -> Tensor:
    """The weight of a LoRA layer's A (rank, d_in) or B (d_out, rank)."""
    weight = pair[ADAPTER].weight
    assert isinstance(weight, Tensor)
    return weight
