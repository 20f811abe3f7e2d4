"""The summed cross entropy of labelled positions, a few at a time, so that the logits of all positions never exist."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = 2**26
"""The most memory in bytes that the logits of a chunk take in float32."""
SMALLEST_CHUNK = 128
"""Positions of the smallest chunk. Fewer would keep a GPU waiting for its next kernel."""
IGNORED = -100
Head = Callable[[Tensor], Tensor]
"""From hidden states (positions, hidden) to logits (positions, vocabulary)."""


def chunk_size(vocabulary: int) -> int:
    """The positions of a chunk: as many as have logits of at most 64 MiB in float32, and at least 128."""
    return max(SMALLEST_CHUNK, CHUNK_BYTES // (4 * vocabulary) // SMALLEST_CHUNK * SMALLEST_CHUNK)


def labelled_positions(hidden: Tensor, targets: Tensor, bound: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """The hidden states and targets of labelled positions; one without a label stands for none.

    Args:
        hidden: shape (positions, hidden).
        targets: shape (positions,).
        bound: at least the number of labelled positions, or None to find out, for which the CPU waits.

    Returns:
        hidden states, targets, and the number of labelled positions on the device.
    """
    mask = targets != IGNORED
    count = mask.sum()
    if bound is None:
        positions = mask.nonzero().squeeze(1)
        if not len(positions):  # trained weights need a gradient in every process, also where it is 0
            positions = positions.new_zeros(1)
    else:
        bound = min(max(bound, 1), len(targets))
        torch._assert_async(count <= bound)
        positions = mask.to(torch.uint8).sort(descending=True, stable=True).indices[:bound]
    return hidden.index_select(0, positions), targets.index_select(0, positions), count


def summed_cross_entropy(head: Head, hidden: Tensor, targets: Tensor, size: int, *, again: bool) -> Tensor:
    """The sum of the cross entropy in float32, in chunks of at most ``size`` positions.

    Args:
        hidden: shape (positions, hidden).
        targets: shape (positions,).
        again: whether to compute each chunk again in the backward pass, because something in the head trains.
    """
    if not torch.is_grad_enabled() or not (again or hidden.requires_grad):
        return _total(_cross_entropy(head, *chunk) for chunk in _chunks(hidden, targets, size))
    if again:
        parts = _chunks(hidden, targets, size)
        return _total(checkpoint(_cross_entropy, head, *chunk, use_reentrant=False) for chunk in parts)
    loss: Tensor = _GradientInForward.apply(hidden, targets, head, size)
    return loss


class _GradientInForward(torch.autograd.Function):
    """The summed cross entropy, whose gradient by the hidden states is known when the forward pass ends.

    It is computed from the sum, whose terms have gradients between -1 and 1, so that float16 does not lose them.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: Head, size: int) -> Tensor:
        gradient = torch.empty_like(hidden)
        losses = []
        for part, wanted, place in _chunks(hidden, targets, size, gradient):
            with torch.enable_grad():
                inputs = part.detach().requires_grad_()
                logits = head(inputs)
            loss, of_logits = cross_entropy_and_gradient(logits.detach(), wanted)
            (slope,) = torch.autograd.grad(logits, inputs, of_logits)
            place.copy_(slope)
            losses.append(loss)
        ctx.save_for_backward(gradient)
        return _total(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        # a factor rounded to bfloat16 would change the length of every gradient
        return (gradient.float() * above).to(gradient.dtype), None, None, None


def cross_entropy_and_gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The summed cross entropy in float32, and its gradient ``softmax(logits) - onehot(targets)`` by the logits.

    All of it is computed in one float32 copy of the logits, where autograd would keep three at its peak: at the end of
    the forward pass they would be the last thing that a small pass has no memory for.

    Args:
        logits: (positions, vocabulary); they are not changed.
        targets: (positions,); those that are `IGNORED` count for nothing.

    Returns:
        The loss, and the gradient (positions, vocabulary) in the type of the logits.
    """
    labelled = (targets != IGNORED).unsqueeze(1)
    chosen = targets.unsqueeze(1).clamp(min=0)
    scores = torch.empty_like(logits, dtype=torch.float32).copy_(logits)
    scores -= scores.amax(1, keepdim=True)
    of_target = scores.gather(1, chosen)
    total = scores.exp_().sum(1, keepdim=True)
    loss = torch.where(labelled, total.log() - of_target, 0).sum()
    scores *= labelled / total
    scores.scatter_add_(1, chosen, -labelled.float())
    return loss, scores.to(logits.dtype)


def _chunks(hidden: Tensor, targets: Tensor, size: int, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of nearly equal length of all tensors."""
    count = -(-len(hidden) // size)
    return zip(*(tensor.tensor_split(count) for tensor in (hidden, targets, *others)), strict=True)


def _cross_entropy(head: Head, hidden: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(head(hidden).float(), targets, ignore_index=IGNORED, reduction="sum")


def _total(losses: Any) -> Tensor:
    return torch.stack(list(losses)).sum()
