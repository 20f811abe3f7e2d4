"""Memory that estimation and training will need, from shapes alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Memory:
    """Parts of a peak, in bytes."""

    weights: int
    states: int
    """Trained numbers with gradients and optimizer moments; while estimating, the sums of gradients."""
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.states + self.activations


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    tensors: Iterable[Tensor] = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def state_bytes(model: nn.Module) -> int:
    """Bytes of the gradients and AdamW's two moments of what trains, each as large as the number itself."""
    return sum(
        3 * parameter.numel() * parameter.element_size() for parameter in model.parameters() if parameter.requires_grad
    )


def activation_bytes(model: nn.Module, rows: int, tokens: int, *, task: str, checkpointing: bool) -> int:
    """What the forward pass keeps for the backward pass, for ``rows`` rows of ``tokens`` tokens.

    The model lies on the meta device: its forward pass computes shapes only, and every tensor that autograd would keep
    is counted once. With checkpointing, what one block keeps and a hidden state a block.
    """
    kept: dict[int, int] = {}
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    alive = []  # a freed storage's address would be used again

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = max(kept.get(storage._cdata, 0), storage.nbytes())
            alive.append(tensor)
        return tensor

    for module in model.modules():
        if hasattr(module, "warn_if_padding_and_no_attention_mask"):
            # it looks at values, and there are none
            setattr(module, "warn_if_padding_and_no_attention_mask", lambda *_: None)  # noqa: B010
    ids = torch.zeros(rows, tokens, dtype=torch.long, device="meta")
    labels = torch.zeros(rows, dtype=torch.long, device="meta") if task == "sequence_classification" else ids
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor), torch.device("meta"):
        model(input_ids=ids, labels=labels)
    total = sum(kept.values())
    blocks = _blocks(model)
    if not checkpointing or not blocks:
        return total
    config: Any = model.config
    hidden = rows * tokens * int(config.hidden_size) * next(model.parameters()).element_size()
    logits = rows * tokens * getattr(config, "vocab_size", 0) * 4 * 2 if task != "sequence_classification" else 0
    return max(total - logits, 0) // blocks + logits + blocks * hidden


def _blocks(model: nn.Module) -> int:
    return max((len(module) for module in model.modules() if isinstance(module, nn.ModuleList)), default=0)
