"""Optimizers that look at both factors of a LoRA layer, and leave every other parameter to AdamW."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from lora_ga_cli.config.schema import Config
from lora_ga_cli.lora.layers import LoraPair, lora_pairs
from lora_ga_cli.optimizers.base import ConfiguredOptimizer, needs_pairs

Group = dict[str, Any]
"""A group of parameters: ``lr`` (which the schedule changes at every step), ``betas``, ``eps``, ``weight_decay``, …"""
State = dict[str, Tensor]
"""What is kept of a factor. Only tensors: they are saved with a checkpoint and put back when it is resumed. A tensor
named ``step`` keeps its type; others are read back in the factor's type and onto its device."""


class PairOptimizer(AdamW):
    """Steps every pair of factors together. A subclass defines how.

    Heads, magnitudes and embeddings are in groups of their own, which AdamW trains. A frozen factor has no gradient;
    its pair is stepped where the other factor has one.

    Args:
        optimizer: the Trainer's AdamW. Its groups' settings and its parameters are taken over.
        pairs: the factors of every layer.
        settings: the subclass's own settings, kept in the group of the factors.
    """

    def __init__(self, optimizer: Optimizer, pairs: Sequence[LoraPair], **settings: Any):
        trained = [[item for item in (pair.delta_a, pair.delta_b) if item.requires_grad] for pair in pairs]
        factors = {id(item) for items in trained for item in items}
        groups: list[Group] = []
        of_factors: Group = {}
        for group in optimizer.param_groups:
            others = [item for item in group["params"] if id(item) not in factors]
            if len(others) < len(group["params"]):
                of_factors = group
            if others:
                groups.append({**group, "params": others, "pairs": False})
        in_order = [item for items in trained for item in items]
        groups.append({**of_factors, **settings, "params": in_order, "pairs": True})
        super().__init__(groups, lr=of_factors["lr"])
        self.pairs = list(pairs)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One optimizer step of all parameters."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if not group["pairs"]]
            if self.param_groups:
                super().step()
        finally:
            self.param_groups = groups
        (group,) = [group for group in groups if group["pairs"]]
        pairs = [pair for pair in self.pairs if pair.delta_a.grad is not None or pair.delta_b.grad is not None]
        self.step_pairs(pairs, group)
        return loss

    def step_pairs(self, pairs: Sequence[LoraPair], group: Group) -> None:
        """Moves all factors that have a gradient, in place. A subclass overrides this or `step_pair`."""
        for pair in pairs:
            self.step_pair(pair, group)

    def step_pair(self, pair: LoraPair, group: Group) -> None:
        """Moves ``pair.delta_a`` (rank, d_in) and ``pair.delta_b`` (d_out, rank) in place, from their ``grad``.

        The factors themselves are ``pair.a`` and ``pair.b``, which differ from these parameters where initial factors
        are subtracted.
        """
        raise NotImplementedError


class ForPairs(ConfiguredOptimizer):
    """A configured `PairOptimizer`."""

    optimizer_class: ClassVar[type[PairOptimizer]]

    @classmethod
    def check(cls, config: Config) -> Iterator[str]:
        yield from needs_pairs(config)

    def build(self, optimizer: Optimizer, model: nn.Module) -> Optimizer:
        assert isinstance(model, PeftModel)
        return self.optimizer_class(optimizer, lora_pairs(model), **self.options.model_dump())
