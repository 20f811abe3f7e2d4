"""PiSSA (arXiv 2404.02948): A and B are initialized from the leading singular triplets of the weight itself."""

from __future__ import annotations

from typing import Literal

from lora_ga_cli.methods.nonzero_init import NonzeroInitOptions
from lora_ga_cli.methods.weight_init import WeightInit
from lora_ga_cli.registry import METHODS


@METHODS.register("pissa")
class Pissa(WeightInit):
    """PiSSA, with factors computed by PEFT's own layer.

    ``A0 = sqrt(S/s)·Vᵀ`` and ``B0 = U·sqrt(S/s)`` of the weight's leading singular triplets (equation 2), so that
    ``s·B0·A0`` is the weight's best approximation of that rank.
    """

    peft_name = "pissa"
    source_name = "the weights' leading singular vectors"

    class Options(NonzeroInitOptions):
        """PiSSA (arXiv 2404.02948)."""

        type: Literal["pissa"] = "pissa"
