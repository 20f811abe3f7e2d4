"""AdaLoRA (arXiv 2303.10512) as PEFT computes it: its schedule, its allocations while training, and resuming them."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, PeftModel
from peft.tuners.adalora import AdaLoraModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lora_ga_cli.config.schema import AdaLoraConfig as Schedule
from lora_ga_cli.config.schema import Config
from lora_ga_cli.errors import TargetError
from lora_ga_cli.lora.offset import ADAPTER
from lora_ga_cli.methods.names import is_a, is_b
from lora_ga_cli.model.targets import Target, new_modules, shortest_names

ALLOCATOR_FILE = "rank_allocator.safetensors"
MOMENTS = ("exp_avg_ipt", "exp_avg_unc")
"""What PEFT's allocator remembers of each weight's importance."""


def adalora_config(
    config: Config, model: PreTrainedModel, targets: Mapping[str, Target], task_type: str, steps: int
) -> AdaLoraConfig:
    """PEFT's configuration of the adapter.

    Args:
        steps: optimizer steps of the whole run.

    Raises:
        TargetError: they are too few to move ranks between the first and the last of them.
    """
    options = config.method.adalora
    first, after = schedule(options, steps)
    return AdaLoraConfig(
        task_type=task_type,
        init_r=initial_rank(config),
        target_r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.adapter_dropout,
        tinit=first,
        tfinal=after,
        deltaT=options.interval,
        beta1=options.beta1,
        beta2=options.beta2,
        orth_reg_weight=options.orthogonality,
        total_step=steps,
        target_modules=shortest_names(model, targets),
        fan_in_fan_out=any(target.transposed for target in targets.values()),
        modules_to_save=new_modules(model) or None,
        revision=config.model.revision,
    )


def schedule(options: Schedule, steps: int) -> tuple[int, int]:
    """Steps before the first allocation, and after the last one.

    Raises:
        TargetError: as `adalora_config`.
    """
    first = int(options.warmup * steps)
    after = max(1, int(options.final * steps))  # steps count from 0, and the last allocation is before the end
    if first >= steps - after:
        raise TargetError(
            f"method.adapter=adalora moves ranks between steps, and a run of {steps} has {first} before the first "
            f"move and {after} after the last: more rows, trainer.epochs or trainer.max_steps, a smaller "
            "trainer.batch_size, or less of method.adalora.warmup and final"
        )
    return first, after


def initial_rank(config: Config) -> int:
    """The rank that every layer begins with, above the one it has in the mean at the end."""
    return math.ceil(config.rank * config.method.adalora.initial_rank)


def is_adalora(model: object) -> bool:
    return isinstance(model, PeftModel) and isinstance(model.base_model, AdaLoraModel)


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
def penalty(model: PeftModel) -> Tensor:
    """What training adds to the loss for factors P (d_out, r) and Q (r, d_in) that are not orthogonal: the weighted
    mean of ``‖Pᵀ P - I‖`` and ``‖Q Qᵀ - I‖`` over layers (equation 4, as PEFT averages it).

    In PEFT's own operations, so that under the same autocast it rounds as what PEFT adds."""
    norms = [
        torch.norm(gram - torch.eye(len(gram), device=gram.device, dtype=gram.dtype), p="fro")
        for name, item in model.named_parameters()
        if is_a(name) or is_b(name)
        for gram in [item @ item.T if is_a(name) else item.T @ item]
    ]
    return _config(model).orth_reg_weight * (sum(norms[1:], norms[0]) / len(norms))


@contextlib.contextmanager
def whole(model: PeftModel) -> Iterator[None]:
    """Has PEFT save every triplet, with zeros for those that were taken away; they may come back while training."""
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


def importance_bytes(model: nn.Module) -> int:
    """Bytes of what the allocator remembers and computes anew at every step: each as large as what trains."""
    trained = [item for name, item in model.named_parameters() if ".lora_" in name and item.requires_grad]
    return (len(MOMENTS) + 1) * sum(item.numel() * item.element_size() for item in trained)


def _config(model: PeftModel) -> AdaLoraConfig:
    config = model.peft_config[ADAPTER]
    assert isinstance(config, AdaLoraConfig)
    return config
