"""LoRA-One (arXiv 2502.01235): the adapter begins as one step of gradient descent, truncated to its rank."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from peft import PeftModel
from pydantic import Field
from torch import Tensor

from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import GradientError
from lora_ga_cli.gradient.factors import Factors
from lora_ga_cli.lora.layers import lora_layers
from lora_ga_cli.lora.offset import LoraInit, compute_init
from lora_ga_cli.methods.base import AdapterOutput, InitData, Link
from lora_ga_cli.methods.lora import Lora, LoraOptions
from lora_ga_cli.model.targets import Target
from lora_ga_cli.registry import METHODS


@METHODS.register("lora_one")
class LoraOne(Lora):
    """LoRA-One: ``s·B0 A0 = -(s/γ)·G_r/σ_1``, and nothing is subtracted.

    The model therefore does not compute what its base does before the first step; by how much its logits moved is
    printed. The paper's preconditioner for the steps after that is not part of this method: its authors call theirs
    under revision. `trainer.optimizer=scaled_adamw` is such a preconditioner (arXiv 2402.02347).
    """

    class Options(LoraOptions):
        """LoRA-One (arXiv 2502.01235)."""

        type: Literal["lora_one"] = "lora_one"
        gamma: Annotated[float, Field(gt=0)] = 128.0
        """The step is the gradient, divided by its largest singular value and by this constant."""

    options_without_cost = frozenset({"gamma"})

    @property
    def output(self) -> AdapterOutput:
        return AdapterOutput("a standard LoRA adapter", "PEFT", vllm=True, size="rank", starts_as_base=False)

    @property
    def needs_gradient(self) -> bool:
        return True

    @classmethod
    def check(cls, config: Config) -> Iterator[str]:
        yield from super().check(config)
        options: Any = config.method
        if options.use_dora:
            yield "method.use_dora=true does not go with method.type=lora_one, which begins away from its base"

    def initialize(self, model: PeftModel, link: Link, source: Any, data: InitData) -> LoraInit | None:
        source.check_serves(set(lora_layers(model)), 1)

        def pair(name: str, target: Target, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
            return one_step_factors(source.factors[name], rank, self.options.gamma)

        return compute_init(model, pair, offset="none", as_lora=self.without_directions(model, source))

    def describe_init(self) -> str:
        return f"initialized as one step along the gradient (gamma {self.options.gamma:g})"


def one_step_factors(factors: Factors, rank: int, gamma: float) -> tuple[Tensor, Tensor]:
    """``A0 = sqrt(S_r/σ_1)·V_rᵀ / sqrt(γ)`` and ``B0 = -U_r·sqrt(S_r/σ_1) / sqrt(γ)``, for ``G = U S Vᵀ``.

    (As in the authors' code. The README there leaves out the root and the division by the largest singular value σ_1.)

    Args:
        factors: singular triplets of G (d_out, d_in).

    Returns:
        A0 (rank, d_in) and B0 (d_out, rank), float32 on the CPU; ``B0 A0 = -G_r / (γ σ_1)``.

    Raises:
        GradientError: fewer than ``rank`` triplets are stored.
    """
    if factors.capacity < rank:
        raise GradientError(f"rank={rank} needs as many singular vectors, but only {factors.capacity} are stored")
    singular = factors.singular.float()
    root = (singular[:rank] / (singular[0] * gamma)).sqrt() if float(singular[0]) > 0 else 0 * singular[:rank]
    a0 = root[:, None] * factors.right.float()[:, :rank].T
    b0 = -factors.left.float()[:, :rank] * root
    return a0.contiguous(), b0.contiguous()
