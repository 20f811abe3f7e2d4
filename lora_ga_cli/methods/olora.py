"""OLoRA (arXiv 2406.01775): A and B are initialized from the QR decomposition of the weight itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from torch import Tensor

from lora_ga_cli.config.schema import Config
from lora_ga_cli.lora.offset import InitialPair
from lora_ga_cli.lora.peft_init import peft_factors
from lora_ga_cli.methods.base import Link
from lora_ga_cli.methods.nonzero_init import NonzeroInit, NonzeroInitOptions
from lora_ga_cli.model.quantization import dense
from lora_ga_cli.model.targets import Target, check_rank
from lora_ga_cli.registry import METHODS


@METHODS.register("olora")
class OLora(NonzeroInit):
    """OLoRA, with factors computed by PEFT's own layer: ``W = Q R``, ``B0 = Q_r``, ``A0 = R_r``."""

    class Options(NonzeroInitOptions):
        """OLoRA (arXiv 2406.01775)."""

        type: Literal["olora"] = "olora"

    @classmethod
    def check(cls, config: Config) -> Iterator[str]:
        yield from super().check(config)
        if config.model.shard:
            yield "model.shard=true does not go with method.type=olora, which decomposes complete weights"

    def pairs(self, link: Link, source: Any) -> InitialPair:
        def pair(name: str, target: Target, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
            check_rank({name: target.shape}, rank, rank)
            return peft_factors(dense(target), rank, scaling, "olora")

        return pair

    def describe_source(self) -> str:
        return "the weights' QR decomposition"
