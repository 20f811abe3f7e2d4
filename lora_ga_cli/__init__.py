"""loraga: fine-tuning with low-rank adapters that are initialized from the gradient (LoRA-GA, arXiv 2407.05000).

The names below are the library; everything else is internal. They load torch when first used, so that
``import lora_ga_cli`` is instant.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
# bitsandbytes looks for faster kernels in the package `kernels` when PEFT imports it, and warns where there are none
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

if TYPE_CHECKING:
    from lora_ga_cli.gradient.artifact import GradientArtifact as GradientArtifact
    from lora_ga_cli.gradient.estimate import estimate_gradients as estimate_gradients
    from lora_ga_cli.lora.export import export_adapter as export_adapter
    from lora_ga_cli.lora.offset import LoraInit as LoraInit
    from lora_ga_cli.methods.lora_ga import initialize as initialize

_PUBLIC = {
    "estimate_gradients": "lora_ga_cli.gradient.estimate",
    "GradientArtifact": "lora_ga_cli.gradient.artifact",
    "initialize": "lora_ga_cli.methods.lora_ga",
    "LoraInit": "lora_ga_cli.lora.offset",
    "export_adapter": "lora_ga_cli.lora.export",
}
__all__ = ["GradientArtifact", "LoraInit", "__version__", "estimate_gradients", "export_adapter", "initialize"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
