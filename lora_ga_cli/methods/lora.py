"""LoRA (arXiv 2106.09685) as PEFT computes it, with rsLoRA's scaling, DoRA's magnitudes and LoRA+'s learning rates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from pydantic import Field
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from lora_ga_cli.config.schema import Config, MethodOptions
from lora_ga_cli.errors import TargetError
from lora_ga_cli.lora.export import export_adapter, restore_adapter
from lora_ga_cli.lora.layers import is_b, lora_ranks
from lora_ga_cli.lora.offset import LoraInit
from lora_ga_cli.methods.base import TASK_TYPES, AdapterOutput, Method, Model
from lora_ga_cli.model.targets import Target, find_targets, new_modules, ranks_of, shortest_names
from lora_ga_cli.registry import METHODS


class LoraOptions(MethodOptions):
    """Options of every method that adds a pair of factors A and B to each target."""

    use_rslora: bool = False
    """Scale the adapter by ``alpha / sqrt(rank)`` instead of ``alpha / rank`` (rsLoRA, arXiv 2312.03732)."""
    use_dora: bool = False
    """Also train a magnitude for every output of a target (DoRA, arXiv 2402.09353)."""
    loraplus_lr_ratio: Annotated[float, Field(ge=1)] = 1.0
    """The learning rate of B divided by that of A (LoRA+, arXiv 2402.12354)."""


@METHODS.register("lora")
class Lora(Method):
    """A product of low rank beside each target: A (rank, d_in) begins at random, B (d_out, rank) at zero."""

    class Options(LoraOptions):
        """LoRA, rsLoRA, DoRA and LoRA+."""

        type: Literal["lora"] = "lora"

    uses = frozenset({"rank", "alpha", "target_modules", "rank_pattern", "adapter_dropout"})

    @property
    def output(self) -> AdapterOutput:
        if self.options.use_dora:
            return AdapterOutput("a DoRA adapter", "PEFT", size="rank")
        return AdapterOutput("a standard LoRA adapter", "PEFT", vllm=True, size="rank")

    @classmethod
    def check(cls, config: Config) -> Iterator[str]:
        options: Any = config.method
        if options.loraplus_lr_ratio > 1 and config.trainer.optimizer != "adamw":
            yield "method.loraplus_lr_ratio goes with trainer.optimizer=adamw"
        if options.use_dora and config.model.shard:
            yield "model.shard=true does not go with method.use_dora=true"

    def attach(self, model: PreTrainedModel, steps: int) -> PeftModel:
        """
        Raises:
            TargetError: an entry of ``rank_pattern`` matches no target.
        """
        config = self.config
        targets = find_targets(model, config.target_modules)
        if self.options.use_dora:
            refuse_int8_on_cpu(targets)
        described = LoraConfig(
            task_type=TASK_TYPES[config.model.task],
            r=config.rank,
            lora_alpha=config.alpha,  # type: ignore[arg-type]  # PEFT's annotation says int; it only divides by rank
            lora_dropout=config.adapter_dropout,
            use_rslora=self.options.use_rslora,
            use_dora=self.options.use_dora,
            target_modules=shortest_names(model, targets),
            rank_pattern=ranks_of(targets, config.rank_pattern),
            fan_in_fan_out=any(target.transposed for target in targets.values()),
            modules_to_save=new_modules(model) or None,
            revision=config.model.revision,
        )
        return wrap(model, described)

    def optimizer(self, model: Model, optimizer: Optimizer) -> Optimizer:
        """LoRA+ (arXiv 2402.12354): a separate learning rate for B.

        (PEFT's LoRA+ gives that rate to all vectors too: DoRA's magnitudes and the biases of a new classifier head.)
        """
        ratio = self.options.loraplus_lr_ratio
        if ratio == 1:
            return optimizer
        factors_b = {id(item) for name, item in model.named_parameters() if is_b(name)}
        for group in list(optimizer.param_groups):
            apart = [item for item in group["params"] if id(item) in factors_b]
            group["params"] = [item for item in group["params"] if id(item) not in factors_b]
            if apart:
                optimizer.add_param_group({**group, "params": apart, "lr": group["lr"] * ratio})
        return optimizer

    def save(self, model: Model, folder: Path, init: LoraInit | None, state: Mapping[str, Any] | None = None) -> None:
        assert isinstance(model, PeftModel)
        export_adapter(model, folder, init)

    def restore(self, model: Model, folder: Path, init: LoraInit | None) -> None:
        assert isinstance(model, PeftModel)
        restore_adapter(model, folder, init)

    def built_size(self, model: nn.Module) -> list[int]:
        return lora_ranks(model)

    def describe(self, model: nn.Module) -> str:
        ranks = lora_ranks(model)
        distinct = sorted(set(ranks))
        text = f"rank {distinct[0]}" + (f" to {distinct[-1]}" if len(distinct) > 1 else "")
        return f"{text}, {len(ranks)} layers"

    def describe_init(self) -> str:
        return "initialized as LoRA (A at random, B zero)"


def wrap(model: PreTrainedModel, config: PeftConfig) -> PeftModel:
    """PEFT's model around a base."""
    wrapped = get_peft_model(model, config)
    assert isinstance(wrapped, PeftModel)
    return wrapped


def refuse_int8_on_cpu(targets: Mapping[str, Target]) -> None:
    """DoRA takes norms of the weight, and PEFT loses its scales when it reads an 8-bit weight on a CPU.

    Raises:
        TargetError
    """
    for name, target in targets.items():
        if target.weight.dtype == torch.int8 and target.weight.device.type == "cpu":
            raise TargetError(
                f"{name}: PEFT's DoRA cannot read 8-bit weights on a CPU: use model.quantization=nf4, another device, "
                "or method.use_dora=false"
            )
