"""From files or the hub to tokenized rows and batches.

Names load when first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_ga_cli.data.collate import collate_tokens as collate_tokens
    from lora_ga_cli.data.collate import generation_batch as generation_batch
    from lora_ga_cli.data.load import load_data as load_data
    from lora_ga_cli.data.load import load_file_split as load_file_split
    from lora_ga_cli.data.split import Data as Data
    from lora_ga_cli.data.split import Split as Split

_PUBLIC = {
    "Data": "lora_ga_cli.data.split",
    "Split": "lora_ga_cli.data.split",
    "collate_tokens": "lora_ga_cli.data.collate",
    "generation_batch": "lora_ga_cli.data.collate",
    "load_data": "lora_ga_cli.data.load",
    "load_file_split": "lora_ga_cli.data.load",
}
__all__ = ["Data", "Split", "collate_tokens", "generation_batch", "load_data", "load_file_split"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
