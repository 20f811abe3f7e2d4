"""Whether training has changed anything."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def sums_of_trained(model: nn.Module) -> Tensor:
    """The sum and the norm of every parameter that trains (n, 2), on the CPU.

    They are accumulated in float64 where the device has it, so that a change of one element shows.
    """
    sums = [torch.zeros(0, 2)]
    for item in model.parameters():
        if item.requires_grad:
            dtype = torch.float32 if item.device.type == "mps" else torch.float64
            sums.append(torch.stack([item.sum(dtype=dtype), torch.linalg.vector_norm(item, dtype=dtype)])[None].cpu())
    return torch.cat(sums)
