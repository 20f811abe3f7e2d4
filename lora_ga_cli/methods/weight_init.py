"""LoRA whose initial factors are a decomposition of the weight itself, as PEFT's own layer computes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from torch import Tensor

from lora_ga_cli.config.schema import Config
from lora_ga_cli.lora.offset import InitialPair
from lora_ga_cli.lora.peft_init import peft_factors
from lora_ga_cli.methods.base import Link
from lora_ga_cli.methods.nonzero_init import NonzeroInit
from lora_ga_cli.model.quantization import dense
from lora_ga_cli.model.targets import Target, check_rank


class WeightInit(NonzeroInit):
    """A method that decomposes each weight. A subclass names the decomposition."""

    adapts_experts = True
    peft_name: ClassVar[str]
    """PEFT's ``init_lora_weights``."""
    source_name: ClassVar[str]
    """What the initial factors are computed from, in a few words."""

    @classmethod
    def check(cls, config: Config) -> Iterator[str]:
        yield from super().check(config)
        if config.model.shard:
            given = f"method.type={config.method.type}"
            yield f"model.shard=true does not go with {given}, which decomposes complete weights"

    def pairs(self, link: Link, source: Any) -> InitialPair:
        def pair(name: str, target: Target, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
            check_rank({name: target.shape}, rank, rank)
            return peft_factors(dense(target), rank, scaling, self.peft_name)

        return pair

    def describe_source(self) -> str:
        return self.source_name
