"""Checks that two forms of a model compute the same logits, on a few rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lora_ga_cli.errors import EqualityError
from lora_ga_cli.model.losses import Batch
from lora_ga_cli.model.tf32 import float32_products, tf32_allowed

if TYPE_CHECKING:
    from lora_ga_cli.config.schema import ModelConfig, Task

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""The largest relative difference of logits that is allowed, by the type of the weights. In half precision the offset
base model rounds differently from the original one, which is as large as the rounding of the original one itself."""


PROBE_TEXTS = ("What is 12 + 30? Twelve and thirty are 42.", "Water is wet.")


def text_batch(tokenizer: Any, task: Task) -> dict[str, Tensor]:
    """A padded batch of two fixed texts, for `probe_logits` where no rows are at hand.

    Returns:
        ``input_ids`` and ``attention_mask`` (2, n); ``labels`` (2, n), or (2,) for a classifier.
    """
    rows = [tokenizer(text)["input_ids"] or [0] for text in PROBE_TEXTS]
    length = max(map(len, rows))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    ids = torch.tensor([[*row, *[pad] * (length - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    labels = torch.zeros(len(rows), dtype=torch.long) if task == "sequence_classification" else ids.clone()
    if labels.dim() == 2:
        labels[mask == 0] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@torch.no_grad()
def probe_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits (…, classes or vocabulary) of a batch on the CPU in float32, in evaluation mode, padding left out.

    Products of float32 matrices are not in TF32, whose rounding would hide a difference between two models or be one.
    """
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    batch = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    inputs = batch
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):  # a decoder's input is made of labels
        inputs = {name: value for name, value in batch.items() if name != "labels"}
    try:
        with float32_products():
            logits = model(**inputs).logits.float().cpu()
    finally:
        model.train(training)
    labels, mask = batch["labels"].cpu(), batch["attention_mask"].cpu()
    if logits.dim() == 3:
        logits = logits[:, -labels.shape[1] :]  # a trained prefix has logits too, before the others
    if logits.dim() == 3 and mask.shape == logits.shape[:2]:
        return logits[mask.bool()]
    return logits[labels != -100] if logits.dim() == 3 else logits


def rounding_type(config: ModelConfig) -> torch.dtype:
    """The type whose rounding error is allowed between two forms of a model.

    8-bit layers round their inputs to integers, so a difference in the last digit becomes as large as in bfloat16.
    Where a GPU is allowed to multiply float32 matrices in TF32, their entries are rounded to float16's ten bits. The
    logits are not computed so, but weights can be: those that the links of a chain were merged into.
    """
    dtype: torch.dtype = getattr(torch, config.dtype)
    if dtype == torch.float32 and torch.cuda.is_available() and tf32_allowed():
        return torch.float16
    return torch.bfloat16 if config.quantization in ("int8", "stored") and dtype == torch.float32 else dtype


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """``‖actual - expected‖ / ‖expected‖`` over all logits."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def check_equal(actual: Tensor, expected: Tensor, dtype: torch.dtype, what: str) -> float:
    """Checks that two forms of a model differ by no more than rounding.

    Args:
        actual: logits.
        expected: logits of the same shape.
        dtype: `rounding_type`.
        what: the name of the comparison, for the error message.

    Returns:
        Their relative difference.

    Raises:
        EqualityError: they differ by more; says by how much, and how much is allowed.
    """
    difference = relative_difference(actual, expected)
    allowed = TOLERANCE[dtype]
    if not difference <= allowed:
        raise EqualityError(f"{what}: logits differ by {difference:.1e} (relative; allowed in {dtype}: {allowed:.0e})")
    return difference
