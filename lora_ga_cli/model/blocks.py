"""A model's repeated blocks."""

from __future__ import annotations

from typing import Any

from torch import nn

from lora_ga_cli.errors import TargetError


def blocks(model: nn.Module) -> nn.ModuleList:
    """The model's repeated blocks: its longest list of modules that lies in no other (a mixture's experts lie in its
    blocks); of an encoder and a decoder, the decoder's.

    Raises:
        TargetError: it has none.
    """
    config = getattr(model, "config", None)
    stack: Any = model.get_decoder() if getattr(config, "is_encoder_decoder", False) else model  # type: ignore[operator]
    lists = {name: module for name, module in stack.named_modules() if isinstance(module, nn.ModuleList)}
    outer = [module for name, module in lists.items() if not any(name.startswith(f"{other}.") for other in lists)]
    if not outer:
        raise TargetError(f"{type(model).__name__} has no list of blocks")
    return max(outer, key=len)


def count_blocks(model: nn.Module) -> int:
    """How many blocks a model has; 1 where it is no list of them."""
    try:
        return len(blocks(model))
    except TargetError:
        return 1
