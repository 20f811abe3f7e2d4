"""Optimizers that look at both factors of a LoRA layer, and leave every other parameter to AdamW."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.optim import Optimizer

from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import TrainingError
from lora_ga_cli.lora.layers import LoraPair, lora_pairs, trained_parameters
from lora_ga_cli.optimizers.around_adamw import AroundAdamW, Group
from lora_ga_cli.optimizers.base import ConfiguredOptimizer, needs_pairs


@dataclass(frozen=True)
class Side:
    """The factor A, or the factor B, of several layers of one shape. A is transposed, so that both look like B.

    Every tensor is at least in float32, whatever the parameters are, and has the layers in its first dimension.

    Args:
        parameters: the parameters that train, one for each layer; where initial factors are subtracted, they are
            differences from these (`LoraPair`).
        gradient: their gradients (layers, d, rank).
        other: the other factor of each layer (layers, d_other, rank), a copy from before the step.
        scaling: the s of each layer (layers, 1, 1).
        is_a: whether it is the factor A.
    """

    parameters: tuple[nn.Parameter, ...]
    gradient: Tensor
    other: Tensor
    scaling: Tensor
    is_a: bool

    def move(self, step: Tensor, *, keep: float = 1.0) -> None:
        """Adds a step (layers, d, rank) to the parameters, in place, after they were multiplied by ``keep``."""
        for parameter, of_layer in zip(self.parameters, step.unbind(), strict=True):
            if keep != 1:
                parameter.mul_(keep)
            parameter.add_(of_layer.mT if self.is_a else of_layer)


def sides(pairs: Iterable[LoraPair]) -> list[Side]:
    """The factors that have a gradient, together with those of all other layers of the same shape."""
    together: defaultdict[tuple[Any, ...], list[LoraPair]] = defaultdict(list)
    for pair in pairs:
        for is_a, parameter in ((True, pair.delta_a), (False, pair.delta_b)):
            if parameter.grad is not None:
                shapes = pair.delta_a.shape, pair.delta_b.shape
                together[is_a, *shapes, parameter.dtype, parameter.device].append(pair)
    return [_side(of_shape, is_a) for (is_a, *_), of_shape in together.items()]


def _side(pairs: Sequence[LoraPair], is_a: bool) -> Side:
    parameters = [pair.delta_a if is_a else pair.delta_b for pair in pairs]
    gradient, other = stack(parameter.grad for parameter in parameters), stack(p.b if is_a else p.a for p in pairs)
    gradient, other = (gradient.mT, other) if is_a else (gradient, other.mT)
    return Side(tuple(parameters), gradient, other, scalings(pairs, gradient), is_a)


def stack(tensors: Iterable[Tensor | None]) -> Tensor:
    """Matrices of one shape in one tensor, at least in float32; a copy."""
    stacked = torch.stack([tensor.detach() for tensor in tensors if tensor is not None])
    return stacked.to(torch.promote_types(stacked.dtype, torch.float32))


def scalings(pairs: Sequence[LoraPair], like: Tensor) -> Tensor:
    """The s of each layer (layers, 1, 1)."""
    return like.new_tensor([pair.scaling for pair in pairs]).view(-1, 1, 1)


class PairOptimizer(AroundAdamW):
    """Steps the factors of all layers. A subclass defines how, in `step_pairs`.

    Heads, magnitudes and embeddings are in groups of their own, which AdamW trains. A frozen factor has no gradient;
    its pair is stepped where the other factor has one.

    What a subclass keeps of a factor are tensors in ``self.state[parameter]``, so that they are saved with a checkpoint
    and put back when it is resumed. One of them is named ``step`` (torch's AdamW asks for it) and keeps its type; the
    others are read back in the factor's type and onto its device.

    Args:
        optimizer: the Trainer's AdamW. Its groups' settings and its parameters are taken over.
        pairs: the factors of every layer.
        settings: the subclass's own settings, kept in the group of the factors.
    """

    def __init__(self, optimizer: Optimizer, pairs: Sequence[LoraPair], **settings: Any):
        in_order = [item for pair in pairs for item in trained_of(pair)]
        factors = {id(item) for item in in_order}
        groups: list[Group] = []
        of_factors: Group = {}
        for group in optimizer.param_groups:
            others = [item for item in group["params"] if id(item) not in factors]
            if len(others) < len(group["params"]):
                of_factors = group
            if others:
                groups.append({**group, "params": others, "pairs": False})
        # torch moves the counts of fused steps to the parameter's device, where reading them waits for it
        groups.append({**of_factors, **settings, "params": in_order, "pairs": True, "fused": False})
        super().__init__(groups, lr=of_factors["lr"])
        self.pairs = list(pairs)

    def step_groups(self) -> None:
        """
        Raises:
            TrainingError: a gradient is not finite.
        """
        (group,) = [group for group in self.param_groups if group["pairs"]]
        pairs = [pair for pair in self.pairs if pair.delta_a.grad is not None or pair.delta_b.grad is not None]
        try:
            self.step_pairs(pairs, group)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise TrainingError(
                "the gradient of LoRA's factors is not finite, so training stopped. A lower trainer.learning_rate "
                "often helps"
            ) from error
        self.adamw([group for group in self.param_groups if not group["pairs"]])

    def step_pairs(self, pairs: Sequence[LoraPair], group: Group) -> None:
        """Moves all factors that have a gradient, in place: ``pair.delta_a`` (rank, d_in), ``pair.delta_b``
        (d_out, rank).

        The factors themselves are ``pair.a`` and ``pair.b``, which differ from these parameters where initial factors
        are subtracted. `sides` puts layers of one shape together, which a GPU needs to be fast.
        """
        raise NotImplementedError

    def read(self, parameters: Sequence[nn.Parameter], name: str, like: Tensor) -> Tensor:
        """What is kept under a name, one tensor for each parameter, stacked; zeros where there is nothing yet.

        Args:
            like: a tensor of the stack's shape, type and device.
        """
        zero = torch.zeros_like(like[0])
        return torch.stack([self.state[item].get(name, zero) for item in parameters]).to(like.dtype)

    def write(self, parameters: Sequence[nn.Parameter], **tensors: Tensor) -> None:
        """Keeps tensors by name, each with one entry in its first dimension for each parameter."""
        for name, stacked in tensors.items():
            for item, tensor in zip(parameters, stacked.unbind(), strict=True):
                self.state[item][name] = tensor

    def count_step(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """Counts a step of some parameters, and gives the number of steps of each one, this one included
        (layers, 1, 1); float64, on the CPU."""
        for item in parameters:
            self.state[item]["step"] = self.state[item].get("step", torch.zeros(())) + 1
        steps = torch.stack([self.state[item]["step"] for item in parameters])
        return steps.to("cpu", torch.float64).view(-1, 1, 1)


FROZEN = {"none": (True, True), "A": (False, True), "B": (True, False)}
"""Whether A and B train, by ``method.frozen_factor``."""


class ForPairs(ConfiguredOptimizer):
    """A configured `PairOptimizer`."""

    steps_pairs = True
    optimizer_class: ClassVar[type[PairOptimizer]]
    frozen_factors: ClassVar[tuple[str, ...]] = ("none", "A", "B", "random")
    """The values of ``method.frozen_factor`` that it goes with."""

    @classmethod
    def check(cls, config: Config) -> Iterator[str]:
        yield from needs_pairs(config)
        frozen, allowed = getattr(config.method, "frozen_factor", None), " or ".join(cls.frozen_factors)
        if (frozen or "none") not in cls.frozen_factors:
            has = f", not {frozen}" if frozen else f", an option that method.type={config.method.type} does not have"
            yield f"trainer.optimizer={config.trainer.optimizer} needs method.frozen_factor={allowed}{has}"

    def build(self, optimizer: Optimizer, model: nn.Module) -> Optimizer:
        """The optimizer in the place of the Trainer's.

        Raises:
            TrainingError: a factor is frozen, or trains, that this optimizer needs otherwise.
        """
        assert isinstance(model, PeftModel)
        pairs = lora_pairs(model)
        for pair in pairs:
            trains = pair.delta_a.requires_grad, pair.delta_b.requires_grad
            if trains not in [FROZEN[name] for name in self.frozen_factors if name in FROZEN]:
                wanted = " or ".join(self.frozen_factors)
                name = self.config.trainer.optimizer
                raise TrainingError(f"{pair.name}: trainer.optimizer={name} needs this frozen factor: {wanted}")
        return self.optimizer_class(optimizer, pairs, **self.options.model_dump())

    def state_bytes(self, model: nn.Module) -> int:
        """Memory of all gradients, of AdamW's two moments of what is no factor, and of what is kept of the factors."""
        assert isinstance(model, PeftModel)
        pairs = lora_pairs(model)
        trained, factors = trained_parameters(model), sum(item.numel() for pair in pairs for item in trained_of(pair))
        return 4 * (trained + 2 * (trained - factors) + sum(self.state_numbers(pair) for pair in pairs))

    def state_numbers(self, pair: LoraPair) -> int:
        """How many numbers are kept of a layer; AdamW's two moments of each factor that trains, if not overridden."""
        return sum(2 * item.numel() for item in trained_of(pair))


def trained_of(pair: LoraPair) -> list[nn.Parameter]:
    """The factors of a layer that train."""
    return [item for item in (pair.delta_a, pair.delta_b) if item.requires_grad]
