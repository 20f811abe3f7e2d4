"""What GaLore and APOLLO share: AdamW for the weights of linear layers, with moments of low rank.

Both train W (d_out, d_in) itself, and keep the moments of a projected gradient. The projection acts on the shorter side
of W, so for each layer the state has ``2 · rank · max(d_out, d_in)`` numbers for the moments and ``rank · min(d_out,
d_in)`` for the projection, where AdamW has ``2 · d_out · d_in``. Biases, norms, embeddings and heads have no such side;
torch's AdamW trains them.

(transformers offers both through the packages galore-torch and apollo-torch. There a checkpoint cannot be resumed,
because its state holds Python objects that transformers refuses to load; the weight decay of ``trainer`` has no effect,
and with GaLore neither do its betas and epsilon. So the equations are computed here.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from lora_ga_cli.config.schema import Config, Positive
from lora_ga_cli.errors import TargetError
from lora_ga_cli.model.forecast import state_bytes
from lora_ga_cli.model.targets import find_targets
from lora_ga_cli.optimizers.around_adamw import AroundAdamW, Group, State, adam_direction
from lora_ga_cli.optimizers.base import ConfiguredOptimizer, OptimizerOptions
from lora_ga_cli.registry import METHODS


class LowRankOptions(OptimizerOptions):
    """The projection of gradients."""

    rank: Positive = 128
    """Rank of the projected gradient. A layer whose shorter side is smaller keeps that whole side."""
    interval: Positive = 200
    """Optimizer steps between two projections."""
    scale: Annotated[float, Field(gt=0)] = 1.0
    """The steps of linear layers are multiplied by this number."""


class LowRankMoments(AroundAdamW):
    """AdamW whose moments of some weights are those of a projected gradient. A subclass defines the step.

    All state is tensors in the weight's type, and a step count, so that it is saved and restored to the bit.

    Args:
        optimizer: the Trainer's AdamW. Its groups' settings and its parameters are taken over.
        weights: those whose gradients are projected, with two dimensions each.
        rank, interval, scale: as in `LowRankOptions`.
        seed: of what a subclass draws.
    """

    def __init__(
        self, optimizer: Optimizer, weights: list[nn.Parameter], *, rank: int, interval: int, scale: float, seed: int
    ):
        projected = {id(item) for item in weights}
        groups: list[Group] = []
        for group in optimizer.param_groups:
            for low_rank in (False, True):
                params = [item for item in group["params"] if (id(item) in projected) == low_rank]
                if params:
                    groups.append({**group, "params": params, "low_rank": low_rank})
                    if low_rank:  # torch moves the counts of fused steps to the device, where reading them waits for it
                        groups[-1]["fused"] = False
        super().__init__(groups, lr=groups[0]["lr"])
        self.rank, self.interval, self.scale, self.seed = rank, interval, scale, seed

    def step_groups(self) -> None:
        self.adamw([group for group in self.param_groups if not group["low_rank"]])
        number = 0
        for group in self.param_groups:
            for weight in group["params"] if group["low_rank"] else ():
                number += 1
                if weight.grad is not None:
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.add_(self._change(weight, group, number), alpha=-group["lr"] * self.scale)

    def _change(self, weight: nn.Parameter, group: Group, number: int) -> Tensor:
        """What is subtracted from a weight, before the learning rate and ``scale``: (d_out, d_in).

        Args:
            number: of the weight among those with projected gradients, from 1.
        """
        gradient, state = weight.grad, self.state[weight]
        assert gradient is not None
        tall = gradient.shape[0] >= gradient.shape[1]
        short_last = gradient if tall else gradient.T  # (long side, short side)
        done = int(state["step"]) if "step" in state else 0
        if done % self.interval == 0:
            state["basis"] = self.basis(short_last, number, done // self.interval).to(weight.dtype)
        if done == 0:
            state["step"] = torch.tensor(0.0)
        state["step"] += 1
        low = short_last @ state["basis"].T  # (long side, rank)
        direction = adam_direction(low, state, group["betas"], group["eps"])
        change = self.expand(direction, low, short_last, state)
        return change if tall else change.T

    def basis(self, gradient: Tensor, number: int, draw: int) -> Tensor:
        """A new projection (rank, short side).

        Args:
            gradient: (long side, short side).
            number: of the weight, from 1.
            draw: how many projections the weight had before.
        """
        raise NotImplementedError

    def expand(self, direction: Tensor, low: Tensor, gradient: Tensor, state: State) -> Tensor:
        """What is subtracted from the weight: (long side, short side).

        Args:
            direction: Adam's, (long side, rank).
            low: the projected gradient, (long side, rank).
            gradient: (long side, short side).
            state: of the weight, which may hold more tensors.
        """
        raise NotImplementedError


class ForWeights(ConfiguredOptimizer):
    """A configured `LowRankMoments`, for methods that train the weights themselves."""

    Options = LowRankOptions
    optimizer_class: ClassVar[type[LowRankMoments]]

    @classmethod
    def check(cls, config: Config) -> Iterator[str]:
        if METHODS[config.method.type](config).output.is_adapter:
            yield (
                f"trainer.optimizer={config.trainer.optimizer} trains the weights of linear layers, and method "
                f"{config.method.name} (method.type={config.method.type}) keeps them frozen: use method=full, or "
                "trainer.optimizer=adamw"
            )

    def build(self, optimizer: Optimizer, model: nn.Module) -> Optimizer:
        """
        Raises:
            TargetError: no linear layer's weight trains.
        """
        weights = _trained(model)
        if not weights:
            raise TargetError(
                f"trainer.optimizer={self.config.trainer.optimizer} is for the weights of linear layers, and method "
                f"{self.config.method.name} trains none: use trainer.optimizer=adamw"
            )
        return self.optimizer_class(optimizer, weights, seed=self.config.seed, **self.options.model_dump())

    def state_bytes(self, model: nn.Module) -> int:
        total = state_bytes(model)
        for weight in _trained(model):
            short, long = sorted(weight.shape)
            rank = min(self.options.rank, short)
            total += (2 * rank * long + rank * short - 2 * short * long) * weight.element_size()
        return total


def _trained(model: nn.Module) -> list[nn.Parameter]:
    """The trained weights of linear layers, without the output head."""
    return [target.weight for target in find_targets(model).values() if target.weight.requires_grad]
