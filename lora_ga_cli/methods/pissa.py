"""PiSSA (arXiv 2404.02948): A and B are initialized from the leading singular triplets of the weight itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from peft import LoraConfig
from peft.tuners.lora import Linear
from torch import Tensor, nn

from lora_ga_cli.config.schema import Config
from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.lora.layers import ADAPTER, as_float32_on_cpu, weight_of
from lora_ga_cli.lora.offset import InitialPair
from lora_ga_cli.methods.nonzero_init import NonzeroInit, NonzeroInitOptions
from lora_ga_cli.model.quantization import dense
from lora_ga_cli.model.targets import Target, check_rank
from lora_ga_cli.registry import METHODS


@METHODS.register("pissa")
class Pissa(NonzeroInit):
    """PiSSA, with factors computed by PEFT's own layer."""

    class Options(NonzeroInitOptions):
        """PiSSA (arXiv 2404.02948)."""

        type: Literal["pissa"] = "pissa"

    @classmethod
    def check(cls, config: Config) -> Iterator[str]:
        yield from super().check(config)
        if config.model.shard:
            yield "model.shard=true does not go with method.type=pissa, which decomposes complete weights"

    def pairs(self, artifact: GradientArtifact | None) -> InitialPair:
        def pair(name: str, target: Target, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
            check_rank({name: target.shape}, rank, rank)
            return principal_factors(dense(target), rank, scaling)

        return pair

    def describe_source(self) -> str:
        return "the weights' leading singular vectors"


def principal_factors(weight: Tensor, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    """``A0 = sqrt(S/s)·Vᵀ``, ``B0 = U·sqrt(S/s)`` of the weight's leading singular triplets (arXiv 2404.02948, eq. 2).

    Args:
        weight: (d_out, d_in); it is not changed.
        scaling: the s that the adapter's product is multiplied by.

    Returns:
        A0 (rank, d_in) and B0 (d_out, rank), float32 on the CPU; ``s·B0·A0`` is the best approximation of that rank.
    """
    d_out, d_in = weight.shape
    with torch.device("meta"):
        linear = nn.Linear(d_in, d_out, bias=False)
    linear.weight = nn.Parameter(weight.detach().float().clone(), requires_grad=False)
    config = LoraConfig(r=rank, lora_alpha=scaling * rank, init_lora_weights="pissa")  # type: ignore[arg-type]
    layer = Linear(linear, ADAPTER, config, r=rank, lora_alpha=config.lora_alpha)
    a0, b0 = (as_float32_on_cpu(weight_of(pair)) for pair in (layer.lora_A, layer.lora_B))
    return a0, b0
