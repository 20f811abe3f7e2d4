"""The cross entropy in chunks, and its gradient, are those of autograd in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from lora_ga_cli.model.chunked_cross_entropy import (
    CHUNK_BYTES,
    SMALLEST_CHUNK,
    chunk_size,
    cross_entropy_and_gradient,
)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_cross_entropy_and_its_gradient_are_autograds(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (scale * torch.randn(7, 31, generator=generator, dtype=torch.float64)).float().requires_grad_()
    targets = torch.tensor([3, -100, 0, 30, 7, -100, 7])
    before = logits.detach().clone()
    expected = functional.cross_entropy(logits.double(), targets, reduction="sum")
    (slope,) = torch.autograd.grad(expected, logits)
    loss, of_logits = cross_entropy_and_gradient(logits.detach(), targets)
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(of_logits, slope, rtol=1e-5, atol=1e-7)
    assert torch.equal(logits.detach(), before)


def test_an_impossible_token_does_not_spoil_rows_without_a_label() -> None:
    logits = torch.randn(3, 5)
    logits[:, 0] = -torch.inf
    targets = torch.tensor([2, -100, 4])
    loss, of_logits = cross_entropy_and_gradient(logits, targets)
    torch.testing.assert_close(loss, functional.cross_entropy(logits, targets, reduction="sum"))
    assert of_logits.isfinite().all()
    assert not of_logits[1].any()


def test_chunks_are_large_but_not_larger_than_their_memory() -> None:
    for vocabulary in (50, 32000, 50257, 128256, 152064, 256000, 262144):
        size = chunk_size(vocabulary)
        assert size % SMALLEST_CHUNK == 0
        assert size == SMALLEST_CHUNK or 4 * size * vocabulary <= CHUNK_BYTES < 4 * (size + SMALLEST_CHUNK) * vocabulary
    assert chunk_size(10**7) == SMALLEST_CHUNK
