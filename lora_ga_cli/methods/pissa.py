"""PiSSA (arXiv 2404.02948): A and B are initialized from the leading singular triplets of the weight itself."""

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


@METHODS.register("pissa")
class Pissa(NonzeroInit):
    """PiSSA, with factors computed by PEFT's own layer.

    ``A0 = sqrt(S/s)·Vᵀ`` and ``B0 = U·sqrt(S/s)`` of the weight's leading singular triplets (equation 2), so that
    ``s·B0·A0`` is the weight's best approximation of that rank.
    """

    class Options(NonzeroInitOptions):
        """PiSSA (arXiv 2404.02948)."""

        type: Literal["pissa"] = "pissa"

    @classmethod
    def check(cls, config: Config) -> Iterator[str]:
        yield from super().check(config)
        if config.model.shard:
            yield "model.shard=true does not go with method.type=pissa, which decomposes complete weights"

    def pairs(self, link: Link, source: Any) -> InitialPair:
        def pair(name: str, target: Target, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
            check_rank({name: target.shape}, rank, rank)
            return peft_factors(dense(target), rank, scaling, "pissa")

        return pair

    def describe_source(self) -> str:
        return "the weights' leading singular vectors"
