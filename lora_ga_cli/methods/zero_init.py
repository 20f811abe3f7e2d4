"""LoRA (arXiv 2106.09685) whose product is zero at step 0: one factor is drawn or follows the gradient, one is zero.

One of the factors may stay as it began: a frozen random A whose B trains is asymmetric LoRA (arXiv 2402.16842).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor

from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import GradientError
from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.lora.initialization import layer_seed
from lora_ga_cli.lora.layers import freeze_factor
from lora_ga_cli.lora.offset import InitialPair, LoraInit, compute_init
from lora_ga_cli.lora.sketches import Kind, draw_factor
from lora_ga_cli.methods.base import InitData, Link, link_seed
from lora_ga_cli.methods.lora import Lora, LoraOptions
from lora_ga_cli.model.targets import Target
from lora_ga_cli.registry import METHODS


class ZeroInitOptions(LoraOptions):
    """How the factor that is not zero begins, and which factors train."""

    init: Literal["kaiming", "gaussian", "orthonormal", "gradient"] = "kaiming"
    """How A begins (B, where A is zero because B is frozen). ``kaiming``: PEFT's uniform distribution. ``gaussian``:
    entries from N(0, 1/n), where n is the factor's longer side. ``orthonormal``: random orthonormal rows (columns of
    B). ``gradient``: the gradient's leading right (left) singular vectors."""
    frozen_factor: Literal["none", "A", "B", "random"] = "none"
    """The factor that does not train. ``A``: A stays as it began, B begins at zero and trains. ``B``: the reverse.
    ``random``: one of the two, drawn with the seed (again for each link of a chain)."""


@METHODS.register("lora")
class ZeroInitLora(Lora):
    """LoRA, rsLoRA, DoRA, LoRA+ and asymmetric LoRA."""

    adapts_experts = True

    class Options(ZeroInitOptions):
        """LoRA, rsLoRA, DoRA, LoRA+ and asymmetric LoRA."""

        type: Literal["lora"] = "lora"

    @classmethod
    def check(cls, config: Config) -> Iterator[str]:
        yield from super().check(config)
        options: Any = config.method
        if options.frozen_factor != "none" and options.loraplus_lr_ratio > 1:
            yield f"method.loraplus_lr_ratio does nothing with method.frozen_factor={options.frozen_factor}"

    @property
    def needs_gradient(self) -> bool:
        return bool(self.options.init == "gradient") or super().needs_gradient

    def frozen(self, link: Link) -> str | None:
        chosen = self.options.frozen_factor
        if chosen == "random":
            return random.Random(f"{self.config.seed}|{link.index}").choice("AB")
        return None if chosen == "none" else str(chosen)

    def wrap(self, model: Any, targets: Any, ranks: Any, link: Link) -> PeftModel:
        wrapped = super().wrap(model, targets, ranks, link)
        if (frozen := self.frozen(link)) is not None:
            freeze_factor(wrapped, frozen)
        return wrapped

    def initialize(self, model: PeftModel, link: Link, source: Any, data: InitData) -> LoraInit | None:
        if self.options.init == "kaiming" and self.frozen(link) != "B":
            return None  # as PEFT initialized it
        # PEFT draws no B, so with a frozen B the layers need directions
        along = self.options.init == "gradient" and self.frozen(link) != "B"
        as_lora = self.without_directions(model, source) if along else None
        return compute_init(model, self.pairs(link, source), offset="none", as_lora=as_lora)

    def pairs(self, link: Link, source: Any) -> InitialPair:
        """The function that gives the initial factors of each layer, one of them zero."""
        kind, seed, b_begins = self.options.init, link_seed(self.config.seed, link.index), self.frozen(link) == "B"

        def pair(name: str, target: Target, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
            d_out, d_in = target.shape
            if kind == "gradient" and name not in source.unreached:
                factor = leading_directions(source, name, rank, left=b_begins)
            else:
                generator = torch.Generator().manual_seed(layer_seed(seed, name) & (2**63 - 1))
                drawn: Kind = "kaiming" if kind == "gradient" else kind  # an expert without gradient begins as in LoRA
                factor = draw_factor((d_out, rank) if b_begins else (rank, d_in), drawn, generator)
            return (torch.zeros(rank, d_in), factor) if b_begins else (factor, torch.zeros(d_out, rank))

        return pair

    def describe_init(self) -> str:
        sources = {
            "kaiming": "at random",
            "gaussian": "at random (Gaussian)",
            "orthonormal": "at random (orthonormal)",
            "gradient": "along the gradient",
        }
        source, frozen = sources[self.options.init], self.options.frozen_factor
        begins, zero = ("B", "A") if frozen == "B" else ("A", "B")
        if frozen == "random":
            return f"initialized with one factor {source} and frozen, the other zero"
        text = f"initialized as LoRA ({begins} {source}, {zero} zero"
        return f"{text})" if frozen == "none" else f"{text}, {begins} frozen)"


def leading_directions(artifact: GradientArtifact, name: str, rank: int, *, left: bool) -> Tensor:
    """The gradient's leading singular vectors: rows of A (rank, d_in), or columns of B (d_out, rank) if ``left``.

    Raises:
        GradientError: fewer are stored, or the layer has none.
    """
    artifact.check_serves({name}, 1)
    factors = artifact.factors.get(name)
    if factors is None:
        raise GradientError(f"{name}: no gradient reached it, so there is no direction: use more gradient.samples")
    if factors.capacity < rank:
        raise GradientError(f"{name}: rank={rank} needs as many singular vectors, but {factors.capacity} are stored")
    vectors = (factors.left if left else factors.right).float()[:, :rank]
    return (vectors if left else vectors.T).contiguous()
