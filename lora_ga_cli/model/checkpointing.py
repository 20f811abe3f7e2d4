"""Gradient checkpointing of some of a model's blocks."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from lora_ga_cli.model.unsupported import Unsupported


def checkpoint_blocks(model: PreTrainedModel, every: int = 1) -> None:
    """Computes the activations of every n-th block again in the backward pass, instead of keeping them.

    Of a model with an encoder and a decoder, the blocks of both are counted, one after another. The first block is
    always among those that are computed again.

    Args:
        every: n; 1 computes all blocks again, and 2 half of them.

    Raises:
        Unsupported: the model cannot checkpoint, or only all of its blocks.
    """
    found = checkpointed_layers(model)
    if every > 1 and not found:
        raise Unsupported(f"{type(model).__name__} checkpoints all of its blocks or none")
    if not model.supports_gradient_checkpointing:
        raise Unsupported(f"{type(model).__name__} has no gradient checkpointing")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for number, layer in enumerate(found):
        layer.gradient_checkpointing = number % every == 0


def checkpointed_layers(model: nn.Module) -> list[GradientCheckpointingLayer]:
    """The blocks that transformers checkpoints one by one, in their order."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
