"""Making a base model trainable as a method says: an adapter and its start, or every weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from lora_ga_cli.adapter.install import Start, compute_start, install
from lora_ga_cli.config.schema import Config
from lora_ga_cli.gradient.artifact import GradientArtifact
from lora_ga_cli.model.targets import Target, find_targets, shortest_names

TASK_TYPE = {
    "causal_lm": TaskType.CAUSAL_LM,
    "seq2seq_lm": TaskType.SEQ_2_SEQ_LM,
    "sequence_classification": TaskType.SEQ_CLS,
}


@dataclass(frozen=True)
class Trainable:
    """A model ready to train.

    Args:
        model: a `PeftModel`, or the base itself.
        start: what a gradient start did to it; None if nothing.
    """

    model: PeftModel | PreTrainedModel
    start: Start | None = None

    @property
    def parameters(self) -> int:
        """How many numbers train."""
        numbers = sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
        return numbers - (self.start.frozen if self.start is not None else 0)


def build(
    model: PreTrainedModel, config: Config, *, artifact: Callable[[], GradientArtifact], stored: Start | None
) -> Trainable:
    """Puts the configured method on ``model``, in place.

    Args:
        artifact: gives the gradient; called only for a gradient start that is not stored.
        stored: the start of an earlier session of the same run, installed as it is.

    Raises:
        TargetError, GradientError, RunError
    """
    if config.method.adapter == "none":
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        return Trainable(model)
    targets = find_targets(model, config.target_modules)
    gradient = artifact() if config.method.start == "gradient" and stored is None else None
    torch.manual_seed(config.seed)  # A's random start, however many numbers were drawn before
    wrapped = get_peft_model(model, lora_config(config, model, targets))
    assert isinstance(wrapped, PeftModel)
    if config.method.start == "kaiming":
        return Trainable(wrapped)
    if stored is None:
        assert gradient is not None
        method = config.method
        stored = compute_start(
            wrapped,
            gradient,
            direction=method.direction,
            scale=method.scale,
            gamma=method.gamma,
            shift=config.shift,
            seed=config.seed,
        )
    return Trainable(wrapped, install(wrapped, stored))


def build_empty(model: PreTrainedModel, config: Config) -> nn.Module:
    """The method on a model without weights (on the meta device): the shapes it has while it trains."""
    if config.method.adapter == "none":
        return model
    if config.method.start == "gradient" and config.shift == "adapter":
        config = config.model_copy(update={"rank": 2 * config.rank})
    with torch.device("meta"):
        return get_peft_model(model, lora_config(config, model, find_targets(model, config.target_modules)))


def lora_config(config: Config, model: PreTrainedModel, targets: Mapping[str, Target]) -> LoraConfig:
    """PEFT's configuration of the adapter."""
    return LoraConfig(
        task_type=TASK_TYPE[config.model.task],
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # PEFT's annotation says int; it only divides by rank
        lora_dropout=config.adapter_dropout,
        use_rslora=config.method.rank_stabilised,
        target_modules=shortest_names(model, targets),
        fan_in_fan_out=any(target.transposed for target in targets.values()),
        modules_to_save=list(getattr(model, "newly_initialised", [])) or None,
        revision=config.model.revision,
    )
