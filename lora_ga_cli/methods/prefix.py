"""Prefix-layer tuning (LoRA, arXiv 2106.09685, section 5.1): trained hidden states before a row, at every layer.

Each block sees ``length`` more positions, whose hidden states (length, d_model) are trained and replace what the block
before computed there: ``layers · length · d_model`` numbers. (PEFT's prefix tuning trains keys and values instead,
twice as many numbers, without the block's own projections.) There are no infix tokens.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from lora_ga_cli.errors import TargetError
from lora_ga_cli.model.blocks import blocks

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and named arguments."""
SPREAD = 0.02
"""Standard deviation of the first prefixes where the model's configuration states none for its own weights."""


def insert(model: nn.Module, length: int) -> None:
    """Puts prefixes on every block of a decoder, in place; `generate` works as before.

    Raises:
        TargetError: the model is no decoder alone.
    """
    config: Any = model.config
    if getattr(config, "is_encoder_decoder", False):
        raise TargetError(f"prefix_layer is for decoders, and {type(model).__name__} has an encoder")
    found = blocks(model)
    device = next(model.parameters()).device
    spread = float(getattr(config, "initializer_range", SPREAD) or SPREAD)
    rows = _Rows(length)
    for block in found:
        block.prefix = nn.Parameter(torch.empty(length, config.hidden_size, device=device).normal_(std=spread))
        block.register_forward_pre_hook(rows.replace, with_kwargs=True)
    model.register_forward_pre_hook(rows.begin, with_kwargs=True)
    model.register_forward_hook(rows.end)


class _Rows:
    """What happens to a batch on its way through the model."""

    def __init__(self, length: int):
        self.length = length
        self.reading = False
        """Whether the prefix positions are among those computed now, or lie in the cache already."""
        self.tokens = 0

    def begin(
        self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Makes room for the prefix in front of every row."""
        kwargs = dict(zip(inspect.signature(model.forward).parameters, args, strict=False)) | kwargs
        ids = kwargs.pop("input_ids", None)
        inputs = kwargs.get("inputs_embeds")
        inputs = model.get_input_embeddings()(ids) if inputs is None else inputs
        past = kwargs.get("past_key_values")
        seen = past.get_seq_length() if past is not None else 0
        self.reading, self.tokens = seen == 0, inputs.shape[1]
        count = len(inputs)
        mask = kwargs.get("attention_mask")
        if mask is not None:
            mask = torch.cat([mask.new_ones(count, self.length), mask], 1)
        if self.reading:
            inputs = torch.cat([inputs.new_zeros(count, self.length, inputs.shape[2]), inputs], 1)
            if kwargs.get("labels") is not None:
                labels = kwargs["labels"]
                kwargs["labels"] = torch.cat([labels.new_full((count, self.length), -100), labels], 1)
        kwargs.pop("cache_position", None)
        kwargs |= {"inputs_embeds": inputs, "attention_mask": mask, "position_ids": None}
        if mask is not None:
            kwargs["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0)[:, -inputs.shape[1] :]
        return (), kwargs

    def replace(self, block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        """Puts a block's own prefix where the block before left something."""
        if not self.reading:
            return None
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        prefix = block.prefix.to(hidden.dtype).expand(len(hidden), -1, -1)
        hidden = torch.cat([prefix, hidden[:, self.length :]], 1)
        return ((hidden, *args[1:]), kwargs) if args else ((), kwargs | {"hidden_states": hidden})

    def end(self, model: Any, args: Any, output: Any) -> Any:
        """Gives back the logits of the row alone."""
        if output.logits.shape[1] > self.tokens:
            output.logits = output.logits[:, -self.tokens :]
        return output
