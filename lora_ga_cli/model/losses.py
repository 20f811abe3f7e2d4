"""The loss that a model returns for a batch, and the number of items it averages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_ga_cli.errors import GradientError

Batch = Mapping[str, Any]


def count_items(model: nn.Module, batch: Batch) -> int:
    """The number of items that the mean loss of a batch averages: labelled tokens, or rows for a classifier.

    A decoder predicts each label from the tokens before it, so a row's first label does not count, unless trained
    vectors stand before the row.

    Raises:
        GradientError: the batch has no labels.
    """
    config = getattr(model, "config", None)
    # trained vectors before a row predict its first token too
    first_counts = getattr(config, "is_encoder_decoder", False) or getattr(model, "leading_positions", 0)
    return count_labels(batch, predicts_next=not first_counts)


def count_labels(batch: Batch, *, predicts_next: bool) -> int:
    """As `count_items`, without the model.

    Args:
        predicts_next: whether each label is predicted from the tokens before it, so that the first one is not: by a
            decoder alone, without trained vectors before the row.

    Raises:
        GradientError: the batch has no labels.
    """
    labels = batch.get("labels")
    if not isinstance(labels, Tensor):
        raise GradientError(f"a batch has no tensor named labels, only {', '.join(batch)}")
    if labels.dim() < 2:
        return labels.numel()
    return int(((labels[:, 1:] if predicts_next else labels) != -100).sum())


def model_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The mean loss that the model returns for a batch.

    Raises:
        GradientError: it returns none.
    """
    loss = model(**batch).loss
    if not isinstance(loss, Tensor):
        raise GradientError(f"{type(model).__name__} returns no loss for a batch of {', '.join(batch)}")
    return loss


@torch.no_grad()
def summed_loss(model: nn.Module, batches: Iterable[Batch]) -> tuple[float, int]:
    """The sum of the loss over all items of some batches, and the number of items; in evaluation mode."""
    training = model.training
    model.eval()
    total, items = 0.0, 0
    try:
        for batch in batches:
            count = count_items(model, batch)
            if count:
                total += float(model_loss(model, batch)) * count
                items += count
    finally:
        model.train(training)
    return total, items
