"""LoRA-Muon (arXiv 2606.12921): steps whose singular values are all equal, on the product of the factors.

The formulas were read in a description of the paper, and are not verified against the paper itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor
from torch.optim import Optimizer

from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import TrainingError
from lora_ga_cli.lora.layers import LoraPair
from lora_ga_cli.optimizers.around_adamw import Group
from lora_ga_cli.optimizers.base import OptimizerOptions
from lora_ga_cli.optimizers.grams import grams, polars
from lora_ga_cli.optimizers.pairs import ForPairs, PairOptimizer, sides, trained_of
from lora_ga_cli.registry import OPTIMIZERS


class LoraMuonOptions(OptimizerOptions):
    """Options of LoRA-Muon. The momentum is ``trainer.adam_beta1``."""

    damping: Annotated[float, Field(ge=0)] = 1e-6
    """What is added to the eigenvalues of AAᵀ and BᵀB before their inverse is taken, relative to their mean."""


def muon_directions(momenta: Sequence[Tensor], others: Sequence[Tensor], damping: float = 0.0) -> list[Tensor]:
    """The direction of each factor in which the product moves by a matrix whose singular values are all 1.

    For B it is ``msign(M (AAᵀ)^-½) (AAᵀ)^-½``, where ``msign(X) = X (XᵀX)^-½`` is the polar factor. For A it is the
    same with B, all transposed.

    Args:
        momenta: stacks of M (layers, d, rank).
        others: the other factors in the same order, transposed to (layers, d_other, rank). Where it is zero, the
            direction is zero.
        damping: as in `Gram.power`.
    """
    roots = [of.power(-0.5, damping).to(m.dtype) for of, m in zip(grams(others), momenta, strict=True)]
    signs = polars([momentum @ root for momentum, root in zip(momenta, roots, strict=True)])
    return [sign @ root for sign, root in zip(signs, roots, strict=True)]


class LoraMuon(PairOptimizer):
    """Momentum of the gradients, then `muon_directions`, for the n factors of a layer that train (1 or 2) at once.

    With γ the learning rate, λ the weight decay and s the layer's scaling,

        M_B ← β1 M_B + (1 - β1) g_B,   ΔB = -γ/(n s) · muon_directions(M_B, Aᵀ),
        B ← c B + ΔB/c^(n-1),          c = (1 - γλ)^(1/n),

    and likewise A. So ``s·ΔB·A`` and ``s·B·ΔA`` have singular values γ/n, and the weight decay shrinks the product
    ``B A`` by ``1 - γλ``. The paper has no s; here the step on the weight does not depend on it. The paper trains both
    factors; with one frozen factor, the other one takes the complete step. The polar factor is exact, where the paper
    iterates (Newton-Schulz).

    While B is zero, A does not move, because its gradient is zero too. Where a factor is a difference from its initial
    value, the weight decay pulls it toward that value.

    Raises:
        TrainingError: the learning rate times the weight decay is 1 or more.
    """

    def __init__(self, optimizer: Optimizer, pairs: Sequence[LoraPair], **settings: Any):
        super().__init__(optimizer, pairs, **settings)
        (group,) = [group for group in self.param_groups if group["pairs"]]
        rate, decay = float(group["lr"]), group["weight_decay"]
        if rate * decay >= 1:
            raise TrainingError(
                f"trainer.optimizer=lora_muon needs the learning rate times trainer.weight_decay below 1, and they are "
                f"{rate:g} and {decay:g}"
            )

    def step_pairs(self, pairs: Sequence[LoraPair], group: Group) -> None:
        beta = group["betas"][0]
        counted = [(n, side) for n in (1, 2) for side in sides(p for p in pairs if len(trained_of(p)) == n)]
        all_sides, momenta = [side for _, side in counted], []
        for side in all_sides:
            momenta.append(self.read(side.parameters, "exp_avg", side.gradient).lerp(side.gradient, 1 - beta))
            self.count_step(side.parameters)
            self.write(side.parameters, exp_avg=momenta[-1])
        rate = float(group["lr"])
        directions = muon_directions(momenta, [side.other for side in all_sides], group["damping"])
        for (n, side), direction in zip(counted, directions, strict=True):
            keep = (1 - rate * group["weight_decay"]) ** (1 / n)
            side.move(direction * (-rate / (n * keep ** (n - 1) * side.scaling)), keep=keep)


@OPTIMIZERS.register("lora_muon")
class ConfiguredLoraMuon(ForPairs):
    """LoRA-Muon (arXiv 2606.12921): momentum, then steps on the product B A whose singular values are all equal."""

    Options = LoraMuonOptions
    optimizer_class = LoraMuon

    @classmethod
    def check(cls, config: Config) -> Iterator[str]:
        yield from super().check(config)
        rate = config.trainer.learning_rate or 0.0  # what replaces null depends on the model: `LoraMuon` refuses it
        if rate * config.trainer.weight_decay >= 1:
            yield "trainer.optimizer=lora_muon needs trainer.learning_rate times trainer.weight_decay below 1"

    def state_numbers(self, pair: LoraPair) -> int:
        return super().state_numbers(pair) // 2
