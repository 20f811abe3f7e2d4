"""Processes that estimate one gradient together, each from its own rows. Without torch.distributed there is one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist


def count() -> int:
    """How many processes take part."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def index() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if count() > 1 else 0


def add_up(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if count() > 1:
        dist.all_reduce(tensor)
    return tensor


def from_rank(tensor: Tensor, source: int) -> Tensor:
    """The tensor that process ``source`` holds, given one of the same shape and type."""
    if count() == 1:
        return tensor
    received = tensor.contiguous() if source == index() else torch.empty_like(tensor)
    dist.broadcast(received, source)
    return received


def total(value: float, device: torch.device) -> float:
    """The sum of a number over all processes."""
    if count() == 1:
        return value
    kind = torch.float32 if device.type == "mps" else torch.float64
    return float(add_up(torch.tensor(value, dtype=kind, device=device)))


def largest(value: int, device: torch.device) -> int:
    """The largest of a number over all processes."""
    if count() == 1:
        return value
    tensor = torch.tensor(value, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return int(tensor)
