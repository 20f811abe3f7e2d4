"""SoRA (arXiv 2311.11696): LoRA whose ranks have gates, which a proximal step makes exactly zero while they train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from peft import PeftModel, set_peft_model_state_dict
from pydantic import Field
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lora_ga_cli.config.schema import Config
from lora_ga_cli.lora.export import WEIGHTS_FILE, export_adapter
from lora_ga_cli.lora.gates import add_gates, folded_factors, gates, soft_threshold
from lora_ga_cli.lora.layers import as_float32_on_cpu, lora_layers, weight_of
from lora_ga_cli.lora.offset import LoraInit
from lora_ga_cli.methods.base import Link, Model, PreparedModel
from lora_ga_cli.methods.lora import Lora, LoraOptions
from lora_ga_cli.methods.rank_allocation import describe_ranks_of
from lora_ga_cli.model.targets import Target
from lora_ga_cli.model.tensor_files import read_tensors
from lora_ga_cli.registry import METHODS

STATE_FILE = "gated_factors.safetensors"


@METHODS.register("sora")
class Sora(Lora):
    """LoRA with a gate g (rank,) on every layer, which adds ``s·B (g ⊙ A x)``.

    After each optimizer step, g becomes ``sign(g)·max(|g| - lr·λ, 0)``, the proximal step of the penalty ``λ·‖g‖₁``,
    where lr is the learning rate of that step. Ranks whose gate is zero at the end are removed. A rank whose gate is
    zero can come back, if the optimizer moves its gate by more than ``lr·λ`` in one step; without a gradient it does
    not.

    ``trainer.weight_decay`` acts on gates as it does on A and B.

    What differs from the authors' code: it shrinks a gate by the threshold and then also removes what is left if that
    is below the threshold, so that every gate between once and twice the threshold becomes zero, which is not the
    proximal step. In one of its two versions the threshold is λ itself, without the learning rate. It also has a second
    penalty, ``λ₁·mean |g|`` in the loss, and a schedule of λ, which are left out here. Not verified against the paper:
    that the threshold has the learning rate in it, and that gates begin with draws from N(0, 1), as here.
    """

    adapts_parameters = False

    class Options(LoraOptions):
        """SoRA's penalty."""

        type: Literal["sora"] = "sora"
        sparsity: Annotated[float, Field(ge=0)] = 0.3
        """λ: every step moves each gate towards zero by λ times the learning rate. A step of AdamW is about as large as
        the learning rate, so with 1 or more nearly all gates end at zero. 0 keeps all of them."""

    trains_pairs = False  # an optimizer that looks at A and B does not see the gate between them

    @classmethod
    def check(cls, config: Config) -> Iterator[str]:
        yield from super().check(config)
        options: Any = config.method
        if options.use_dora:
            yield "method.use_dora=true does not go with method.type=sora: PEFT's DoRA has no gates"

    def wrap(
        self, model: PreTrainedModel, targets: Mapping[str, Target], ranks: Mapping[str, int], link: Link
    ) -> PeftModel:
        wrapped = super().wrap(model, targets, ranks, link)
        add_gates(wrapped)
        return wrapped

    def callbacks(self, model: Model) -> list[TrainerCallback]:
        return [ProximalStep(list(gates(model).values()), self.options.sparsity)]

    def save(self, model: Model, folder: Path, init: LoraInit | None, state: Mapping[str, Any] | None = None) -> None:
        assert isinstance(model, PeftModel)
        export_adapter(model, folder, factors=folded_factors(model))

    def restore(self, model: Model, folder: Path, init: LoraInit | None) -> None:
        """Reads a new head alone; gates and factors, of which the adapter has a part, are read by `restore_state`."""
        assert isinstance(model, PeftModel)
        stored = read_tensors(folder / WEIGHTS_FILE)
        set_peft_model_state_dict(model, {name: item for name, item in stored.items() if ".lora_" not in name})

    def save_state(self, model: Model, folder: Path) -> None:
        tensors = {name: as_float32_on_cpu(item) for name, item in _gated_factors(model).items()}
        save_file(tensors, folder / STATE_FILE)

    @torch.no_grad()
    def restore_state(self, model: Model, folder: Path) -> None:
        stored = read_tensors(folder / STATE_FILE)
        for name, item in _gated_factors(model).items():
            item.copy_(stored[name])

    def describe_init(self) -> str:
        return "initialized as LoRA (A at random, B zero), gates from N(0, 1)"

    def saved_size(self, prepared: PreparedModel) -> int | None:
        return max(_kept_ranks(prepared.model).values())

    def describe_trained(self, model: nn.Module) -> str:
        """The ranks that are saved, and how many gates are zero."""
        values = torch.cat([item.detach().cpu() for item in gates(model).values()])
        zero = int((values == 0).sum())
        return f"{describe_ranks_of(_kept_ranks(model))}: {zero} of {values.numel()} gates are zero"


class ProximalStep(TrainerCallback):
    """Moves gates towards zero after every optimizer step, by the learning rate times the penalty's weight.

    Args:
        gates: the parameters.
        sparsity: λ.
    """

    def __init__(self, gates: list[nn.Parameter], sparsity: float):
        self.gates, self.sparsity = gates, sparsity

    @torch.no_grad()
    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        if getattr(optimizer, "step_was_skipped", False):
            return  # fp16's scaled gradients were infinite
        ids = {id(gate) for gate in self.gates}
        for group in optimizer.param_groups:
            for item in group["params"]:
                if id(item) in ids:
                    item.copy_(soft_threshold(item, float(group["lr"]) * self.sparsity))


def _gated_factors(model: nn.Module) -> dict[str, torch.Tensor]:
    """What trains in every layer, by the layer's name with ``.A``, ``.B`` or ``.gate``."""
    assert isinstance(model, PeftModel)
    of_layers = gates(model)
    return {
        f"{name}.{part}": item
        for name, layer in lora_layers(model).items()
        for part, item in (("A", weight_of(layer.lora_A)), ("B", weight_of(layer.lora_B)), ("gate", of_layers[name]))
    }


def _kept_ranks(model: nn.Module) -> dict[str, int]:
    """The rank of every layer as it is saved."""
    return {name: max(1, int((item != 0).sum())) for name, item in gates(model).items()}
