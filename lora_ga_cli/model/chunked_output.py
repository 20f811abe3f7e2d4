"""The output of a causal language model with a loss that is computed in chunks of positions.

The model's own forward runs with a stand-in for its backbone, which passes on one position. Its loss function calls the
rest of the model on the hidden states of one chunk after another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from lora_ga_cli.model.chunked_cross_entropy import IGNORED, chunk_size, labelled_positions, summed_cross_entropy
from lora_ga_cli.model.replaced_backbone import Given, Trimmed, with_backbone, without_hooks
from lora_ga_cli.model.unsupported import Unsupported

Forward = Callable[..., Any]


@dataclass(frozen=True)
class Chunking:
    """What an instance's new forward needs to know."""

    forward: Forward
    """The forward of the model's class, which takes the model first."""
    path: str
    """Where in the model its backbone is."""
    tokens: int | None
    """Positions of a chunk; None: by the size of the vocabulary."""
    sharded: bool
    """Whether weights of the model are divided among processes (FSDP2)."""


def output_with_loss(
    model: PreTrainedModel,
    chunking: Chunking,
    backbone: Forward,
    kwargs: dict[str, Any],
    num_labelled: int | None = None,
    trains: bool | None = None,
) -> Any:
    """The model's output with its loss, and without logits.

    Args:
        backbone: computes the hidden states.
        trains: whether something behind the hidden states trains; None: found out.

    Raises:
        Unsupported: the model does not call its loss function.
        ValueError: the labels do not have the shape of the hidden states.
    """
    trimmed = Trimmed(backbone)
    losses: list[Tensor] = []

    def loss_function(
        logits: Tensor,
        labels: Tensor | None = None,
        vocab_size: int | None = None,
        num_items_in_batch: Tensor | int | None = None,
        ignore_index: int = IGNORED,
        shift_labels: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        hidden, size = trimmed.hidden, chunking.tokens or chunk_size(logits.shape[-1])
        targets = _targets(hidden, labels, shift_labels, ignore_index)
        # the logits are those of one position, computed from a constant: they have a gradient if the head has one
        again = logits.requires_grad if trains is None else trains
        head = _Head(model, chunking, trimmed.output_type)
        rows, targets, count = labelled_positions(hidden.reshape(-1, hidden.shape[-1]), targets, num_labelled)
        summed = summed_cross_entropy(head, rows, targets, size, again=again)
        items = count.clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        losses.append(summed / (items.to(summed.device) if isinstance(items, Tensor) else items))
        return losses[-1]

    replica = with_backbone(model, chunking.path, trimmed)
    vars(replica)["_loss_function"] = loss_function
    output = chunking.forward(replica, **kwargs)
    if not losses:
        raise Unsupported("it computes its loss without transformers' loss functions")
    return type(output)(**{name: value for name, value in output.items() if name != "logits"})


def _targets(hidden: Tensor, labels: Tensor | None, shifted: Tensor | None, ignored: int) -> Tensor:
    """The token to predict at each position, `IGNORED` where there is none: shape (positions,).

    Args:
        hidden: shape (rows, length, hidden).
        labels: shape (rows, length), each at the position of its own token.
        shifted: the same at the position before, where the model has shifted them itself.
        ignored: the label of positions that count for nothing.

    Raises:
        ValueError: there are no labels of that shape.
    """
    if shifted is None:
        if labels is None or labels.shape != hidden.shape[:2]:
            raise ValueError("labels are not of the shape of the hidden states")
        shifted = functional.pad(labels, (0, 1), value=ignored)[..., 1:]
    targets = shifted.reshape(-1).to(hidden.device)
    return targets.masked_fill(targets == ignored, IGNORED)


class _Head:
    """The model's own way from hidden states (positions, hidden) to logits (positions, vocabulary)."""

    def __init__(self, model: PreTrainedModel, chunking: Chunking, output_type: Any):
        self.model, self.chunking, self.output_type = gathered(model, chunking), chunking, output_type

    def __call__(self, hidden: Tensor) -> Tensor:
        rows = hidden.unsqueeze(0)
        output = (rows,) if issubclass(self.output_type, tuple) else self.output_type(last_hidden_state=rows)
        given = Given(self.model.get_submodule(self.chunking.path), output)
        replica = with_backbone(self.model, self.chunking.path, given)
        ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        logits: Tensor = self.chunking.forward(replica, input_ids=ids).logits
        return logits.squeeze(0)


def gathered(model: PreTrainedModel, chunking: Chunking) -> PreTrainedModel:
    """The model with a head that no longer counts its calls, if weights are sharded (FSDP2).

    FSDP2 gathers the head's weights when the backbone's end or the head is called, and keeps them until the backward
    pass has used them. Its hooks expect one call of each module in a forward pass.
    """
    if not chunking.sharded:
        return model
    replica: PreTrainedModel = without_hooks(model, chunking.path)
    return replica


def forward_slot(model: nn.Module) -> str:
    """The attribute that holds an instance's forward; accelerate's hooks keep it under another name."""
    return "_old_forward" if hasattr(model, "_hf_hook") else "forward"
