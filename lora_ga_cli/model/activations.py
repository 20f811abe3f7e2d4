"""A forecast of what a forward pass keeps for the backward pass, from the shapes of a model alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lora_ga_cli.model.checkpointing import checkpointed_layers
from lora_ga_cli.model.chunked_cross_entropy import chunk_size
from lora_ga_cli.model.forecast import forward_shapes
from lora_ga_cli.model.speed import Speed

BLOCK_TRANSIENT = 3
"""Tensors as large as the largest that a block keeps, which its backward pass needs at the same time."""


def activation_bytes(
    model: nn.Module,
    rows: int,
    tokens: int,
    *,
    task: str,
    checkpoint_every: int = 0,
    offload: bool = False,
    speed: Speed | None = None,
) -> int:
    """Bytes that a pass needs beside weights and optimizer, at its peak.

    The model is on the meta device: its forward pass computes shapes only, and every tensor that autograd would keep is
    counted once. Of a block that is checkpointed its input is kept. To this comes what the loss needs, or what the
    backward pass of one block does, whichever is more, since they come one after another. A checkpointed block is
    computed again then, and keeps what it would have kept.

    Args:
        rows: of the batch; 1 if rows are flattened.
        tokens: columns of the batch.
        checkpoint_every: every which block is checkpointed; 0 for none.
        offload: whether the inputs of checkpointed blocks wait in the CPU's memory.
        speed: what is on for the model.
    """
    speed = speed or Speed()
    if speed.liger:
        _keep_as_liger(model)
    kept = kept_bytes(model, rows, tokens, task=task, loss=not speed.chunked_loss)
    element = next(model.parameters()).element_size()
    config: Any = model.config
    hidden = rows * tokens * int(config.hidden_size) * element
    again = [bool(checkpoint_every) and number % checkpoint_every == 0 for number in range(len(kept.blocks))]
    kept_input = 0 if offload else hidden
    total = kept.outside + sum(kept_input if twice else own for own, twice in zip(kept.blocks, again, strict=True))
    if speed.block_mask:
        total += mask_bytes(tokens, model)
    computed_again = max((own for own, twice in zip(kept.blocks, again, strict=True) if twice), default=0)
    of_block = computed_again + BLOCK_TRANSIENT * kept.largest
    return total + max(_loss_bytes(config, rows, tokens, task, speed, element), of_block)


@dataclass(frozen=True)
class Kept:
    """Bytes that autograd keeps for the backward pass.

    Args:
        outside: of all blocks.
        blocks: of each block.
        largest: the largest tensor that a block keeps.
    """

    outside: int
    blocks: list[int]
    largest: int

    @property
    def total(self) -> int:
        return self.outside + sum(self.blocks)


def mask_bytes(tokens: int, model: nn.Module) -> int:
    """A mask of tokens times tokens: what may be seen, and the same in the type of the model."""
    return tokens * tokens * (1 + next(model.parameters()).element_size())


def _loss_bytes(config: Any, rows: int, tokens: int, task: str, speed: Speed, element: int) -> int:
    """The gradient of all logits, in float32 as they are; or what a chunk needs, and the gradient of hidden states."""
    vocabulary = int(getattr(config, "vocab_size", 0)) if task != "sequence_classification" else 0
    if not speed.chunked_loss or not vocabulary:
        return rows * tokens * vocabulary * 4
    chunk = min(rows * tokens, chunk_size(vocabulary))
    # logits and their gradient in the model's type, and one copy in float32 (autograd has two more if the head trains)
    return chunk * vocabulary * (2 * element + 4) + rows * tokens * int(config.hidden_size) * element


def kept_bytes(model: nn.Module, rows: int, tokens: int, *, task: str, loss: bool = True) -> Kept:
    """What the forward pass of a model on the meta device keeps, every storage once.

    Args:
        loss: whether the model computes its loss, with all logits.
    """
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    seen: dict[int, Tensor] = {}  # holds the storages, whose addresses would otherwise be used again
    layers = checkpointed_layers(model)
    by_place = [0] * (len(layers) + 1)
    place = outside = len(layers)
    largest = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal largest
        storage = tensor.untyped_storage()
        if storage._cdata not in weights and storage._cdata not in seen:
            seen[storage._cdata] = tensor
            by_place[place] += storage.nbytes()
            largest = max(largest, storage.nbytes()) if place != outside else largest
        return tensor

    def enter(number: int) -> None:
        nonlocal place
        place = number

    hooks = []
    for number, layer in enumerate(layers):
        hooks.append(layer.register_forward_pre_hook(lambda *_, number=number: enter(number)))
        hooks.append(layer.register_forward_hook(lambda *_: enter(outside)))
    try:
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor), _FusedAttention():
            forward_shapes(model, rows, tokens, task=task, loss=loss)
    finally:
        for hook in hooks:
            hook.remove()
    return Kept(by_place[outside], by_place[:outside], largest)


def _keep_as_liger(model: nn.Module) -> None:
    """Has the norms and gates of an empty model keep what Liger's kernels keep: their inputs, and a number a row."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = _KeepInputs.apply
        elif all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")):
            module.forward = _gated(module)


def _gated(mlp: Any) -> Any:
    return lambda x: mlp.down_proj(_KeepInputs.apply(mlp.gate_proj(x), mlp.up_proj(x)))


class _KeepInputs(torch.autograd.Function):
    """Keeps its inputs, and returns a tensor like the first one."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors, tensors[0].new_empty(tensors[0].shape[:-1], dtype=torch.float32))
        return torch.empty_like(tensors[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, ...]:
        raise AssertionError("nothing is computed here")


class _FusedAttention(TorchFunctionMode):
    """Counts attention as the kernels of real devices compute it.

    On the meta device attention keeps its weights; those kernels keep one sum per row instead.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            return _FusedAttentionFunction.apply(*args[:3])
        return func(*args, **(kwargs or {}))


class _FusedAttentionFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, result, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None]:
        raise AssertionError("nothing is computed here")
