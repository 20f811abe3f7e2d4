"""AdaLoRA (arXiv 2303.10512) as PEFT computes it: its schedule, its allocation of ranks, and resuming."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from peft import AdaLoraConfig, PeftModel, set_peft_model_state_dict
from pydantic import Field
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lora_ga_cli.config.schema import Config, Fraction, MethodOptions, Positive
from lora_ga_cli.errors import TargetError
from lora_ga_cli.lora.export import WEIGHTS_FILE, save_peft_adapter
from lora_ga_cli.lora.layers import ADAPTER, is_a, is_b, lora_ranks
from lora_ga_cli.lora.offset import LoraInit
from lora_ga_cli.lora.peft_loading import load_peft
from lora_ga_cli.methods.base import TASK_TYPES, AdapterOutput, Link, Method, Model
from lora_ga_cli.methods.lora import wrap
from lora_ga_cli.model.targets import check_rank, find_targets, new_modules, shortest_names
from lora_ga_cli.model.tensor_files import read_tensors
from lora_ga_cli.registry import METHODS

ALLOCATOR_FILE = "rank_allocator.safetensors"
MOMENTS = ("exp_avg_ipt", "exp_avg_unc")
"""What PEFT's allocator stores about the importance of each weight."""


@METHODS.register("adalora")
class AdaLora(Method):
    """Products P Λ Q beside each target, whose least important triplets are removed while training."""

    class Options(MethodOptions):
        """AdaLoRA's schedule, which moves its budget of ranks between layers. The output is scaled by alpha divided by
        the initial rank, as in PEFT."""

        type: Literal["adalora"] = "adalora"
        initial_rank: Annotated[float, Field(gt=1)] = 1.5
        """Rank that every layer begins with, divided by ``rank``, which is the mean rank at the end."""
        warmup: Fraction = 0.1
        """Share of the steps before the first rank is removed."""
        final: Fraction = 0.3
        """Share of the steps after the last rank is removed."""
        interval: Positive = 10
        """Steps between two allocations."""
        beta1: Annotated[float, Field(gt=0, lt=1)] = 0.85
        """Decay of the mean of the importance."""
        beta2: Annotated[float, Field(gt=0, lt=1)] = 0.85
        """Decay of the uncertainty of the importance."""
        orthogonality: Annotated[float, Field(ge=0)] = 0.5
        """Weight of the penalty that keeps the factors orthogonal."""

    uses = frozenset({"rank", "alpha", "target_modules", "adapter_dropout"})
    peft_type = "ADALORA"
    example = ("method.interval=1",)

    @property
    def output(self) -> AdapterOutput:
        return AdapterOutput("an AdaLoRA adapter", "PEFT", size="rank")

    @classmethod
    def check(cls, config: Config) -> Iterator[str]:
        options: Any = config.method
        trainer = config.trainer
        if trainer.max_steps == 1:
            yield "AdaLoRA moves ranks between steps, so it needs trainer.max_steps=2 or more"
        if trainer.precision == "fp16" or (trainer.precision, config.model.dtype) == ("auto", "float16"):
            yield "AdaLoRA measures gradients, which fp16's scaling makes infinite at times: trainer.precision=bf16"
        if options.warmup + options.final >= 1:
            yield "method.warmup and method.final leave no steps between them: together they must be below 1"
        if config.model.shard:
            yield "model.shard=true does not go with method.type=adalora"

    def check_steps(self, steps: int) -> None:
        schedule(self.options, steps)

    def attach(self, model: PreTrainedModel, link: Link) -> PeftModel:
        config, options = self.config, self.options
        targets = find_targets(model, config.target_modules)
        initial_rank = math.ceil(config.rank * options.initial_rank)
        check_rank({name: target.shape for name, target in targets.items()}, config.rank, initial_rank)
        first, after = schedule(options, link.total_steps)
        described = AdaLoraConfig(
            task_type=TASK_TYPES[config.model.task],
            init_r=initial_rank,
            target_r=config.rank,
            lora_alpha=config.alpha,  # type: ignore[arg-type]
            lora_dropout=config.adapter_dropout,
            tinit=first,
            tfinal=after,
            deltaT=options.interval,
            beta1=options.beta1,
            beta2=options.beta2,
            orth_reg_weight=options.orthogonality,
            total_step=link.total_steps,
            target_modules=shortest_names(model, targets),
            fan_in_fan_out=any(target.transposed for target in targets.values()),
            modules_to_save=new_modules(model) or None,
            revision=config.model.revision,
        )
        wrapped = wrap(model, described)
        penalize_in_training_only(wrapped)
        return wrapped

    def callbacks(self, model: Model) -> list[TrainerCallback]:
        return [Allocation()]

    def penalty(self, model: Model) -> Tensor | None:
        assert isinstance(model, PeftModel)
        return orthogonality_penalty(model)

    def save(self, model: Model, folder: Path, init: LoraInit | None, state: Mapping[str, Any] | None = None) -> None:
        assert isinstance(model, PeftModel)
        with all_triplets(model):
            save_peft_adapter(model, folder, rank_pattern=None)

    def restore(self, model: Model, folder: Path, init: LoraInit | None) -> None:
        assert isinstance(model, PeftModel)
        with all_triplets(model):  # PEFT would truncate the layers to their present ranks
            set_peft_model_state_dict(model, read_tensors(folder / WEIGHTS_FILE))

    def save_state(self, model: Model, folder: Path) -> None:
        assert isinstance(model, PeftModel)
        save_allocator(model, folder)

    def restore_state(self, model: Model, folder: Path) -> None:
        assert isinstance(model, PeftModel)
        restore_allocator(model, folder)

    @classmethod
    def load(cls, base: PreTrainedModel, folder: Path, device: str) -> Model:
        model = load_peft(base, folder, device)
        penalize_in_training_only(model)
        return model

    def built_size(self, model: nn.Module) -> list[int]:
        return lora_ranks(model)

    def describe(self, model: nn.Module) -> str:
        ranks = lora_ranks(model)
        return f"rank {ranks[0]}, to fall to a mean of {self.config.rank}, {len(ranks)} layers"

    def describe_init(self) -> str:
        return "initialized as AdaLoRA (Λ zero)"

    def extra_state_bytes(self, model: nn.Module) -> int:
        """What the allocator keeps or computes anew at every step: each as large as what trains."""
        trained = [item for name, item in model.named_parameters() if ".lora_" in name and item.requires_grad]
        return (len(MOMENTS) + 1) * sum(item.numel() * item.element_size() for item in trained)


def schedule(options: Any, steps: int) -> tuple[int, int]:
    """The steps before the first allocation, and those after the last one.

    Args:
        options: of the class `AdaLora.Options`.
        steps: optimizer steps of the complete run.

    Raises:
        TargetError: the run has too few steps to move ranks.
    """
    first = int(options.warmup * steps)
    after = max(1, int(options.final * steps))  # steps are counted from 0, and the last allocation is before the end
    if first >= steps - after:
        raise TargetError(
            f"AdaLoRA moves ranks between steps, but of the {steps} steps of this run, {first} come before the first "
            f"move and {after} after the last one: use more rows, trainer.epochs or trainer.max_steps, a smaller "
            "trainer.batch_size, or smaller method.warmup and method.final"
        )
    return first, after


def penalize_in_training_only(model: PeftModel) -> None:
    """Keeps the penalty for factors that are not orthogonal out of the loss in evaluation, where PEFT adds it too."""
    tuner: Any = model.base_model
    config = _config(model)
    weight = config.orth_reg_weight
    tuner.trainable_adapter_name = ADAPTER  # PEFT forgets it for an adapter that is loaded, and asks for it with a loss

    def before(module: Any, _: Any) -> None:
        config.orth_reg_weight = weight if module.training else 0.0

    def after(module: Any, _: Any, output: Any) -> None:
        config.orth_reg_weight = weight

    tuner.register_forward_pre_hook(before)
    tuner.register_forward_hook(after)


@torch.no_grad()
def orthogonality_penalty(model: PeftModel) -> Tensor:
    """What training adds to the loss for factors P (d_out, r) and Q (r, d_in) that are not orthogonal: the weighted
    mean of ``‖Pᵀ P - I‖`` and ``‖Q Qᵀ - I‖`` over layers (equation 4, as PEFT averages it).

    It uses the operations of PEFT, so that under the same autocast it rounds as what PEFT adds."""
    norms = [
        torch.norm(gram - torch.eye(len(gram), device=gram.device, dtype=gram.dtype), p="fro")
        for name, item in model.named_parameters()
        if is_a(name) or is_b(name)
        for gram in [item @ item.T if is_a(name) else item.T @ item]
    ]
    return _config(model).orth_reg_weight * (sum(norms[1:], norms[0]) / len(norms))


@contextlib.contextmanager
def all_triplets(model: PeftModel) -> Iterator[None]:
    """Has PEFT save every triplet, with zeros for those that were removed; they may come back while training."""
    config = _config(model)
    pattern, config.rank_pattern = config.rank_pattern, None
    try:
        yield
    finally:
        config.rank_pattern = pattern


class Allocation(TrainerCallback):
    """Moves the budget of ranks after every optimizer step."""

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        getattr(model, "module", model).base_model.update_and_allocate(state.global_step)


def save_allocator(model: PeftModel, folder: Path) -> None:
    """Writes what the next allocations depend on into a checkpoint."""
    allocator: Any = model.base_model.rankallocator
    tensors = {
        f"{moment}|{name}": tensor.detach().cpu().contiguous()
        for moment in MOMENTS
        for name, tensor in getattr(allocator, moment).items()
    }
    pattern = json.dumps(_config(model).rank_pattern)
    save_file(tensors, folder / ALLOCATOR_FILE, metadata={"rank_pattern": pattern})


def restore_allocator(model: PeftModel, folder: Path) -> None:
    """The inverse of `save_allocator`."""
    allocator: Any = model.base_model.rankallocator
    allocator.reset_ipt()
    tuner: Any = model.base_model
    parameters = dict(tuner.model.named_parameters())
    with safe_open(folder / ALLOCATOR_FILE, framework="pt") as opened:
        for key in opened.keys():  # noqa: SIM118
            moment, name = key.split("|", 1)
            tensor = opened.get_tensor(key).to(parameters[name].device)
            getattr(allocator, moment)[name] = tensor
            allocator.ipt[name] = torch.zeros_like(tensor)  # it is computed anew at every step
        _config(model).rank_pattern = json.loads(opened.metadata()["rank_pattern"])


def _config(model: PeftModel) -> AdaLoraConfig:
    config = model.peft_config[ADAPTER]
    assert isinstance(config, AdaLoraConfig)
    return config
