"""Small LoRA layers in float64 without a model, whose weights have a loss that is a function of s·B A alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from lora_ga_cli.lora.layers import LoraPair
from lora_ga_cli.optimizers.pairs import PairOptimizer
from lora_ga_cli.registry import OPTIMIZERS

D_OUT, D_IN, RANK, SCALING = 7, 9, 3, 1.7


def tensor(*shape: int, seed: int) -> Tensor:
    """Gaussian numbers in float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def layer(
    seed: int = 0, d_out: int = D_OUT, d_in: int = D_IN, rank: int = RANK, scaling: float = SCALING, *, b: bool = True
) -> LoraPair:
    """A layer whose B is random, or zero."""
    factor_b = tensor(d_out, rank, seed=seed + 100) if b else torch.zeros(d_out, rank, dtype=torch.float64)
    factor_a = tensor(rank, d_in, seed=seed + 200)
    return LoraPair(f"layer{seed}", nn.Parameter(factor_a), nn.Parameter(factor_b), None, None, scaling)


def change(pair: LoraPair) -> Tensor:
    """What the layer adds to its base, ``s·B A``."""
    return (pair.scaling * pair.b @ pair.a).detach()


def gradient_of(pair: LoraPair, seed: int = 0) -> Tensor:
    """The gradient of the loss of `backward` for the weight."""
    return change(pair) - 3 * tensor(pair.delta_b.shape[0], pair.delta_a.shape[1], seed=seed + 300)


def backward(pairs: Sequence[LoraPair], *, times: float = 1.0, first: int = 0) -> None:
    """Gradients of ``times · ½‖s·B A - W*‖²`` for the factors that train; W* differs by the number of the layer."""
    for number, pair in enumerate(pairs, first):
        gradient = (times * gradient_of(pair, number)).to(pair.a.dtype)
        if pair.delta_a.requires_grad:
            pair.delta_a.grad = pair.scaling * pair.b.detach().T @ gradient
        if pair.delta_b.requires_grad:
            pair.delta_b.grad = pair.scaling * gradient @ pair.a.detach().T


def build(
    name: str, pairs: Sequence[LoraPair], *, lr: float = 1e-2, others: Sequence[nn.Parameter] = (), **settings: Any
) -> PairOptimizer:
    """An optimizer of pairs by its name, with its defaults, as the Trainer's AdamW would be replaced.

    Args:
        settings: options of the optimizer, or settings of AdamW (``eps``, ``betas``, ``weight_decay``).
    """
    configured = OPTIMIZERS[name]
    options = {key: value for key, value in settings.items() if key in configured.Options.model_fields}
    of_adamw = {key: value for key, value in settings.items() if key not in options}
    factors = [item for pair in pairs for item in (pair.delta_a, pair.delta_b) if item.requires_grad]
    trainers = AdamW([{"params": [*factors, *others]}], lr=lr, **{"weight_decay": 0.0, **of_adamw})
    optimizer = configured.optimizer_class(trainers, pairs, **configured.Options(**options).model_dump())
    assert isinstance(optimizer, PairOptimizer)
    return optimizer


def run(optimizer: PairOptimizer, steps: int = 1, *, times: float = 1.0) -> list[Tensor]:
    """Trains, and gives what every layer adds to its base at the end."""
    for _ in range(steps):
        backward(optimizer.pairs, times=times)
        optimizer.step()
    return [change(pair) for pair in optimizer.pairs]


Build = Callable[[list[LoraPair]], PairOptimizer]


def turned(pair: LoraPair, by: Tensor) -> LoraPair:
    """The same product from other factors, (B Q, Q⁻¹ A)."""
    a, b = torch.linalg.solve(by, pair.a.detach()), pair.b.detach() @ by
    return LoraPair(pair.name, nn.Parameter(a), nn.Parameter(b), None, None, pair.scaling)
