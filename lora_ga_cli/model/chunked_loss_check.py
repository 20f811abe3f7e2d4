"""Compares the loss in chunks, and its gradient, with those of the model's own forward, on a small batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lora_ga_cli.model.chunked_cross_entropy import IGNORED
from lora_ga_cli.model.chunked_output import Chunking, forward_slot, gathered, output_with_loss
from lora_ga_cli.model.replaced_backbone import Given, Seen, with_backbone, with_hidden_states

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 1e-2, torch.bfloat16: 2e-2}
"""The largest relative difference of loss and gradient that the check allows, by the type of the hidden states."""
CUDA_TOLERANCE = 2e-3
"""The same for float32 on a GPU, which may multiply matrices in TF32."""


def difference_of(model: PreTrainedModel, chunking: Chunking, tolerance: float) -> str:
    """Why loss or gradient of a small batch differ from the model's own; empty if they do not.

    The backbone runs once. The model is left as it was, and nothing is drawn from global generators.
    """
    batch = _small_batch(model)
    reasons: list[str] = []

    def compare(self: PreTrainedModel, **batch: Tensor) -> None:
        reasons.append(_difference(self, chunking, batch, tolerance))

    # through the model's call, which gathers sharded weights
    slot, before = forward_slot(model), vars(model).get(forward_slot(model))
    setattr(model, slot, MethodType(compare, model))
    try:
        with _untouched(model), torch.no_grad():
            model(**batch)
    finally:
        delattr(model, slot)
        if before is not None:
            setattr(model, slot, before)
    return reasons[0]


def _difference(model: PreTrainedModel, chunking: Chunking, batch: dict[str, Tensor], tolerance: float) -> str:
    backbone = model.get_submodule(chunking.path)
    seen = Seen(backbone)
    chunking.forward(with_backbone(model, chunking.path, seen), **batch)
    if seen.output is None:
        return "its hidden states cannot be told apart from its logits"
    hidden = seen.output[0].detach().requires_grad_()
    given = Given(backbone, with_hidden_states(seen.output, hidden))
    model = gathered(model, chunking)
    with torch.enable_grad():
        expected = chunking.forward(with_backbone(model, chunking.path, given), **batch).loss
        (slope,) = torch.autograd.grad(expected, hidden)
        for trains in (False, True):
            loss = output_with_loss(model, chunking, given, batch, trains=trains).loss
            (gradient,) = torch.autograd.grad(loss, hidden)
            if not _distance(loss, expected) <= tolerance:
                return f"its loss is not the cross entropy of the next token ({float(loss):.6g}, {float(expected):.6g})"
            if not _distance(gradient, slope) <= tolerance:
                return "the gradient of its loss is not that of the cross entropy of the next token"
    return ""


def _small_batch(model: PreTrainedModel) -> dict[str, Tensor]:
    """Two rows of six random tokens, some without a label."""
    generator = torch.Generator().manual_seed(0)
    embeddings: Any = model.get_input_embeddings()
    vocabulary = min(embeddings.weight.shape[0], 1000)
    ids = torch.randint(vocabulary, (2, 6), generator=generator)
    labels = ids.clone()
    labels[0, :2] = labels[1, 3] = IGNORED
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    return {name: tensor.to(model.device) for name, tensor in batch.items()}


def _distance(actual: Tensor, expected: Tensor) -> float:
    difference = (actual.detach().double() - expected.detach().double()).norm()
    return float(difference / expected.detach().double().norm())


def tolerance_of(model: PreTrainedModel) -> float:
    """The largest relative difference that is no fault of a model, by the type of its weights and its device."""
    dtype: torch.dtype = model.get_input_embeddings().weight.dtype  # type: ignore[assignment]
    if dtype == torch.float32 and model.device.type != "cpu":
        return CUDA_TOLERANCE
    return TOLERANCE.get(dtype, TOLERANCE[torch.bfloat16])


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without autocast, and afterwards every module in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.autocast(next(model.parameters()).device.type, enabled=False):
            yield
    finally:
        for module, training in modes:
            module.training = training
