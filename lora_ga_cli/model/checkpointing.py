"""Gradient checkpointing of some of a model's blocks, whose inputs may wait in the CPU's memory."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from lora_ga_cli.model.unsupported import Unsupported

FUNCTION = "_gradient_checkpointing_func"
"""The attribute in which transformers keeps the function that checkpoints a block."""


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


def offload_checkpoints(model: nn.Module) -> None:
    """Has the inputs of checkpointed blocks wait in the CPU's memory until the backward pass.

    An input of b bytes is copied to the CPU and back once in a pass. The copies stand in the queue of the GPU between
    its computations, and the CPU does not wait for them.

    Raises:
        Unsupported: the model is on a CPU, or no block of it is checkpointed by itself.
    """
    found = [layer for layer in checkpointed_layers(model) if layer.gradient_checkpointing]
    if not found:
        raise Unsupported(f"{type(model).__name__} has no blocks that are checkpointed one by one")
    if next(found[0].parameters()).device.type == "cpu":
        raise Unsupported("the model is in the CPU's memory already")
    for layer in found:
        setattr(layer, FUNCTION, functools.partial(offloading_checkpoint, use_reentrant=False))


def offloading_checkpoint(function: Any, *args: Any, **options: Any) -> Any:
    """`torch.utils.checkpoint.checkpoint`, with the inputs that it keeps moved by `to_cpu`.

    What ``function`` itself would keep is not kept, because the checkpoint's own hooks apply inside.
    """
    with torch.autograd.graph.saved_tensors_hooks(to_cpu, from_cpu):
        return checkpoint(function, *args, **options)


def to_cpu(tensor: Tensor) -> tuple[torch.device, Tensor]:
    """A copy in pinned memory, which is complete when the GPU has come to it, and the device to return to."""
    pinned = torch.cuda.is_available()
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, layout=tensor.layout, pin_memory=pinned)
    return tensor.device, copy.copy_(tensor, non_blocking=pinned)


def from_cpu(kept: tuple[torch.device, Tensor]) -> Tensor:
    """The tensor on its device again."""
    device, copy = kept
    return copy.to(device, non_blocking=True)


def checkpointed_layers(model: nn.Module) -> list[GradientCheckpointingLayer]:
    """The blocks that transformers checkpoints one by one, in their order."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
