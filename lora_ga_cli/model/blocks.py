"""The repeated blocks of a model."""

from __future__ import annotations

from typing import Any

from torch import nn

from lora_ga_cli.errors import TargetError


def blocks(model: nn.Module) -> nn.ModuleList:
    """The repeated blocks of a model; of a model with an encoder and a decoder, the decoder's.

    This is the longest list of modules that is not inside another list (the experts of a mixture are inside blocks).

    Raises:
        TargetError: the model has no list of modules.
    """
    config = getattr(model, "config", None)
    decoder: Any = model.get_decoder() if getattr(config, "is_encoder_decoder", False) else model  # type: ignore[operator]
    lists = {name: module for name, module in decoder.named_modules() if isinstance(module, nn.ModuleList)}
    outer = [module for name, module in lists.items() if not any(name.startswith(f"{other}.") for other in lists)]
    if not outer:
        raise TargetError(f"{type(model).__name__} has no list of blocks")
    return max(outer, key=len)


def count_blocks(model: nn.Module) -> int:
    """The number of blocks of a model; 1 if it has no list of blocks."""
    try:
        return len(blocks(model))
    except TargetError:
        return 1
