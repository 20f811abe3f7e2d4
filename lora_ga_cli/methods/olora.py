"""OLoRA (arXiv 2406.01775): A and B are initialized from the QR decomposition of the weight itself."""

from __future__ import annotations

from typing import Literal

from lora_ga_cli.methods.nonzero_init import NonzeroInitOptions
from lora_ga_cli.methods.weight_init import WeightInit
from lora_ga_cli.registry import METHODS


@METHODS.register("olora")
class OLora(WeightInit):
    """OLoRA, with factors computed by PEFT's own layer: ``W = Q R``, ``B0 = Q_r``, ``A0 = R_r``."""

    peft_name = "olora"
    source_name = "the weights' QR decomposition"

    class Options(NonzeroInitOptions):
        """OLoRA (arXiv 2406.01775)."""

        type: Literal["olora"] = "olora"
