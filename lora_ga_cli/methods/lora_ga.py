"""LoRA-GA (arXiv 2407.05000): A and B are initialized from the leading singular vectors of the gradient.

The mathematics is in `lora.initialization`; here it becomes a method, and `initialize` for programs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

import torch
from peft import PeftModel
from pydantic import Field
from torch import Tensor

from lora_ga_cli.config.exclusions import Exclusion
from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import GradientError
from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.lora.initialization import initial_factors, layer_seed, random_factors, scale_factor
from lora_ga_cli.lora.layers import ADAPTER, base_targets, lora_layers
from lora_ga_cli.lora.offset import InitialPair, LoraInit, compute_init, install
from lora_ga_cli.lora.sketches import draw_factor
from lora_ga_cli.methods.base import InitData, Link, link_seed
from lora_ga_cli.methods.lora import without_directions
from lora_ga_cli.methods.nonzero_init import NonzeroInit, NonzeroInitOptions
from lora_ga_cli.model.quantization import dense
from lora_ga_cli.model.targets import Target
from lora_ga_cli.registry import METHODS


class LoraGAOptions(NonzeroInitOptions):
    """LoRA-GA's choices of directions and scale."""

    exclusions: ClassVar[tuple[Exclusion, ...]] = (
        Exclusion("method.init", ("method.direction",), lambda value: value != "gradient"),
        Exclusion("method.scale", ("method.gamma",), lambda value: value != "stable"),
    )

    init: Literal["gradient", "gaussian"] = "gradient"
    """``gradient``: singular vectors of the gradient. ``gaussian``: A and B at random, the paper's ablation."""
    direction: Literal["ArB2r", "A2rBr", "ArBr", "random"] = "ArB2r"
    """Which singular vectors of the gradient initialize A and B (LoRA-GA, section 3)."""
    scale: Literal["stable", "unit", "gd", "weight_svd"] = "stable"
    """Size of the initial factors. ``stable``: ``d_out**0.25 / sqrt(gamma)`` on both. ``unit``: 1. ``gd``: ``1 / s``.
    ``weight_svd``: from the singular values of the weight."""
    gamma: Annotated[float, Field(gt=0)] = 16.0
    """The constant of ``scale=stable``, without unit."""


@METHODS.register("lora_ga")
class LoraGA(NonzeroInit):
    """LoRA-GA and its ablations.

    An expert whose gradient is zero, because no sampled token was routed to it, begins as in LoRA: A at random, B zero.
    """

    adapts_experts = True

    class Options(LoraGAOptions):
        """LoRA-GA (arXiv 2407.05000)."""

        type: Literal["lora_ga"] = "lora_ga"

    options_without_cost = frozenset({"direction", "gamma"})
    gradient_vectors = 2

    @property
    def needs_gradient(self) -> bool:
        return bool(self.options.init == "gradient") or super().needs_gradient

    @classmethod
    def check(cls, config: Config) -> Iterator[str]:
        yield from super().check(config)
        options: Any = config.method
        if options.init != "gradient" and options.direction != "ArB2r":
            yield f"method.direction={options.direction} does nothing with method.init={options.init}"
        if options.scale != "stable" and options.gamma != 16:
            yield f"method.gamma={options.gamma:g} does nothing with method.scale={options.scale}"

    def initialize(self, model: PeftModel, link: Link, source: Any, data: InitData) -> LoraInit | None:
        options, seed = self.options, link_seed(self.config.seed, link.index)
        if options.init != "gradient":
            return super().initialize(model, link, source, data)
        return gradient_init(
            model,
            source,
            direction=options.direction,
            scale=options.scale,
            gamma=options.gamma,
            offset=self.offset,
            seed=seed,
            named=self.names_targets,
        )

    def pairs(self, link: Link, source: Any) -> InitialPair:
        options, seed = self.options, link_seed(self.config.seed, link.index)

        def pair(name: str, target: Target, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
            factor = _factor(target, rank, scaling, options.scale, options.gamma)
            return random_factors(target.shape, rank, factor=factor, seed=layer_seed(seed, name))

        return pair

    def describe_source(self) -> str:
        options = self.options
        if options.init == "gradient":
            return f"the gradient ({options.direction}, {options.scale})"
        return f"random factors ({options.scale})"


def initialize(
    model: PeftModel,
    artifact: GradientArtifact,
    *,
    direction: str = "ArB2r",
    scale: str = "stable",
    gamma: float = 16.0,
    offset: str = "auto",
    seed: int = 0,
) -> LoraInit:
    """Initializes a PEFT LoRA model from the gradient, so that the model still computes what its base does.

    Each layer gets ``A0 = c·V_Aᵀ`` and ``B0 = c·U_B`` (see `lora.initialization.initial_factors`), and their product is
    subtracted, in the base or in the adapter (see `lora.offset`). Keep the result: `export_adapter` needs it.

    Args:
        model: a model with one LoRA adapter; its rank, alpha and ``use_rslora`` decide s. the authors of LoRA-GA use
            ``use_rslora=True``.
        artifact: the gradient of the same base, for at least the model's rank and layers.
        direction: ``ArB2r``, ``A2rBr``, ``ArBr`` or ``random``.
        scale: ``stable``, ``unit``, ``gd`` or ``weight_svd``.
        gamma: the constant of ``stable``; the authors' configuration has 16.
        offset: ``base``, ``adapter``, or ``auto``: ``base`` for a float32 base, else ``adapter``, which a quantized
            base needs.

    Raises:
        GradientError: a layer has no gradient in the artifact, or the rank is above its capacity.
        TargetError: the rank is too large for a layer.
    """
    init = gradient_init(
        model, artifact, direction=direction, scale=scale, gamma=gamma, offset=offset, seed=seed, named=True
    )
    return install(model, init)


def gradient_init(
    model: PeftModel,
    artifact: GradientArtifact,
    *,
    direction: str,
    scale: str,
    gamma: float,
    offset: str,
    seed: int,
    named: bool,
) -> LoraInit:
    """LoRA-GA's initial factors. The model is not changed. Arguments and errors as `initialize`.

    Args:
        named: whether the user named the layers; else a few may be too small for the rank, and begin as LoRA does.
    """
    layers = lora_layers(model)
    names = {layer.name for target in base_targets(model).values() for layer in target.layers}
    artifact.check_serves(names, max((layer.r[ADAPTER] for layer in layers.values()), default=1))
    as_lora = without_directions(model, artifact, vectors=2, named=named)

    def pair(name: str, target: Target, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
        if name in artifact.unreached:
            generator = torch.Generator().manual_seed(layer_seed(seed, name) & (2**63 - 1))
            d_out, d_in = target.shape
            return draw_factor((rank, d_in), "kaiming", generator), torch.zeros(d_out, rank)
        if artifact.factors[name].shape != target.shape:
            raise GradientError(f"{name}: the gradient is {artifact.factors[name].shape}, the weight {target.shape}")
        factor = _factor(target, rank, scaling, scale, gamma)
        return initial_factors(
            artifact.factors[name], rank, direction=direction, factor=factor, seed=layer_seed(seed, name)
        )

    return compute_init(model, pair, offset=offset, as_lora=as_lora)


def _factor(target: Target, rank: int, scaling: float, scale: str, gamma: float) -> float:
    """The number c on both factors of a layer."""
    weight = dense(target) if scale == "weight_svd" else None
    return scale_factor(scale, d_out=target.shape[0], scaling=scaling, gamma=gamma, rank=rank, weight=weight)
