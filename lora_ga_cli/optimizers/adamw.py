"""AdamW: torch's own, and those of bitsandbytes, whose moments are in pages or in 8 bits."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from torch import nn

from lora_ga_cli.config.schema import Config
from lora_ga_cli.optimizers.base import ConfiguredOptimizer
from lora_ga_cli.registry import OPTIMIZERS

BLOCK = 256
"""Entries of a moment that share a scale, in 8 bits."""
SMALLEST = 4096
"""Parameters with fewer entries keep their moments in float32."""


@OPTIMIZERS.register("adamw")
class AdamW(ConfiguredOptimizer):
    """torch's AdamW (arXiv 1711.05101)."""


class Bitsandbytes(ConfiguredOptimizer):
    """An optimizer of the package bitsandbytes."""

    carries_state = False  # its moments are in pages, or in 8 bits with scales beside them

    @classmethod
    def check(cls, config: Config) -> Iterator[str]:
        if importlib.util.find_spec("bitsandbytes") is None:
            yield f"trainer.optimizer={config.trainer.optimizer} needs bitsandbytes: pip install 'loraga[quantized]'"


@OPTIMIZERS.register("paged_adamw")
class PagedAdamW(Bitsandbytes):
    """bitsandbytes' AdamW, whose moments move to CPU memory while GPU memory is short (QLoRA, arXiv 2305.14314)."""

    transformers_name = "paged_adamw_32bit"


@OPTIMIZERS.register("adamw_8bit")
class AdamW8bit(Bitsandbytes):
    """bitsandbytes' AdamW, whose moments take a byte for each entry, with a scale for each 256 (arXiv 2110.02861)."""

    transformers_name = "adamw_8bit"

    def state_bytes(self, model: nn.Module) -> int:
        """Memory of the gradients and of both moments; small parameters keep theirs in float32."""
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return sum(item.numel() * item.element_size() + 2 * _moment_bytes(item.numel()) for item in trained)


@OPTIMIZERS.register("paged_adamw_8bit")
class PagedAdamW8bit(AdamW8bit):
    """``adamw_8bit``, whose moments also move to CPU memory while GPU memory is short (arXiv 2110.02861)."""

    transformers_name = "paged_adamw_8bit"


def _moment_bytes(entries: int) -> int:
    return 4 * entries if entries < SMALLEST else entries + 4 * -(-entries // BLOCK)
