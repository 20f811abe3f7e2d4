"""AdamW, torch's own and the paged one of bitsandbytes."""

from __future__ import annotations

from lora_ga_cli.optimizers.base import ConfiguredOptimizer
from lora_ga_cli.registry import OPTIMIZERS


@OPTIMIZERS.register("adamw")
class AdamW(ConfiguredOptimizer):
    """torch's AdamW (arXiv 1711.05101)."""


@OPTIMIZERS.register("paged_adamw")
class PagedAdamW(ConfiguredOptimizer):
    """bitsandbytes' AdamW, whose moments move to CPU memory while GPU memory is short (QLoRA, arXiv 2305.14314)."""

    transformers_name = "paged_adamw_32bit"
    carries_state = False  # bitsandbytes keeps its moments in pages of its own
